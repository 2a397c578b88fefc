"""``services bench`` on a real plugin, and the rules by which it judges."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.system import ROOT, environment_without_ours, write_plugin
from worker.cli.bench import Plan, Point, choose, propose
from worker.cli.load import Window, is_stable, read_job
from worker.cli.main import main
from worker.errors import BenchFailed

SCHEMA = """
from pydantic import BaseModel

class Input(BaseModel):
    model_config = {"json_schema_extra": {"examples": [{"n": 2}]}}
    n: int

class Output(BaseModel):
    n: int
"""
SERVICE = """
import time
from worker.service import Service
from sleeper.schema import Input, Output

class Plugin(Service[Input, Output]):
    def load(self):
        if self.max_batch_size == 7:
            raise RuntimeError("no weights for seven")

    def predict_batch(self, batch):
        time.sleep(0.02)
        return [{"n": item.n * 2} for item in batch]
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_plugin(tmp_path_factory.mktemp("plugins"), "sleeper", SCHEMA, SERVICE)
    return write_plugin(folder, "bare", SCHEMA.replace("examples", "samples"), SERVICE.replace("sleeper", "bare"))


def bench(plugins: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(plugins), str(ROOT)])
    command = [sys.executable, "-c", "from worker.cli.main import main; main()", "bench", *arguments]
    env = environment_without_ours() | {"PYTHONPATH": path, "REDIS_URL": "redis://127.0.0.1:1"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=110)


def test_a_sweep_measures_every_point_and_proposes_the_batch_that_pays(plugins: Path, tmp_path: Path) -> None:
    given = ["--batch-sizes", "1,8", "--clients", "1,8", "--window-s", "0.3", "--budget-ms", "2000"]
    done = bench(plugins, tmp_path, "sleeper", *given)
    assert done.returncode == 0, done.stderr

    rows = [line.split() for line in done.stdout.splitlines() if re.match(r" +\d", line) and "=" not in line]
    assert [(row[0], row[1], row[2]) for row in rows[:3]] == [("1", "0", "1"), ("1", "0", "8"), ("8", "0", "8")]
    assert float(rows[2][3].replace(",", "")) > 2 * float(rows[1][3])  # 20 ms a call, however many jobs
    assert float(rows[1][7]) == 1 and float(rows[2][7]) > 1  # the mean batch

    assert re.search(r"^Within p99 <= 2000 ms \(.* at 8 client\(s\)", done.stdout, re.M)
    assert "    max_batch_size = 8\n    max_queue_delay_ms = " in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == [".services"], "nothing lies about"
    written = [path.name for path in (tmp_path / ".services" / "bench").iterdir()]
    assert written in (["sleeper.svg"], ["sleeper.csv"])


def test_a_plugin_that_cannot_be_loaded_is_named_with_its_reason(plugins: Path, tmp_path: Path) -> None:
    done = bench(plugins, tmp_path, "sleeper", "--batch-sizes", "7")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ") and "no weights for seven" in done.stderr.splitlines()[-1]


def test_without_an_example_an_input_is_asked_for(plugins: Path, tmp_path: Path) -> None:
    done = bench(plugins, tmp_path, "bare")
    assert done.returncode == 1
    assert (
        done.stderr == "Error: bare has no example; give an input: services bench bare --input JSON (or FILE, or -)\n"
    )


@pytest.mark.parametrize("given", [["--clients", "0"], ["--batch-sizes", "1,x"], ["--budget-ms", "nan"]])
def test_numbers_that_cannot_be_are_refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "sleeper", *given])
    assert ended.value.code == 2
    assert f"'{given[0]}': expected" in capsys.readouterr().err


def window(jobs_s: float, mean_ms: float) -> Window:
    return Window(1.0, [mean_ms] * int(jobs_s), [1])


def test_the_last_three_windows_within_ten_per_cent_are_stable() -> None:
    noisy, even = window(50, 10), [window(100, 10), window(109, 10), window(105, 10.9)]
    assert is_stable([noisy, *even])
    assert not is_stable([*even, noisy])
    assert not is_stable(even[:2])
    assert not is_stable([*even[:2], window(105, 11.5)])


def point(max_batch_size: int, clients: int, jobs_s: float, p99_ms: float, delay_ms: float = 0) -> Point:
    return Point(max_batch_size, delay_ms, clients, jobs_s, p99_ms / 2, p99_ms / 1.1, p99_ms, 1, 3, True, 0.1)


def test_the_fastest_within_the_budget_is_proposed_and_of_equals_the_smallest_knobs() -> None:
    plan = Plan((1, 8, 64), (64,), 1, budget_ms=50, percentile="p99")
    points = [point(1, 1, 100, 10), point(8, 64, 960, 45), point(64, 64, 1000, 40), point(64, 128, 2000, 90)]
    assert choose(points, plan) == points[1]
    assert choose([*points, point(64, 64, 1200, 45, delay_ms=5)], plan).max_queue_delay_ms == 5
    assert "    max_batch_size = 8\n    max_queue_delay_ms = 0\n" in propose(points, plan)

    nowhere = Plan((1,), (1,), 1, budget_ms=5, percentile="p99")
    assert propose(points, nowhere).startswith("No measurement is within p99 <= 5 ms. The least latency (100 jobs/s")


@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (422, {"detail": "no", "errors": [{"loc": ["input", "n"], "msg": "too small"}]}, "input.n: too small"),
        (413, {"detail": "too large"}, "a job was refused \\(413\\): too large"),
        (202, {"status": "running"}, "did not end within 60 s"),
        (
            200,
            {"status": "failed", "error": {"code": "predict_failed", "message": "ValueError"}},
            "predict_failed: Val",
        ),
    ],
)
def test_a_job_without_an_output_ends_the_measurement_with_its_reason(status: int, answer: object, said: str) -> None:
    with pytest.raises(BenchFailed, match=said):
        read_job(status, json.dumps(answer).encode())
