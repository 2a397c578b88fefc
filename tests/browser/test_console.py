"""The console in a real browser, before one running stack: every test takes it as the one before has left it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

from tests.kit.services import write_echo
from tests.kit.system import System, finished, free_port, poll, running_system, status_of

pytestmark = [pytest.mark.timeout(60), pytest.mark.needs("chromium")]


#: The API behind a key, as a proxy may put it.
GUARDED = """
from api import app as api
from api.problems import problem

PATHS = ("/services", "/jobs", "/batches")

async def app(scope, receive, send):
    given = dict(scope.get("headers", ())).get(b"authorization")
    if scope["type"] == "http" and scope["path"].startswith(PATHS) and given != b"Bearer good-key":
        await problem(401, "unauthorized", "An API key is needed")(scope, receive, send)
    else:
        await api(scope, receive, send)
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """The API and a worker of ``echo``; ``idle`` has no worker."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "heavy_model_library.py").write_text("")
    write_echo(folder, "echo", "time_limit_s = 30")
    write_echo(folder, "idle")
    with running_system(tmp_path_factory.mktemp("browser"), folder) as made:
        made.start_api()
        made.start_worker("echo")
        yield made


class Console:
    """The page as its user sees it."""

    def __init__(self, driver: webdriver.Chrome, folder: Path) -> None:
        self.driver = driver
        self._folder = folder

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return str(self.driver.execute_script("return document.querySelector(arguments[0])?.innerText || ''", selector))

    def sees(self, selector: str, *texts: str) -> None:
        """Wait until an element has all these texts."""
        poll(lambda: all(text in self.text(selector) for text in texts), 10, f"{selector} shows {texts}")

    def choose(self, selector: str, text: str) -> None:
        Select(self.one(selector)).select_by_visible_text(text)

    def submit(self, input: str, service: str = "echo") -> None:
        self.choose("#try-service", service)
        area = self.one("#try-input")
        area.clear()
        area.send_keys(input)
        self.one("#try-submit").click()

    def job_id(self) -> str:
        """The id of the job that was submitted last."""
        return self.one("#try-result .id").text

    def rows(self) -> list[str]:
        """The list's jobs."""
        script = "return [...document.querySelectorAll('#jobs tbody tr')].map((row) => row.innerText)"
        return list(self.driver.execute_script(script))

    def save_results(self, batch_id: str) -> list[Any]:
        """What the batch's link saves."""
        self.one("#job .results").click()
        saved = self._folder / f"batch-{batch_id}.ndjson"
        poll(saved.exists, what="the results are saved")
        return [json.loads(line) for line in saved.read_text().splitlines()]

    def shoot(self, name: str) -> None:
        self.driver.save_screenshot(str(self._folder / f"{name}.png"))


@pytest.fixture(scope="module")
def console(stack: System) -> Iterator[Console]:
    options = webdriver.ChromeOptions()
    for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"):
        options.add_argument(option)
    options.add_argument("--window-size=1280,1400")
    options.add_experimental_option("prefs", {"download.default_directory": str(stack.folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # Named, or selenium asks the internet for one.
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.get(f"{stack.url}/")
        yield Console(driver, stack.folder)
    finally:
        driver.quit()


def test_it_shows_the_services_and_runs_the_example(stack: System, console: Console) -> None:
    console.sees("[data-key=echo]", "ready", "1", "Knobs")
    console.sees("[data-key=idle]", "no workers")
    poll(lambda: console.one("#try-input").get_property("value") == '{\n  "n": 1\n}', what="the example is in the form")

    console.one("#try-submit").click()

    console.sees("#try-result", "queued\nrunning\nsucceeded", "Output", '"n": 1', "predict")
    poll(lambda: any(console.job_id() in row and "succeeded" in row for row in console.rows()), what="it is listed")


def test_a_job_is_seen_to_run_is_cancelled_and_run_again(stack: System, console: Console) -> None:
    console.submit('{"n": 2, "sleep_s": 2}')
    poll(lambda: console.text("#try-result .now") == "running", what="it is seen to run")
    console.one("#try-result .cancel").click()
    console.sees("#try-result .now", "cancelled")
    console.one("#try-result .retry").click()
    poll(lambda: console.text("#try-result .now") in ("queued", "running"), what="it is seen to be run again")
    console.one("#try-result .cancel").click()
    console.sees("#try-result .now", "cancelled")


def test_a_queued_job_says_about_when_it_starts(console: Console) -> None:
    console.submit('{"n": 3}')
    console.sees("#try-result .now", "succeeded")  # so the time of a run is measured
    console.submit('{"n": 4, "sleep_s": 2}')
    poll(lambda: console.text("#try-result .now") == "running", what="it is seen to run")
    console.submit('{"n": 5}')
    console.sees("#try-result .steps", "queued (starts about ")
    console.sees("#try-result .now", "succeeded")
    console.sees("#try-result .steps", "queued\nrunning\nsucceeded")


def test_errors_are_shown_beside_their_fields(console: Console) -> None:
    console.submit("{oops")
    console.sees("#try-errors", "This is no JSON")
    console.submit('{"n": "many"}')
    console.sees("#try-errors", "input.n", "valid integer")
    assert console.one("#try-input").get_attribute("aria-invalid") == "true"


def test_the_list_is_filtered_and_a_failed_job_is_opened(stack: System, console: Console) -> None:
    # A number that JavaScript cannot hold, and a text that would be markup.
    console.submit('{"n": 12345678901234567890, "do": "raise", "device": null}')
    console.sees("#try-result", "failed", "predict_failed", "bad one")
    job_id = console.job_id()

    console.choose("#filter-status", "failed")
    poll(lambda: len(console.rows()) == 1 and job_id in console.rows()[0], what="only the failed one is listed")
    console.choose("#filter-service", "idle")
    console.sees("#jobs-none", "No job.")
    console.choose("#filter-service", "all")
    poll(lambda: len(console.rows()) == 1, what="it is listed again")

    console.one("#jobs tbody button").click()
    console.sees("#job[open]", job_id, "12345678901234567890", "Attempts", "ValueError: bad one", "predict_failed")
    console.shoot("job")
    console.one("#job-close").click()
    assert not console.all("#job[open]")


def test_pages_go_back_in_time_and_forth(stack: System, console: Console) -> None:
    with stack.client() as client:
        body = {"service": "idle", "input": {"n": 1}}
        for _ in range(25):
            client.post("/jobs", json=body).raise_for_status()
    console.choose("#filter-status", "all")
    console.choose("#filter-service", "idle")
    poll(lambda: len(console.rows()) == 20, what="a whole page")
    newest = console.rows()
    console.one("#older").click()
    poll(lambda: len(console.rows()) == 5, what="the older ones")
    assert not set(newest) & set(console.rows())
    console.one("#newest").click()
    poll(lambda: console.rows() == newest, what="the newest again")
    console.sees("[data-key=idle]", "25")


def test_where_a_key_is_needed_it_is_asked_for(stack: System, console: Console) -> None:
    (stack.folder / "guarded.py").write_text(GUARDED)
    port = free_port()
    stack.start("uvicorn", "guarded:app", "--port", str(port), PYTHONPATH=f"{stack.folder}:{stack.env['PYTHONPATH']}")
    poll(lambda: status_of(f"http://127.0.0.1:{port}/") == 200, what="the guarded API is up")
    console.driver.get(f"http://127.0.0.1:{port}/")
    console.sees("#problem", "An API key is needed")
    poll(lambda: console.driver.switch_to.active_element.get_attribute("id") == "key", what="the field has the focus")
    assert not console.all("#services li")

    console.driver.switch_to.active_element.send_keys("wrong-key", Keys.ENTER)
    console.sees("#key-button", "API key: refused")
    console.driver.switch_to.active_element.send_keys("good-key", Keys.ENTER)

    console.sees("#key-button", "API key: set")
    console.sees("[data-key=echo]", "ready")
    assert not console.one("#problem").is_displayed() and not console.one("#key-form").is_displayed()

    with stack.client() as client:
        batch = client.post("/batches", json={"service": "echo", "inputs": [{"n": 7}]}).raise_for_status().json()
    console.driver.get(f"http://127.0.0.1:{port}/#batches/{batch['id']}")
    console.sees("#job .badge", "succeeded")
    assert [line["output"]["n"] for line in console.save_results(batch["id"])] == [7], "the key goes along"
    console.driver.get(f"{stack.url}/")


def test_while_the_api_is_down_no_service_is_shown_as_ready(stack: System, console: Console) -> None:
    port = free_port()
    other = stack.start("uvicorn", "api:app", "--port", str(port), name="other", FLOWER_PORT="18472")
    poll(lambda: status_of(f"http://127.0.0.1:{port}/healthz") == 200, what="the other API is up")
    console.driver.get(f"http://127.0.0.1:{port}/")
    console.sees("[data-key=echo]", "ready")
    assert (console.one("#flower").get_attribute("href") or "").startswith("http://127.0.0.1:18472")

    other.stop()

    console.sees("[data-key=echo]", "unknown")
    console.sees("#problem", "The API does not answer")
    console.driver.get(f"{stack.url}/")


def test_the_error_of_an_attempt_is_not_cut_off(stack: System, console: Console) -> None:
    with stack.client() as client:
        job = client.post("/jobs", json={"service": "echo", "input": {"n": 8, "do": "raise"}}).json()
        assert finished(client, job["id"])["status"] == "failed"
    console.driver.get(f"{stack.url}/#jobs/{job['id']}")
    console.sees("#job table", "bad one")
    cut = "const table = document.querySelector('#job .scroll'); return table.scrollWidth - table.clientWidth"
    assert console.driver.execute_script(cut) <= 1
    console.driver.get(f"{stack.url}/")


def test_markup_in_a_job_is_a_text(stack: System, console: Console) -> None:
    evil = "<img src=x onerror=document.title='hacked'>"
    with stack.client() as client:
        sent = client.post("/jobs", json={"service": "echo", "input": {"n": 1}, "metadata": {"name": evil}}).json()
        finished(client, sent["id"])
    console.driver.get(f"{stack.url}/#jobs/{sent['id']}")
    console.sees("#job[open]", evil)
    assert console.driver.title == "libs-service"
    assert not console.all("main img, dialog img")
    console.one("#job-close").click()


def test_a_batch_is_followed_by_its_address_and_its_failed_rows_run_again(stack: System, console: Console) -> None:
    with stack.client() as client:
        rows = [{"n": 1, "sleep_s": 0.5}, {"n": 2, "do": "raise"}]
        batch = client.post("/batches", json={"service": "echo", "inputs": rows}).raise_for_status().json()
        console.driver.get(f"{stack.url}/#batches/{batch['id']}")
        console.sees("#job[open]", "Batch", batch["id"], "running")
        console.sees("#job .badge", "failed")
        assert [dd.text for dd in console.all("#job .counts dd")] == ["2", "0", "0", "1", "1", "0"]
        console.shoot("batch")
        first, second = console.save_results(batch["id"])
        assert (first["index"], first["output"]["n"]) == (0, 1) and second["error"]["code"] == "predict_failed"
        console.one("#job .retry").click()
        poll(lambda: "succeeded\n1" in console.text("#job .counts"), what="its counts stay")
        poll(lambda: client.get(f"/batches/{batch['id']}").json()["finished_at"], what="it ended again")
        console.sees("#job .badge", "failed")
    console.one("#job-close").click()


def test_a_key_is_sent_and_the_page_has_broken_no_rule(console: Console) -> None:
    console.one("#key-button").click()
    console.one("#key").send_keys("secret-1")
    console.one("#key-form .main").click()
    sent = "return sessionStorage.getItem('services-api-key')"
    assert console.driver.execute_script(sent) == "secret-1"
    console.sees("#key-button", "API key: set")
    # The refused requests of the tests above aside; the Content-Security-Policy would be told of here.
    severe = [line["message"] for line in console.driver.get_log("browser") if line["level"] == "SEVERE"]
    known = ("status of 422", "status of 401", "ERR_CONNECTION_REFUSED")
    assert [line for line in severe if not any(text in line for text in known)] == []
