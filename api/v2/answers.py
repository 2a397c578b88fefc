"""The answers of ``/v2`` as models.

Sources: the Open Inference Protocol (KServe's ``required_api.md``), and Triton's extensions ``model_configuration``,
``statistics`` and ``model_repository``.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from api.operations import Answer
from api.problems import TITLES
from api.v2.tensors import Datatype

Shape = list[int]

#: Descriptions of the answers of errors, by status.
MEANINGS = TITLES | {
    400: "The request does not fit the model, or the model's worker refused a row",
    404: "No such model or version",
    413: "The body is too large",
    415: "The body's Content-Encoding is neither gzip nor deflate",
    429: "The queue is full; none of the rows is run",
    500: "A row failed: its error, as its job has it",
    503: "Redis is away, the model's schema is broken, or the model is not ready",
    504: "The rows have not ended within the wait or the timeout; `Location` is the first one's job",
}


class InferError(Answer):
    """An error: in this protocol it is a text alone."""

    error: str


class ServerMetadata(Answer):
    """The server and the extensions of the protocol that it has."""

    name: str
    version: str
    extensions: list[str]


class Live(Answer):
    """Whether the process lives."""

    live: bool


class Ready(Answer):
    """Whether the server can accept requests."""

    ready: bool
    live: bool


class TensorMetadata(Answer):
    """A tensor of a model; -1 in its shape: any length."""

    name: str
    datatype: Datatype
    shape: Shape
    parameters: dict[str, Any] = Field(default={})


class ModelMetadata(Answer):
    """A model's inputs and outputs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(Answer):
    """A model with a worker that is ready."""

    name: str
    ready: bool


class IndexRow(Answer):
    """A model of the repository and its state."""

    name: str
    version: str
    state: str
    reason: str


class TensorConfig(Answer):
    """A tensor in a model's configuration."""

    name: str
    data_type: str
    dims: Shape
    optional: bool = False


class ModelConfig(Answer):
    """A model's configuration."""

    name: str
    platform: str
    backend: str
    version_policy: dict[str, Any]
    max_batch_size: Annotated[int, Field(description="always 0: the rows are the first of a tensor's dims")]
    input: list[TensorConfig]
    output: list[TensorConfig]
    parameters: Annotated[dict[str, Any], Field(description="the service's knobs, once a worker has run")]


class ModelStats(Answer):
    """A model's statistics: counts since ever."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: Annotated[dict[str, Any], Field(description="counts; every `ns` is 0")]
    batch_stats: list[Any]
    memory_usage: list[Any]
    response_stats: dict[str, Any]


class StatsList(Answer):
    """The statistics of models."""

    model_stats: list[ModelStats]


class ResponseParameters(Answer):
    """Data about a response beside its tensors."""

    job_id: Annotated[str, Field(description="of a request of one row")]


class OutputParameters(Answer):
    """The form of a tensor that is sent in binary."""

    binary_data_size: Annotated[int, Field(description="bytes of it behind the JSON")]


class ResponseTensor(Answer):
    """A tensor of a response."""

    name: str
    datatype: Datatype
    shape: Shape
    parameters: OutputParameters | None = None
    data: Annotated[list[Any], Field(default=[], description="in row-major order")]


class InferResponse(Answer):
    """The outputs of the rows, joined; ``api.v2.routes`` writes it."""

    model_name: str
    model_version: str
    id: str = ""
    parameters: ResponseParameters | None = None
    outputs: list[ResponseTensor]
