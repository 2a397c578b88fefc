"""The routes of ``/v2`` for the OpenAPI document, and the decorator of a route about a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter

from api.operations import STRING, Schema, SchemaOrModel, answer, describe, in_path
from api.v2.answers import MEANINGS, InferError

Handler = TypeVar("Handler", bound=Callable[..., Any])


def describe_v2(name: str, summary: str, model: SchemaOrModel, *statuses: int, **more: Any) -> Schema:
    """An operation of ``/v2``; see ``describe``, but its errors are texts.

    Args:
        model: of the answer; or a whole answer.
    """
    described = model if isinstance(model, dict) and "content" in model else answer(model, "The answer")
    errors = {status: answer(InferError, MEANINGS[status]) for status in statuses}
    return describe(summary, {200: described, **errors}, name=name, **more)


def model_route(
    router: APIRouter,
    method: str,
    path: str,
    name: str,
    summary: str,
    model: SchemaOrModel,
    *statuses: int,
    parameters: tuple[Schema, ...] = (),
    **more: Any,
) -> Callable[[Handler], Handler]:
    """Add a handler at ``/v2/models/{name}<path>``, and at the same for a version; the arguments of ``describe_v2``."""

    def add(handler: Handler) -> Handler:
        for version, suffix in ((), ""), ((in_path("version", STRING),), "_version"):
            start = "/v2/models/{name}" + ("/versions/{version}" if version else "")
            at = (in_path("name", STRING), *version, *parameters)
            operation = describe_v2(f"{name}{suffix}", summary, model, *statuses, parameters=at, **more)
            router.add_api_route(
                f"{start}{path}",
                handler,
                methods=[method],
                openapi_extra=operation,
                response_model_exclude_unset=True,
            )
        return handler

    return add
