"""Sources of small plugins."""

from __future__ import annotations

SCHEMA = """
from pydantic import BaseModel

class Input(BaseModel):
    model_config = {"json_schema_extra": {"examples": [{"n": 2}]}}
    n: int

class Output(BaseModel):
    n: int
"""
