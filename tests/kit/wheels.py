"""A plugin whose wheel is built in tests."""

from __future__ import annotations

SCHEMA = """
from pydantic import BaseModel

class Input(BaseModel):
    model_config = {"json_schema_extra": {"examples": [{"n": 2}]}}
    n: int

class Output(BaseModel):
    n: float
"""


SERVICE = """
import sqlite3
from pathlib import Path
from libs_service import Service
from NAME.schema import Input, Output

HERE = Path(__file__).parent

class Plugin(Service[Input, Output]):
    max_batch_size = 2

    def load(self):
        LOAD

    def predict(self, item):
        return {"n": item.n}
"""
