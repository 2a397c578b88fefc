"""What a plugin starts, and what it does to its process: nothing outlives it, nothing of ours breaks."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.system import Process, System, children_of, command_of, finished, poll, running_system
from tests.kit.wild import new_mark, programs, write_wild

EXECUTOR = "self.pool = ProcessPoolExecutor(2, mp_context=fork); list(self.pool.map(abs, range(4)))"
SILENT = 'logging.config.dictConfig({"version": 1}); logging.disable(logging.CRITICAL)'


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    plugins = tmp_path_factory.mktemp("plugins")
    write_wild(plugins)
    write_wild(plugins, "hasty", knobs="time_limit_s = 2")
    write_wild(plugins, "pooled", EXECUTOR)
    write_wild(plugins, "silent", top=SILENT)
    write_wild(plugins, "moved", "self.break_surroundings('')")
    write_wild(plugins, "unloadable", "raise Panic('two\\nlines')")
    with running_system(tmp_path_factory.mktemp("wild"), plugins) as system:
        system.start_api()
        yield system


@pytest.fixture(scope="module")
def worker(wild: System) -> Process:
    process = wild.start_worker("wild,hasty,silent", wait=False)
    poll(lambda: "service ready name=wild,hasty,silent" in process.output, 60, "the worker is ready")
    return process


def post(system: System, do: str, service: str = "wild", **fields: Any) -> str:
    body = {"service": service, "input": {"do": do, **fields}}
    with system.client() as client:
        return str(client.post("/jobs", json=body).raise_for_status().json()["id"])


def end(system: System, job_id: str, timeout: float = 60) -> Any:
    with system.client() as client:
        return finished(client, job_id, timeout)


def run(system: System, do: str, service: str = "wild", **fields: Any) -> Any:
    return end(system, post(system, do, service, **fields))


def start_programs(system: System, do: str = "program", count: int = 1, service: str = "wild") -> tuple[str, str]:
    """A job in whose midst so many programs run; their mark and its id."""
    mark = new_mark()
    job_id = post(system, do, service, mark=mark)
    poll(lambda: len(programs(mark)) >= count, 60, "the programs run")
    return mark, job_id


def cancel(system: System, worker: Process, job_id: str) -> None:
    with system.client() as client:
        client.delete(f"/jobs/{job_id}").raise_for_status()


def kill_pool_process(system: System, worker: Process, job_id: str) -> None:
    assert len(worker.children) == 1
    os.kill(worker.children[0], signal.SIGKILL)


def kill_guardian(system: System, worker: Process, job_id: str) -> None:
    os.kill(worker.guardians[0], signal.SIGKILL)


@pytest.mark.parametrize("way", [cancel, kill_pool_process, kill_guardian])
def test_all_that_a_pool_process_started_ends_with_it(
    wild: System, worker: Process, way: Callable[[System, Process, str], None]
) -> None:
    mark, job_id = start_programs(wild, "sessions", 3)
    first = programs(mark)

    way(wild, worker, job_id)

    poll(lambda: not programs(mark) & first, 20, "no program of the first run is left")
    if way is not cancel:  # it runs again
        poll(lambda: len(programs(mark)) == 3, 60, "the second run has its programs")
        cancel(wild, worker, job_id)
    assert end(wild, job_id)["status"] == "cancelled"
    poll(lambda: not programs(mark), 20, "no program is left")


def test_a_time_limit_ends_the_programs_too(wild: System, worker: Process) -> None:
    mark, job_id = start_programs(wild, service="hasty")
    assert end(wild, job_id)["error"]["code"] == "timed_out"
    poll(lambda: not programs(mark), 20, "no program is left")


def test_programs_that_a_run_left_alive_stay_until_its_process_ends(wild: System, worker: Process) -> None:
    mark = new_mark()
    made = run(wild, "executor")["output"]["value"]
    assert run(wild, "daemon", mark=mark)["status"] == "succeeded"
    assert run(wild, "executor")["output"]["value"] == made
    assert len(programs(mark)) == 1

    kill_pool_process(wild, worker, "")

    poll(lambda: not programs(mark) and not Path(f"/proc/{made}").exists(), 20, "nothing is left")


@pytest.mark.parametrize(
    ("do", "value"),
    [
        ("popen", -signal.SIGTERM),
        ("process", -signal.SIGTERM),
        ("pool", "left"),
        ("handlers", [[True, True, True], "['SIG_DFL', 'SIG_DFL']"]),
    ],
)
def test_a_plugins_children_take_signals_as_in_any_python(wild: System, worker: Process, do: str, value: Any) -> None:
    assert run(wild, do)["output"] == {"value": value}


def test_a_fork_that_comes_back_does_not_go_on_as_the_pool_process(wild: System, worker: Process) -> None:
    pid = run(wild, "pid")["output"]["value"]
    job = run(wild, "fork_that_returns")
    assert (job["status"], job["output"]["value"], job["attempt"]) == ("succeeded", pid, 1)
    poll(
        lambda: not [child for child in children_of(pid) if b"worker.pool.child" in command_of(child)],
        20,
        "it has ended",
    )
    assert "came back from its plugin" in worker.output


def test_an_exit_by_our_own_code_is_a_death_like_any_other(wild: System, worker: Process) -> None:
    job = run(wild, "exit70")
    assert (job["error"]["code"], job["attempt"]) == ("worker_lost", 3)


@pytest.mark.parametrize(
    ("do", "message"),
    [
        ("raise_cancelled", "CancelledError: let out (in predict)"),
        ("raise_interrupt", "KeyboardInterrupt (in predict)"),
        ("raise_panic", "Panic: index out of bounds (in predict)"),
        ("raise_unsayable", "Unsayable: (its text cannot be had: __str__ raised TypeError) (in predict)"),
        (
            "raise_group",
            "ExceptionGroup: many (2 sub-exceptions): ValueError: a; "
            "ExceptionGroup: inner (1 sub-exception): KeyError: 'b' (in predict)",
        ),
    ],
)
def test_whatever_a_verb_raises_fails_its_job_alone(wild: System, worker: Process, do: str, message: str) -> None:
    pid = run(wild, "pid")["output"]["value"]
    job = run(wild, do)
    assert job["error"] == {"code": "predict_failed", "message": message, "retryable": False}
    assert job["attempt"] == 1 and worker.children == [pid]


def test_job_lines_and_tracebacks_are_logged_whatever_a_plugin_sets_up(wild: System, worker: Process) -> None:
    for do in ("raise_error", "set_up_logging", "raise_error"):
        job = run(wild, do, "silent")
        poll(lambda job=job: f"id={job['id']}" in worker.output, 10, "its line is logged")
    assert worker.output.count("ValueError: as told\n") >= 2, "the tracebacks"


@pytest.mark.parametrize("do", ["set_up_logging", "set_up_by_force"])
def test_a_plugins_lines_are_events_of_its_job_whatever_it_sets_up(wild: System, worker: Process, do: str) -> None:
    job = run(wild, do)
    with wild.client() as client:
        assert "a line of the plugin's" in client.get(f"/jobs/{job['id']}/events").text


def test_a_killed_idle_process_and_a_crash_are_seen_although_forks_hold_its_socket(wild: System) -> None:
    worker = wild.start_worker("pooled")
    (pid,) = worker.children
    os.kill(pid, signal.SIGKILL)
    assert run(wild, "nothing", "pooled")["status"] == "succeeded"
    job = run(wild, "crash", "pooled")
    assert (job["error"]["code"], job["attempt"]) == ("worker_lost", 3), "not at its time_limit_s of a minute"

    mark, job_id = start_programs(wild, service="pooled")
    worker.send_signal(signal.SIGINT)
    poll(lambda: "Ctrl-C again ends all at once" in worker.output, 20, "it says how to end at once")
    worker.send_signal(signal.SIGINT)
    assert worker.wait(20) == 1
    assert not programs(mark)
    assert end_of(wild, job_id) == "queued", "it was handed back"

    again = wild.start_worker("pooled")
    cancel(wild, again, job_id)
    below = [pid for guardian in again.guardians for pid in (guardian, *children_of(guardian))]
    assert again.stop(signal.SIGTERM) == 0
    assert not [pid for pid in below if Path(f"/proc/{pid}").exists()]


def test_nothing_is_left_of_a_killed_worker(wild: System) -> None:
    worker = wild.start_worker("pooled")
    mark, job_id = start_programs(wild, "sessions", 3, "pooled")
    below = [pid for guardian in worker.guardians for pid in (guardian, *children_of(guardian))]
    worker.stop(signal.SIGKILL)
    poll(lambda: not programs(mark), 20, "no program is left")
    poll(lambda: not [pid for pid in below if Path(f"/proc/{pid}").exists()], 20, "no process is left")
    cancel(wild, worker, job_id)


def test_a_plugin_may_change_folder_environment_signals_and_streams(wild: System) -> None:
    # given the private Redis, whose folder is found from the current one
    redis = wild.start_without_redis("worker.cli.main", "redis")
    poll(lambda: (wild.folder / ".services" / "redis" / "redis.sock").exists(), 30, "the private Redis runs")
    worker = wild.start_without_redis("celery", "-A", "worker", "worker", "-Q", "moved")
    poll(lambda: "service ready name=moved" in worker.output, 60, "it is ready")

    sent = wild.start_without_redis("tests.kit.send", "moved", '{"do": "nothing"}', '{"do": "break_surroundings"}')

    assert sent.wait(60) == 0, sent.output + worker.output
    assert worker.output.count("job succeeded") == 2
    assert worker.stop() == 0
    redis.stop()


def test_a_load_that_raises_no_exception_tells_its_reason_on_one_line(wild: System) -> None:
    worker = wild.start_worker("unloadable", wait=False)
    assert worker.wait(60) == 1
    reason = "service unloadable cannot be loaded, so its worker stops: Panic: two lines"
    assert len([line for line in worker.output.splitlines() if line.endswith(reason)]) == 1


def end_of(system: System, job_id: str) -> Any:
    with system.client() as client:
        return client.get(f"/jobs/{job_id}").json()["status"]
