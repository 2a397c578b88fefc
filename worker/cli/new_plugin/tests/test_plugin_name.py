"""The service as a worker runs it, without Redis."""

from __future__ import annotations

import pytest
from libs_service.testing import InvalidInput, run_inline
from plugin_name.service import PluginName


@pytest.fixture(scope="module")
def service() -> PluginName:
    made = PluginName()
    made.load()
    made.warmup()
    return made


def test_inputs_get_their_own_outputs_in_order(service: PluginName) -> None:
    texts = ["what a lovely day", "an awful one", "a day"]
    outputs = run_inline(service, [{"text": text} for text in texts])
    assert [output["score"] for output in outputs] == [1.0, -1.0, 0.0]


def test_a_bad_input_fails_alone(service: PluginName) -> None:
    good, bad = run_inline(service, [{"text": "lovely"}, {"text": ""}])
    assert good == {"score": 1.0}
    assert isinstance(bad, InvalidInput)
