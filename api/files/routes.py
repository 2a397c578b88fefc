"""The routes of files: large and binary inputs and outputs."""

from __future__ import annotations

import hmac
import logging
import re
import time
from collections.abc import Mapping
from contextlib import suppress

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic_core import to_json
from starlette.requests import ClientDisconnect

from api.auth.gate import caller_of
from api.files.answers import File
from api.files.dispositions import write_attachment
from api.files.uploads import Upload
from api.operations import OCTETS, STRING, answer, describe, header, in_header, in_path, in_query
from api.problems import LinkInvalid, RangeNotSatisfiable
from api.requests import check_query, describe_keep_for, invalid_query, read_nothing, read_seconds
from api.state import State, state_of
from worker.errors import ServicesError
from worker.filestore.storage import FileRecord
from worker.settings import Settings

log = logging.getLogger("services.api")
router = APIRouter()

#: One range of bytes (RFC 9110); a request for several ranges, or for other units, gets the whole file.
RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
SIGNATURE = re.compile(r"[0-9a-f]{64}")
#: The uploader declares a file's type, so no browser may run it as a page of this server.
HARMLESS = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox; default-src 'none'"}

PATH = [in_path("file_id")]
BYTES = {"type": "string", "format": "binary", "contentMediaType": OCTETS}
FORM = {
    "schema": {"type": "object", "properties": {"file": BYTES}, "required": ["file"]},
    "encoding": {"file": {"contentType": "*/*"}},
}
LOCATION = header("Location", "the file's address")
NAME = "its name, where the body is the file itself: `attachment; filename*=UTF-8''photo.jpg`"


@router.post(
    "/files",
    openapi_extra=describe(
        "Store a file",
        {
            200: answer(File, "The file, which this API key had already, and which lives longer now", LOCATION),
            201: answer(File, "The file, stored", LOCATION),
        },
        *(408, 413, 415, 422, 503),
        parameters=[
            in_query("keep_for_s", describe_keep_for(null=False), "seconds that it is kept"),
            in_header("Content-Disposition", STRING, NAME),
        ],
        body={"required": True, "content": {OCTETS: {"schema": BYTES}, "multipart/form-data": FORM}},
    ),
)
async def create_file(request: Request) -> Response:
    """Store the body, or the one file of a form, while it arrives."""
    state = state_of(request)
    keep_for_s = _read_keep_for(check_query(request, {"keep_for_s"}), state.settings)
    upload = Upload(request, state.settings)
    owner = caller_of(request).owner
    try:
        record, is_new = await state.files.store(upload.pieces(), upload.describe, keep_for_s, owner)
    except ClientDisconnect:
        log.info("an upload broke off and was removed")
        return Response(status_code=400)  # the client has left
    except ServicesError:
        with suppress(ClientDisconnect):
            await upload.drain()
        raise
    log.info("file %s id=%s bytes=%d", "stored" if is_new else "known", record.id, record.size)
    headers = {"Location": f"/files/{record.id}"}
    return Response(await _describe(state, record), 201 if is_new else 200, headers, "application/json")


@router.get(
    "/files/{file_id}",
    openapi_extra=describe(
        "Read the record of a file", {200: answer(File, "Its record")}, 404, 422, 503, parameters=PATH
    ),
)
async def get_file(request: Request, file_id: str) -> Response:
    """The record of a file, with a link to its content that expires."""
    check_query(request, set())
    state, caller = state_of(request), caller_of(request)
    record = await state.files.get(file_id, caller.owner, caller.sees)
    return Response(await _describe(state, record), media_type="application/json")


@router.get(
    "/files/{file_id}/content",
    openapi_extra=describe(
        "Read a file's content",
        {
            200: answer(BYTES, "The content, with the type that the file has", media_types=["*/*"]),
            206: answer(BYTES, "The range that was asked for", media_types=["*/*"]),
        },
        *(403, 404, 416, 422, 503),
        parameters=[
            *PATH,
            in_query("expires", STRING, "of `links.download`, with `signature`"),
            in_query("signature", STRING, "of `links.download`, with `expires`"),
            in_query("owner", STRING, "of `links.download`, where the file belongs to an API key"),
            in_header("Range", STRING, "one range of bytes"),
        ],
    ),
)
async def get_content(request: Request, file_id: str) -> Response:
    """The content, or one range of it."""
    files, caller = state_of(request).files, caller_of(request)
    owner = await check_link(request, file_id)
    if owner is None:
        record = await files.get(file_id, caller.owner, caller.sees)
    else:
        record = await files.get_of(owner, file_id)
    is_head = request.method == "HEAD"  # ranges apply to GET alone
    first, length = (0, record.size) if is_head else _read_range(request, record)
    headers = {**HARMLESS, "Accept-Ranges": "bytes", "ETag": f'"{record.id}"', "Content-Length": str(length)}
    headers["Content-Disposition"] = write_attachment(record.filename or record.id[:16])
    status = 200
    if length < record.size:
        status, headers["Content-Range"] = 206, f"bytes {first}-{first + length - 1}/{record.size}"
    if is_head:
        return Response(None, status, headers, record.content_type)
    content = await files.read(record, first, length)
    return StreamingResponse(content, status, headers, record.content_type)


@router.delete(
    "/files/{file_id}",
    openapi_extra=describe(
        "Delete a file", {204: {"description": "It is deleted"}}, *(404, 409, 413, 422, 503), parameters=PATH
    ),
)
async def delete_file(request: Request, file_id: str) -> Response:
    """Delete a file that no unfinished job names."""
    check_query(request, set())
    await read_nothing(request)
    await state_of(request).files.delete(file_id, caller_of(request).sees)
    log.info("file deleted id=%s", file_id)
    return Response(status_code=204)


async def check_link(request: Request, file_id: str) -> str | None:
    """The owner of the file that a signed link opens: an API key's id, or "" for none; None without a link.

    A link gives access to this file alone. Raises ``LinkInvalid`` for a wrong or expired one.
    """
    query = check_query(request, {"expires", "signature", "owner"})
    if not query:
        return None
    expires, signature, owner = (query.get(name, "") for name in ("expires", "signature", "owner"))
    fits = re.fullmatch(r"[0-9]{1,12}", expires) and SIGNATURE.fullmatch(signature)
    if not fits or int(expires) < time.time():
        raise LinkInvalid
    if not hmac.compare_digest(await state_of(request).files.sign(owner, file_id, int(expires)), signature):
        raise LinkInvalid
    return owner


async def _describe(state: State, record: FileRecord) -> bytes:
    expires = min(int(time.time() + state.settings.link_for_s), record.expires_us // 1_000_000)
    signature = await state.files.sign(record.owner, record.id, expires)
    content = f"/files/{record.id}/content"
    owner = f"owner={record.owner}&" if record.owner else ""
    download = f"{content}?{owner}expires={expires}&signature={signature}"
    return to_json(record.describe({"self": f"/files/{record.id}", "content": content, "download": download}))


def _read_keep_for(query: Mapping[str, str], settings: Settings) -> float:
    if "keep_for_s" not in query:
        return settings.keep_for_s
    seconds = read_seconds("keep_for_s", query["keep_for_s"], ["query", "keep_for_s"])
    if not 0 < seconds <= settings.max_keep_for_s:
        must = f"expected more than 0 and at most {settings.max_keep_for_s:.15g} seconds (SERVICES_MAX_KEEP_FOR_S)"
        raise invalid_query("keep_for_s", must, "less_than_equal")
    return seconds


def _read_range(request: Request, record: FileRecord) -> tuple[int, int]:
    """First byte and number of bytes. Raises ``RangeNotSatisfiable``."""
    size = record.size
    match = RANGE.fullmatch(request.headers.get("range", "").strip())
    if not match or match.groups() == ("", "") or request.headers.get("if-range", f'"{record.id}"') != f'"{record.id}"':
        return 0, size
    first, last = match.groups()
    if not first:  # a suffix: the last bytes
        begin, end = max(0, size - int(last)), size - 1
    else:
        begin, end = int(first), min(int(last or size), size - 1)
        if last and int(last) < int(first):
            return 0, size  # no valid range, which the RFC ignores
    if begin >= size:
        raise RangeNotSatisfiable(size)
    return begin, end - begin + 1
