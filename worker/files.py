"""Files in a plugin's ``Input`` and ``Output``: large or binary values that are no part of a job's JSON.

    class Input(BaseModel):
        image: Annotated[File, FileRules(max_bytes=10_000_000, types=["image/*"])]

    class Output(BaseModel):
        thumbnail: File

The service reads ``input.image.path``, a local file that is there while its batch runs, and returns
``Output(thumbnail=File.from_path(path))``; the worker brings the one before ``preprocess``, and takes the other in the
moment in which the verb returns it.

This module imports pydantic alone, so that a ``schema.py`` may import it.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from worker.file_types import UNKNOWN_TYPE, canonical, suffix_of, type_of

__all__ = [
    "CONTENT_TYPE",
    "ID",
    "UNKNOWN_TYPE",
    "File",
    "FileRules",
    "Where",
    "canonical",
    "clean_name",
    "find_files",
    "holds_files",
    "matches",
    "name_in_url",
    "named_ids",
    "suffix_of",
]

#: The id of a file: the SHA-256 of its content.
ID = re.compile(r"[0-9a-f]{64}")

#: How a job's JSON names a file. One that is written with escapes (``\u0066ile``) is found by the worker alone.
NAMED = re.compile(rb'"file"\s*:\s*"([0-9a-f]{64})"')
CONTENT_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,127}/[a-z0-9!#$&^_.+-]{1,127}")

#: Marks a file in a JSON Schema, for the console and for ``holds_files``.
MARK = "x-services-file"
#: Longest URL of a file; one that is signed for a bucket may well have 2000 characters.
MAX_URL = 8000
EXPECTED = 'expected {"file": "<id>"} of POST /files, a data: URL, or an https:// URL'
#: Longest name of a file, in bytes as UTF-8: that of a name on a disk.
MAX_NAME_BYTES = 255
#: Endings are kept where a name is cut, unless they are longer than this many characters.
MAX_ENDING = 20
#: Turn the direction of writing, so that a name may end other than it looks.
TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
#: Values in which no file can be.
PLAIN = frozenset({int, float, bool, str, bytes, type(None)})

#: The fields of a stored file in an output, which may be the next job's input.
SHOWN = frozenset({"file", "url", "content_type", "size", "name"})

Where = tuple[str | int, ...]


class File:
    """A file of an input or an output.

    An input's has ``id`` (of ``POST /files``), ``url`` (for the worker to fetch) or ``data`` (of a ``data:`` URL).
    """

    __slots__ = ("_path", "content_type", "data", "id", "is_made", "move", "name", "rules", "size", "url")

    def __init__(
        self,
        *,
        id: str = "",
        url: str = "",
        data: bytes | None = None,
        path: Path | None = None,
        content_type: str = "",
        name: str = "",
        move: bool = False,
    ) -> None:
        self.id = id
        self.url = url
        self.data = data
        self.content_type = content_type  #: "" where it is not known yet
        self.name = clean_name(name)  #: that it was uploaded or returned with; "" where it has none
        self.move = move  #: whether the worker may take the local file away
        #: Whether a plugin named a local file for an output, which is to be taken.
        self.is_made = path is not None and not (id or url or data is not None)
        self.size: int | None = None if data is None else len(data)
        self.rules: FileRules | None = None
        self._path = path

    @classmethod
    def from_path(
        cls, path: str | os.PathLike[str], content_type: str = "", *, name: str = "", move: bool = False
    ) -> File:
        """A file for an output, taken as it is in the moment in which the verb returns it.

        Args:
            path: a regular file on this machine.
            content_type: by default by the ending of the path.
            name: the name of a download; by default the last part of the path.
            move: let the worker take the file away instead of copying it; nothing may write to it any more.
        """
        local = Path(path)
        return cls(path=local, content_type=content_type or type_of(local), name=name or local.name, move=move)

    @classmethod
    def from_bytes(cls, data: bytes, content_type: str = UNKNOWN_TYPE, *, name: str = "") -> File:
        """A file for an output, of these bytes (a copy of them)."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"File.from_bytes expects bytes, got {_say_kind(data)}")
        return cls(data=bytes(data), content_type=content_type, name=name)

    @property
    def path(self) -> Path:
        """The local file, this job's own copy: it may be changed. It is gone when its batch has ended."""
        if self._path is None:
            raise RuntimeError("the file is not here: it has a path from preprocess to postprocess, in a worker")
        return self._path

    @property
    def is_here(self) -> bool:
        """Whether ``path`` can be asked for."""
        return self._path is not None

    def read_bytes(self) -> bytes:
        """Its content."""
        return self.data if self._path is None and self.data is not None else self.path.read_bytes()

    def put(self, path: Path | None) -> None:
        """For the worker: this is where it is from now on."""
        self._path = path

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        what = self.id or self.url or (f"{self.size} bytes" if self.data is not None else str(self._path))
        return f"File({what}, {self.content_type or 'of unknown type'})"

    @classmethod
    def _validate(cls, value: Any, about: ValidationInfo) -> File:
        if isinstance(value, File):
            return value
        if isinstance(value, dict) and "file" in value and value.keys() <= SHOWN:
            if isinstance(value["file"], str) and ID.fullmatch(value["file"]):
                return cls(id=value["file"])
            raise PydanticCustomError("file_id", "a file's id is 64 hexadecimal digits, as POST /files answers it")
        if isinstance(value, str) and value[:5].lower() == "data:":
            return _read_data_url(value)
        if isinstance(value, str) and value.lower().startswith(("https://", "http://")):
            return cls(url=_check_url(value))
        must = EXPECTED if about.mode == "json" else _say_to_author(value)
        raise PydanticCustomError("file", "{expected}", {"expected": must})

    def _dump(self) -> Any:
        """As an output shows it; a file that is not stored as the input's reference."""
        if self.id:
            link = {"file": self.id, "url": f"/files/{self.id}/content"}
            return {**link, "content_type": self.content_type or None, "size": self.size, "name": self.name or None}
        if self.data is not None:
            return f"data:{self.content_type or UNKNOWN_TYPE};base64,{base64.b64encode(self.data).decode()}"
        if self.url:
            return self.url
        raise ValueError(f"{self!r} has not been stored")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        dump = core_schema.plain_serializer_function_ser_schema(cls._dump)
        return core_schema.with_info_plain_validator_function(cls._validate, serialization=dump)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        known: dict[str, Any] = {"file": {"type": "string", "pattern": "^[0-9a-f]{64}$"}}
        links: dict[str, Any] = {"url": {"type": "string"}, "content_type": {"type": ["string", "null"]}}
        links["size"] = {"type": ["integer", "null"]}
        name = {"name": {"type": ["string", "null"]}}  # not required: outputs of 0.1.0 have none
        stored: dict[str, Any] = {"type": "object", "properties": {**known, **links, **name}, "required": ["file"]}
        stored["additionalProperties"] = False
        if handler.mode == "serialization":
            return {**stored, "required": ["file", *links], "title": "File", MARK: True}
        text = {"type": "string", "pattern": "^(data:|https?://)"}
        return {"anyOf": [stored, text], "title": "File", "description": EXPECTED, MARK: True}


@dataclass(frozen=True)
class FileRules:
    """Limits of a file: ``Annotated[File, FileRules(...)]``, or around a list of them.

    Checked before the job is accepted, or by the worker where only it knows (of a URL), and for outputs too.
    """

    max_bytes: int | None = None
    #: Content types such as ``image/png`` or ``image/*``; none: all. No part of the hash, which ``… | None`` asks for,
    #: since a list has none.
    types: Sequence[str] = field(default=(), hash=False)

    def problem(self, size: int, content_type: str) -> str | None:
        """The error for a file of this size and type."""
        if problem := self.size_problem(size):
            return problem
        if not matches(content_type, self.types):
            return f"the file is {content_type}; expected {' or '.join(self.types)}"
        return None

    def size_problem(self, size: int) -> str | None:
        """The error for a file of this size."""
        if self.max_bytes is not None and size > self.max_bytes:
            return f"the file has {size} bytes; expected at most {self.max_bytes}"
        return None

    def _attach(self, value: Any) -> Any:
        for _, file in find_files(value):
            file.rules = self
            if file.data is not None and (problem := self.problem(len(file.data), file.content_type)):
                raise PydanticCustomError("file_rules", "{problem}", {"problem": problem})
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._attach, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        limits = {"x-max-bytes": self.max_bytes, "x-content-types": list(self.types)}
        return {**handler(schema), **{name: value for name, value in limits.items() if value}}


def matches(content_type: str, patterns: Sequence[str]) -> bool:
    """Whether a content type is one of these (``image/png``, ``image/*``), by any of its names; none means all."""
    kind = content_type.partition("/")[0]
    if not patterns or content_type in patterns or f"{kind}/*" in patterns or "*/*" in patterns:
        return True
    return canonical(content_type) in map(canonical, patterns)


def find_files(value: Any, where: Where = ()) -> Iterator[tuple[Where, File]]:
    """Every file in an Input or Output, with its place as the JSON has it."""
    if isinstance(value, File):
        yield where, value
    elif isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            alias = field.validation_alias if isinstance(field.validation_alias, str) else field.alias
            yield from find_files(getattr(value, name), (*where, alias or name))
        yield from find_files(value.model_extra or {}, where)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from find_files(item, (*where, str(key)))
    elif isinstance(value, list | tuple | set | frozenset):
        if PLAIN.issuperset(map(type, value)):
            return  # a list of a million numbers
        for i, item in enumerate(value):
            yield from find_files(item, (*where, i))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for member in dataclasses.fields(value):
            yield from find_files(getattr(value, member.name), (*where, member.name))


@lru_cache(maxsize=256)
def holds_files(model: type[BaseModel], mode: Literal["validation", "serialization"] = "validation") -> bool:
    """Whether a model may hold files at all, so that others need not be searched for them."""
    try:
        return f'"{MARK}"' in json.dumps(model.model_json_schema(mode=mode), default=str)
    except Exception:  # pydantic has no JSON Schema for some types that it validates
        return True


def named_ids(text: bytes) -> list[str]:
    """The ids that an input (JSON, or lines of it) seems to name files by, each once, without a look at its schema.

    Measured: 1 us for each kilobyte, and 1.2 us for each file that is named.
    """
    if b'"file"' not in text:
        return []
    return [name.decode() for name in dict.fromkeys(NAMED.findall(text))]


def clean_name(text: str) -> str:
    """The name of a file from a client's text or a path: without folders, control characters and overlength.

    "" where nothing is left.
    """
    last = unicodedata.normalize("NFC", text).replace("\\", "/").rpartition("/")[2]
    kept = "".join(c for c in last if c not in TURNING and unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp"))
    name = kept.strip()
    if len(name.encode()) > MAX_NAME_BYTES:
        stem, ending = os.path.splitext(name)  # noqa: PTH122 - a name, which need be no path
        if len(ending) > MAX_ENDING:
            stem, ending = name, ""
        name = stem.encode()[: MAX_NAME_BYTES - len(ending.encode())].decode(errors="ignore").strip() + ending
    return "" if name in (".", "..") else name


def name_in_url(url: str) -> str:
    """The name that a URL's last part gives to its file."""
    return clean_name(unquote(urlsplit(url).path.rpartition("/")[2]))


def _read_data_url(value: str) -> File:
    """``data:[<type>][;<parameter>...][;base64],<data>`` (RFC 2397)."""
    head, comma, body = value[5:].partition(",")
    content_type, *parameters = [part.strip().lower() for part in head.split(";")]
    try:
        if not comma or (content_type and not CONTENT_TYPE.fullmatch(content_type)):
            raise ValueError("it reads data:<type>;base64,<data>")
        raw = unquote_to_bytes(body)
        data = base64.b64decode(raw, validate=True) if "base64" in parameters else raw
    except (ValueError, binascii.Error) as error:
        raise PydanticCustomError("data_url", "the data: URL cannot be read: {why}", {"why": str(error)}) from error
    return File(data=data, content_type=content_type or "text/plain")


def _say_kind(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ in ("builtins", "pathlib") else f"{kind.__module__}.{kind.__qualname__}"


def _say_to_author(value: Any) -> str:
    """Advice for a value that was never JSON: a plugin's, or that of a caller."""
    got = f"expected a File, got {_say_kind(value)}"
    if isinstance(value, os.PathLike):
        return f"{got}: write File.from_path(path)"
    if isinstance(value, bytes | bytearray | memoryview):
        return f'{got}: write File.from_bytes(data, "image/png"), with the type that it has'
    if isinstance(value, str):
        return f"{EXPECTED}; a plugin that returns the path of a local file writes File.from_path(path)"
    if callable(getattr(value, "save", None)):  # a picture of PIL, a figure
        return (
            f"{got}: save() it to a path or io.BytesIO, and write File.from_path(path) or File.from_bytes(data, type)"
        )
    if callable(getattr(value, "read", None)):
        return f"{got}: write File.from_bytes(f.read(), content_type), or close it and write File.from_path(path)"
    return f"{EXPECTED}, got {_say_kind(value)}; a plugin writes File.from_path(path) or File.from_bytes(data, type)"


def _check_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        fine = bool(parts.hostname) and parts.port != 0 and parts.username is None and value.isascii()
    except ValueError:
        fine = False
    if not fine or any(c <= " " or c == "\x7f" for c in value) or len(value) > MAX_URL:
        raise PydanticCustomError("file_url", "expected a URL such as https://host/path, in ASCII, without credentials")
    return value
