"""The input and the output of ``embed``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

#: Numbers of one embedding.
DIMENSIONS = 384


class Input(BaseModel):
    """One text."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"text": "hello world"}, {"text": "How do I reset my password?"}]},
    )

    text: str = Field(min_length=1, max_length=100_000, description="In English; what is over 256 tokens is cut off.")


class Output(BaseModel):
    """Its embedding. Texts alike in meaning have a large dot product (at most 1)."""

    embedding: list[float] = Field(
        description=f"{DIMENSIONS} numbers, of length 1 together (L2)",
        json_schema_extra={"datatype": "FP32"},  # by the Open Inference Protocol; the model computes no finer
    )
    tokens: int = Field(description="Tokens of the text that were read, with the two that mark its begin and end")
    truncated: bool = Field(description="Whether the text was longer and its end was cut off")
    model_version: str
