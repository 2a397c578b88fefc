"""For the tests of plugins: a service run inline, without Redis, and the errors that its inputs may get."""

from __future__ import annotations

from libs_service.names import ours_first

with ours_first("worker"):
    from worker.errors import InvalidInput, InvalidOutput, PredictFailed, ServicesError
    from worker.testing import run_inline

__all__ = ["InvalidInput", "InvalidOutput", "PredictFailed", "ServicesError", "run_inline"]
