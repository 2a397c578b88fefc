"""Files over HTTP: send them."""

from __future__ import annotations

from typing import Any

from tests.kit.system import System


def send(system: System, input: dict[str, Any]) -> str:
    """Have a job sent by a program that has Celery alone; its id."""
    send = f"app.send_task('turning.predict', args=[{input!r}], queue='turning')"
    sent = system.start("tests.kit.run_code", f"from worker.celery import app\nprint({send}.id)")
    assert sent.wait(30) == 0, sent.output
    return sent.output.strip()
