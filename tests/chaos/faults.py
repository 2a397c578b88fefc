"""What goes wrong. Each fault breaks something, waits a little, and mends it: the system itself must do the rest."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable

from tests.chaos.stack import Stack
from tests.kit.system import Process, poll

Fault = Callable[[Stack, random.Random], None]


class NothingToBreak(Exception):
    """The stack has no such part, or it is not there at the moment: this fault did not happen."""


def kill_child(stack: Stack, choice: random.Random) -> None:
    """kill -9 of a pool process."""
    worker = stack.worker(choice.randrange(stack.STRUCK))
    try:
        pid, *_ = poll(lambda: worker.children, 10)
    except AssertionError:
        raise NothingToBreak from None  # a naive worker may have given up
    at = time.monotonic_ns()
    signal_pid(pid, signal.SIGKILL)
    stack.note_kill("kill_child", at, {pid})


def kill_worker(stack: Stack, choice: random.Random) -> None:
    """kill -9 of a worker; another is started a moment later."""
    index = choice.randrange(stack.STRUCK)
    stack.kill("kill_worker", stack.worker(index))
    time.sleep(choice.uniform(0, 1))
    stack.start_worker(index)


def kill_all_workers(stack: Stack, choice: random.Random) -> None:
    """kill -9 of all workers at once."""
    stack.kill("kill_all_workers", *(stack.worker(i) for i in range(stack.STRUCK)))
    time.sleep(choice.uniform(0, 1))
    for index in range(stack.STRUCK):
        stack.start_worker(index)


def kill_api(stack: Stack, choice: random.Random) -> None:
    """kill -9 of the API in the middle of POSTs."""
    assert stack.api
    stack.api.send_signal(signal.SIGKILL)
    stack.api.wait()
    time.sleep(choice.uniform(0, 0.5))
    stack.start_api()


def kill_redis(stack: Stack, choice: random.Random) -> None:
    """kill -9 of Redis, started again on its append-only file."""
    stack.redis.stop(signal.SIGKILL)
    time.sleep(choice.uniform(0, 3))
    stack.redis.start(stack.appendfsync)


def restart_redis(stack: Stack, choice: random.Random) -> None:
    """An orderly restart of Redis."""
    stack.redis.stop(signal.SIGTERM)
    time.sleep(choice.uniform(0, 6))
    stack.redis.start(stack.appendfsync)


def pause_redis(stack: Stack, choice: random.Random) -> None:
    """Redis answers nothing for a while, as under DEBUG SLEEP, a slow disk or swapping."""
    stack.redis.send_signal(signal.SIGSTOP)
    time.sleep(choice.uniform(0.5, 6))
    stack.redis.send_signal(signal.SIGCONT)


def kill_clients(stack: Stack, choice: random.Random) -> None:
    """CLIENT KILL of every connection, a few times."""
    for _ in range(choice.randint(1, 5)):
        stack.redis.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        stack.redis.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes")
        time.sleep(choice.uniform(0, 0.3))


def fill_redis(stack: Stack, choice: random.Random) -> None:
    """No memory left (maxmemory, noeviction)."""
    stack.redis.client.config_set("maxmemory", 1)
    time.sleep(choice.uniform(0.5, 3))
    stack.redis.client.config_set("maxmemory", 0)


def cut_connections(stack: Stack, choice: random.Random) -> None:
    """The API's and one worker's connections end in the middle of a message."""
    stack.proxy.cut_midway()
    time.sleep(choice.uniform(0.1, 1))
    stack.proxy.heal()


def partition(stack: Stack, choice: random.Random) -> None:
    """The API and one worker are cut off: no packet passes, no connection closes."""
    stack.proxy.block()
    time.sleep(choice.uniform(1, 8))
    stack.proxy.heal()


def stop_worker(stack: Stack, choice: random.Random) -> None:
    """SIGSTOP of a worker with its pool past its lease, then SIGCONT."""
    worker = at_work(stack, choice)
    pids = [worker.pid, *worker.children]
    for pid in pids:
        signal_pid(pid, signal.SIGSTOP)
    time.sleep(choice.uniform(6, 8))
    stack.read_back()  # others have ended its jobs by now: nothing of that may change
    for pid in pids:
        signal_pid(pid, signal.SIGCONT)


def stop_main_process(stack: Stack, choice: random.Random) -> None:
    """SIGSTOP of a worker's main process alone: its pool process computes on."""
    worker = at_work(stack, choice)
    worker.send_signal(signal.SIGSTOP)
    time.sleep(choice.uniform(6, 8))
    stack.read_back()
    worker.send_signal(signal.SIGCONT)


def terminate_worker(stack: Stack, choice: random.Random) -> None:
    """SIGTERM or SIGINT in the middle: it finishes what runs and exits (after SIGINT with 1, as Celery has it)."""
    index = choice.randrange(stack.STRUCK)
    worker = stack.worker(index)
    number = choice.choice([signal.SIGTERM, signal.SIGINT])
    code = stack.ask_to_stop(worker, number)
    stack.exit_codes.append(0 if number == signal.SIGINT and code == 1 else code)
    stack.start_worker(index)


def rolling_restart(stack: Stack, choice: random.Random) -> None:
    """All workers, one after the other, each replaced before the next goes."""
    for index in range(stack.STRUCK):
        stack.exit_codes.append(stack.ask_to_stop(stack.worker(index), signal.SIGTERM))
        stack.start_worker(index)
        stack.await_worker(index)


def jump_clock(stack: Stack, choice: random.Random) -> None:
    """Redis's clock, which is the one that counts, jumps by an hour; and back a while later."""
    stack.redis.jump_clock(choice.choice([-3600, 3600]))
    time.sleep(choice.uniform(1, 6))
    stack.redis.jump_clock(0)


def kill_long_worker(stack: Stack, choice: random.Random) -> None:
    """kill -9 of the worker that runs the long job; another is idle and takes it over."""
    del choice

    def busy() -> list[int]:
        return [i for i in range(stack.STRUCK, len(stack.workers)) if stack.runs_a_job(stack.worker(i))]

    if len(stack.workers) == stack.STRUCK:
        raise NothingToBreak
    index, *_ = poll(busy, 30, "the long job runs")
    stack.kill("kill_long_worker", stack.worker(index))
    stack.start_worker(index)


def kill_rabbit(stack: Stack, choice: random.Random) -> None:
    """kill -9 of RabbitMQ, where it is the broker, started again on its data."""
    if not stack.rabbit:
        raise NothingToBreak
    stack.rabbit.stop(signal.SIGKILL)
    time.sleep(choice.uniform(0, 3))
    stack.rabbit.start()


def at_work(stack: Stack, choice: random.Random) -> Process:
    """A worker in the midst of a job, if there is one soon."""
    worker = stack.worker(choice.randrange(stack.STRUCK))
    with contextlib.suppress(AssertionError):
        poll(lambda: stack.runs_a_job(worker), 5)
    return worker


def signal_pid(pid: int, number: int) -> None:
    """Send a signal to a process that the stack started."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


#: Every fault, and how often it is drawn.
FAULTS: dict[Fault, int] = {
    kill_child: 4,
    kill_worker: 6,
    kill_all_workers: 1,
    kill_api: 2,
    kill_redis: 2,
    restart_redis: 1,
    pause_redis: 2,
    kill_clients: 2,
    fill_redis: 2,
    cut_connections: 3,
    partition: 2,
    stop_worker: 1,
    stop_main_process: 1,
    terminate_worker: 3,
    rolling_restart: 1,
    jump_clock: 1,
    kill_long_worker: 2,
}
