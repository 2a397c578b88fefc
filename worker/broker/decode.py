"""The body of a Celery message, as kombu packed it: base64, compression, JSON."""

from __future__ import annotations

import base64
import bz2
import json
import lzma
import zlib
from collections.abc import Callable
from typing import Any, cast

from worker.errors import InvalidInput

try:
    import brotli
except ImportError:
    brotli = None
try:
    from backports import zstd
except ImportError:
    zstd = None

#: Types that kombu's JSON has beside JSON's own: each as the JSON value that pydantic reads.
TYPES: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("datetime", "date", "time", "decimal", "bytes", "base64"), lambda value: value),
    "uuid": lambda value: value["hex"],
}


def read_body(message: dict[str, Any], most: int) -> Any:
    """The content of a message. Raises ``InvalidInput`` or ``ValueError`` where it cannot be read.

    Args:
        message: as kombu's Redis transport keeps it.
        most: bytes that the body may have, before and after it is unpacked.
    """
    kind = message.get("content-type")
    if kind != "application/json":
        raise InvalidInput(f"messages must be application/json; {kind} is refused")
    body = message["body"]
    encoding = (message.get("properties") or {}).get("body_encoding")
    if encoding == "base64":
        body = base64.b64decode(body, validate=True)
    elif encoding not in (None, "", "utf-8"):
        raise InvalidInput(f"a body in the encoding {encoding!r:.100} is refused; expected base64 or utf-8")
    else:
        body = body.encode()
    compression = (message.get("headers") or {}).get("compression")
    _check_size(len(body), most)
    if compression:
        body = _unpack(compression, body, most)
        _check_size(len(body), most)
    return json.loads(body, parse_constant=_refuse_constant, object_hook=_plain)


def dump(value: Any) -> bytes:
    """A value of a body as the ledger keeps it. Raises ``ValueError`` for a number beyond all floats."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _check_size(size: int, most: int) -> None:
    if size > most:
        more = f"over the {most} of SERVICES_MAX_BODY_BYTES"
        raise InvalidInput(f"the message's body has {size} bytes or more, {more}: send large inputs as files")


def _unpack(compression: str, body: bytes, most: int) -> bytes:
    """The body decompressed, or its first bytes where those are more than ``most`` already."""
    unpack = UNPACKERS.get(compression)
    if unpack is None:
        known = ", ".join(sorted(UNPACKERS))
        raise InvalidInput(f"the compression {compression!r:.100} is not supported; expected one of {known}")
    try:
        return unpack(body, most + 1)
    except Exception as error:  # each library has exceptions of its own
        raise InvalidInput(f"the body cannot be decompressed by {compression}: {error}") from error


def _zlib(body: bytes, most: int) -> bytes:
    return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32).decompress(body, most)  # 32: gzip's own header too


def _bz2(body: bytes, most: int) -> bytes:
    return bz2.BZ2Decompressor().decompress(body, most)


def _lzma(body: bytes, most: int) -> bytes:
    return lzma.LZMADecompressor(memlimit=2**28).decompress(body, most)


def _brotli(body: bytes, most: int) -> bytes:
    return cast(bytes, brotli.Decompressor().process(body, output_buffer_limit=most))


def _zstd(body: bytes, most: int) -> bytes:
    return cast(bytes, zstd.ZstdDecompressor().decompress(body, most))


#: By kombu's names of them (``kombu/compression.py``), which each know their aliases.
UNPACKERS: dict[str, Callable[[bytes, int], bytes]] = {
    **dict.fromkeys(("application/x-gzip", "gzip", "zlib", "deflate"), _zlib),
    **dict.fromkeys(("application/x-bz2", "bzip2", "bzip"), _bz2),
    **dict.fromkeys(("application/x-lzma", "lzma", "xz"), _lzma),
    **dict.fromkeys(("application/x-brotli", "brotli") if brotli else (), _brotli),
    **dict.fromkeys(("application/zstd", "zstd", "zstandard") if zstd else (), _zstd),
}


def _refuse_constant(name: str) -> None:
    raise InvalidInput(f"{name} is not JSON")


def _plain(value: dict[str, Any]) -> Any:
    if value.keys() != {"__type__", "__value__"}:
        return value
    name = value["__type__"]
    if not isinstance(name, str) or name not in TYPES:
        raise InvalidInput(f"kombu's type {name!r:.100} is not supported in JSON; expected one of {', '.join(TYPES)}")
    return TYPES[name](value["__value__"])
