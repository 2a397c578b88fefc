"""A batch that was claimed ahead belongs to one of two processes: to the one that takes it first."""

from __future__ import annotations

import subprocess
import sys

from worker.ledger.worker_commands import Batch, ClaimedJob
from worker.pool.feeder import RunTimes
from worker.pool.shared_memory import Handover

TAKE = "import sys; from worker.pool.shared_memory import Handover\n"
TAKE += "print(Handover(int(sys.argv[1])).take(int(sys.argv[2])))"


def take_elsewhere(fd: int, number: int) -> bool:
    """As another process."""
    command = [sys.executable, "-c", TAKE, str(fd), str(number)]
    return subprocess.run(command, pass_fds=[fd], capture_output=True, text=True, check=True).stdout.strip() == "True"


def test_a_batch_is_taken_once() -> None:
    handover = Handover()
    assert handover.take(0)
    assert not take_elsewhere(handover.fd, 0)
    assert take_elsewhere(handover.fd, 3), "not every batch is claimed ahead"
    assert not handover.take(3, wait=False)
    assert handover.take(4)
    handover.close()
    handover.close()


def batch(rows: int = 0) -> Batch:
    held = ClaimedJob("a", 1, b"\n".join([b"{}"] * max(1, rows)), 0 if rows else None)
    return Batch("echo", "w", "p.0", [held], more=True, number=0, claimed=0)


def test_a_run_is_expected_to_take_as_long_as_the_last_ones_did() -> None:
    times = RunTimes()
    assert times.expect(batch()) is None
    times.add(batch(), 0.1)
    assert times.expect(batch()) == 0.1
    assert times.expect(batch(rows=10)) is None, "a row of a batch is another thing"
    times.add(batch(), 0.5)
    assert times.expect(batch()) == 0.2
    times.add(batch(rows=10), 0.1)
    assert times.expect(batch(rows=100)) == 1
