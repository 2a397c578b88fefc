"""Recorded data that lies beside the checkout, read in place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kit.system import ROOT


def data_folder() -> Path:
    """The data folder; skips where it is absent, and fails there in CI."""
    folder = Path(os.environ.get("SERVICES_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        message = f"no data in {folder}; set SERVICES_TEST_DATA"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder
