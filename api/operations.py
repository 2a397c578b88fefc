"""Each route describes itself for the OpenAPI document: ``@router.get(path, openapi_extra=describe(...))``.

A description is an operation of OpenAPI 3.1 in which a pydantic model stands where the document will have a reference
to its schema; ``api.openapi.document`` collects all operations and models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from api import problems

Schema = dict[str, Any]
#: A pydantic model, or a schema in which models may stand.
SchemaOrModel: TypeAlias = type[BaseModel] | Schema

JSON, PROBLEM_JSON, NDJSON, OCTETS = (
    *("application/json", problems.MEDIA_TYPE),
    *("application/x-ndjson", "application/octet-stream"),
)
STRING: Schema = {"type": "string"}


def tidy(schema: Schema) -> None:
    """Change a model's schema so that generators of clients write better code from it.

    They name classes by titles, so members have none; a member that may be null has two types, instead of being one of
    two schemas; and a default is named in words, because openapi-typescript demands each member that has a default.
    """
    for name, member in schema.get("properties", {}).items():
        member.pop("title", None)
        kinds = member.get("anyOf", [])
        if len(kinds) == 2 and kinds[1] == {"type": "null"} and "type" in kinds[0] and "enum" not in kinds[0]:
            del member["anyOf"]
            member |= {**kinds[0], "type": [kinds[0]["type"], "null"]}
        schema["properties"][name] = default_in_words(member if member.get("default") else _without_default(member))


def default_in_words(member: Any) -> Any:
    """A member's schema whose description names its default."""
    if not isinstance(member, dict):  # true or false is a schema too
        return member
    default = member.get("default")
    worded = _without_default(member)
    if default is not None:
        text = f"default: {to_json(default).decode()}"
        worded["description"] = "; ".join(filter(None, [worded.get("description"), text]))
    return worded


def _without_default(member: Schema) -> Schema:
    return {name: value for name, value in member.items() if name != "default"}


class Answer(BaseModel):
    """Base of the models that describe answers. A member without a default is in every answer."""

    model_config = ConfigDict(json_schema_extra=tidy)


Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Count = Annotated[int, Field(ge=0)]


def one_of(values: Iterable[str]) -> Schema:
    """The schema of a string that is one of these. Generators of clients need the type beside the values."""
    return {"type": "string", "enum": [str(value) for value in values]}


def choice(values: Iterable[str]) -> Any:
    """The field of a string that is one of these."""
    return Field(json_schema_extra=one_of(values))


class FieldError(Answer):
    """One wrong field: its place, the reason, and pydantic's name of the error."""

    loc: list[str | int]
    msg: str
    type: str


class Problem(Answer):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldError] = Field(default=[])
    services: Annotated[list[str], Field(default=[], description="the installed services; of `unknown_service` alone")]


def describe(
    summary: str,
    answers: Mapping[int, Schema],
    *statuses: int,
    parameters: Sequence[Schema] = (),
    body: Schema | None = None,
    name: str = "",
) -> Schema:
    """An operation.

    Args:
        answers: the answers that are no errors, by status (see ``answer``).
        statuses: of the errors, which are problem documents.
        name: the ``operationId``; by default the handler's name.
    """
    responses = {**{str(status): given for status, given in answers.items()}, **describe_problems(statuses)}
    operation: Schema = {"summary": summary, "parameters": list(parameters), "responses": responses}
    return operation | ({"requestBody": body} if body else {}) | ({"operationId": name} if name else {})


def answer(model: SchemaOrModel, description: str, *headers: Schema, media_types: Sequence[str] = (JSON,)) -> Schema:
    """An answer with a body."""
    content = {media_type: {"schema": model} for media_type in media_types}
    described: Schema = {"description": description, "content": content}
    return described | (
        {"headers": {name: form for header in headers for name, form in header.items()}} if headers else {}
    )


def header(name: str, description: str = "") -> Schema:
    """A header of an answer."""
    return {name: {"schema": STRING} | ({"description": description} if description else {})}


def describe_problems(statuses: Iterable[int]) -> Schema:
    """The problem documents of these statuses, each with the error codes that it may bear."""
    described: Schema = {}
    for status in statuses:
        codes = ", ".join(f"`{code}`" for code in problems.CODES[status])
        given = [header("Retry-After", "seconds")] if status in (429, 503) else []
        given += [header("WWW-Authenticate", "`Bearer`")] if status == 401 else []
        text = f"{problems.TITLES[status]}: {codes}"
        described[str(status)] = answer(Problem, text, *given, media_types=[PROBLEM_JSON])
    return described


def json_body(model: SchemaOrModel, **further: Schema) -> Schema:
    """A body in JSON; ``further``: of other media types, their descriptions."""
    return {"required": True, "content": {JSON: {"schema": model}, **further}}


def in_path(name: str, schema: Schema = STRING, description: str = "") -> Schema:
    """A parameter that is a part of the path."""
    parameter = {"name": name, "in": "path", "required": True, "schema": schema}
    return parameter | ({"description": description} if description else {})


def in_query(name: str, schema: Schema, description: str) -> Schema:
    """A parameter after the question mark."""
    return {"name": name, "in": "query", "schema": schema, "description": description}


def in_header(name: str, schema: Schema, description: str) -> Schema:
    """A header of the request."""
    return {"name": name, "in": "header", "schema": schema, "description": description}
