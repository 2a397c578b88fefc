"""File names in ``Content-Disposition``, read from uploads and written for downloads (RFC 6266, 5987, 7578)."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote_to_bytes

from worker.files import clean_name

PARAMETER = re.compile(r""";\s*([\w!#$&+^`|~.-]+\*?)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)""", re.ASCII)
#: ``<charset>'<language>'<value>``, the value with percents.
EXTENDED = re.compile(r"([\w-]+)'[\w-]*'(.*)", re.ASCII | re.DOTALL)
#: Escapes by which browsers write the characters that would end a form's header.
FORM_ESCAPES = {"%22": '"', "%0D": "\r", "%0A": "\n"}
#: Characters that a quoted name must not contain, or that some programs misread.
UNSAFE = re.compile(r'[^\x20-\x7e]|["\\%/]')


def read_parameters(header: bytes) -> dict[str, str]:
    """The parameters of a header, by their names in lower case; text that is not UTF-8 is read as Latin-1."""
    parameters: dict[str, str] = {}
    for name, value in PARAMETER.findall(header.decode("latin-1")):
        plain = value.strip()
        if plain[:1] == '"' and plain[-1:] == '"':
            # No other backslash is an escape: browsers do not escape those of a Windows path.
            plain = re.sub(r'\\(["\\])', r"\1", plain[1:-1])
        parameters.setdefault(name.lower(), _decode(plain.encode("latin-1"), "utf-8"))
    return parameters


def read_name(parameters: dict[str, str], is_form: bool = False) -> str:
    """The file's name, without folders and control characters; "" where it has no usable name."""
    if (extended := EXTENDED.fullmatch(parameters.get("filename*", "").strip())) and (
        extended[1].lower() in ("utf-8", "iso-8859-1")
    ):
        name = _decode(unquote_to_bytes(extended[2]), extended[1])
    else:
        name = parameters.get("filename", "")
        if is_form:
            name = re.sub("%22|%0D|%0A", lambda match: FORM_ESCAPES[match[0]], name)
    return clean_name(name)


def write_attachment(name: str) -> str:
    """The header of a download with this name."""
    plain = UNSAFE.sub("_", name)
    header = f'attachment; filename="{plain}"'
    return header if plain == name else f"{header}; filename*=UTF-8''{quote(name, safe='')}"


def _decode(text: bytes, charset: str) -> str:
    try:
        return text.decode(charset)
    except UnicodeDecodeError:
        return text.decode("latin-1")
