"""What it takes and gives. The API imports this module to validate: pydantic and nothing heavier."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Input(BaseModel):
    """One text. Replace the fields by yours, and the examples by valid inputs: `services check` runs them."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"text": "what a lovely day"}, {"text": "an awful one"}]},
    )

    text: str = Field(min_length=1, max_length=10_000, description="In English")


class Output(BaseModel):
    """Its mood."""

    score: float = Field(ge=-1, le=1, description="From -1, sad, to 1, happy")
