"""Large and binary inputs and outputs: ``/files``."""

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
from api.files.dispositions import write_attachment
from api.files.uploads import Upload
from api.problems import LinkInvalid, RangeNotSatisfiable
from api.requests import check_query, invalid_query, read_nothing, read_seconds
from api.state import State, state_of
from worker.errors import ServicesError
from worker.filestore.storage import FileRecord
from worker.settings import Settings

log = logging.getLogger("services.api")
router = APIRouter()

#: One range of bytes (RFC 9110); what asks for several, or for other units, gets the whole.
RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
SIGNATURE = re.compile(r"[0-9a-f]{64}")
#: A file is what its uploader says; no browser may run it as a page of ours.
HARMLESS = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox; default-src 'none'"}


@router.post("/files")
async def create_file(request: Request) -> Response:
    """Store the body, or the one file of a form, as it comes in."""
    state = state_of(request)
    keep_for_s = _read_keep_for(check_query(request, {"keep_for_s"}), state.settings)
    upload = Upload(request, state.settings)
    owner = caller_of(request).owner
    try:
        record, is_new = await state.files.store(upload.pieces(), upload.tell, keep_for_s, owner)
    except ClientDisconnect:
        log.info("an upload broke off; nothing is left of it")
        return Response(status_code=400)  # nobody reads it
    except ServicesError:
        with suppress(ClientDisconnect):
            await upload.drain()
        raise
    log.info("file %s id=%s bytes=%d", "stored" if is_new else "known", record.id, record.size)
    headers = {"Location": f"/files/{record.id}"}
    return Response(await _describe(state, record), 201 if is_new else 200, headers, "application/json")


@router.get("/files/{file_id}")
async def get_file(request: Request, file_id: str) -> Response:
    """What is known of a file, with a link to its content that expires."""
    check_query(request, set())
    state, caller = state_of(request), caller_of(request)
    record = await state.files.get(file_id, caller.owner, caller.sees)
    return Response(await _describe(state, record), media_type="application/json")


@router.get("/files/{file_id}/content")
async def get_content(request: Request, file_id: str) -> Response:
    """The content, or one range of it."""
    files, caller = state_of(request).files, caller_of(request)
    owner = await check_link(request, file_id)
    if owner is None:
        record = await files.get(file_id, caller.owner, caller.sees)
    else:
        record = await files.get_of(owner, file_id)
    is_head = request.method == "HEAD"  # which knows no ranges
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


@router.delete("/files/{file_id}")
async def delete_file(request: Request, file_id: str) -> Response:
    """Drop a file that no unfinished job names."""
    check_query(request, set())
    await read_nothing(request)
    await state_of(request).files.delete(file_id, caller_of(request).sees)
    log.info("file deleted id=%s", file_id)
    return Response(status_code=204)


async def check_link(request: Request, file_id: str) -> str | None:
    """Whose file a good signed link, by which the request came, opens: an API key's ("": none's); None without a link.

    Raises ``LinkInvalid`` for one that is not good. Who comes by a link is no caller that may see anything else.
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
    asked = RANGE.fullmatch(request.headers.get("range", "").strip())
    if not asked or asked.groups() == ("", "") or request.headers.get("if-range", f'"{record.id}"') != f'"{record.id}"':
        return 0, size
    first, last = asked.groups()
    if not first:  # the last so many
        begin, end = max(0, size - int(last)), size - 1
    else:
        begin, end = int(first), min(int(last or size), size - 1)
        if last and int(last) < int(first):
            return 0, size  # no valid range: ignored, as the RFC has it
    if begin >= size:
        raise RangeNotSatisfiable(size)
    return begin, end - begin + 1
