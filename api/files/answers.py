"""The answer about a file as a model. It describes what ``worker.filestore.storage.FileRecord.describe`` returns."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from api.operations import Answer, Time


class FileLinks(Answer):
    """Addresses of a file."""

    self: str
    content: str
    download: Annotated[str, Field(description="opens the content without an API key, for a limited time")]


class File(Answer):
    """A stored file."""

    id: Annotated[str, Field(json_schema_extra={"pattern": "^[0-9a-f]{64}$"})]
    name: Annotated[str | None, Field(description="that it was sent with last; null where with none")]
    size: Annotated[int, Field(ge=1)]
    content_type: str
    sha256: Annotated[str, Field(description="the same as its id")]
    created_at: Time
    expires_at: Time
    links: FileLinks
