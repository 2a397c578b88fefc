"""``python -m tests.kit.send SERVICE INPUT…``: sends jobs by Celery and waits for each."""

from __future__ import annotations

import json
import sys

from worker.celery import app

for text in sys.argv[2:]:
    sent = app.send_task(f"{sys.argv[1]}.predict", args=[json.loads(text)], queue=sys.argv[1])
    print(sent.get(timeout=40))
