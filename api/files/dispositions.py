"""A file's name in ``Content-Disposition``: as clients send it, and as a download has it (RFC 6266, 5987, 7578)."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote_to_bytes

from worker.files import clean_name

PARAMETER = re.compile(r""";\s*([\w!#$&+^`|~.-]+\*?)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)""", re.ASCII)
#: ``<charset>'<language>'<value>``, the value with percents.
EXTENDED = re.compile(r"([\w-]+)'[\w-]*'(.*)", re.ASCII | re.DOTALL)
#: What browsers write for the characters that would end a form's header.
OF_FORMS = {"%22": '"', "%0D": "\r", "%0A": "\n"}
#: Characters that a quoted name may not hold as they are, or that some program reads in its own way.
UNSAFE = re.compile(r'[^\x20-\x7e]|["\\%/]')


def read_parameters(header: bytes) -> dict[str, str]:
    """The parameters of a header, by their names in small letters; text that is no UTF-8 is read as Latin-1."""
    found: dict[str, str] = {}
    for name, value in PARAMETER.findall(header.decode("latin-1")):
        plain = value.strip()
        if plain[:1] == '"' and plain[-1:] == '"':
            # Not each backslash: browsers write those of a Windows path as they are.
            plain = re.sub(r'\\(["\\])', r"\1", plain[1:-1])
        found.setdefault(name.lower(), _decode(plain.encode("latin-1"), "utf-8"))
    return found


def read_name(parameters: dict[str, str], is_form: bool = False) -> str:
    """The file's name, without folders and control characters; "" where it has none, or none that can be used."""
    if (extended := EXTENDED.fullmatch(parameters.get("filename*", "").strip())) and (
        extended[1].lower() in ("utf-8", "iso-8859-1")
    ):
        told = _decode(unquote_to_bytes(extended[2]), extended[1])
    else:
        told = parameters.get("filename", "")
        if is_form:
            told = re.sub("%22|%0D|%0A", lambda found: OF_FORMS[found[0]], told)
    return clean_name(told)


def write_attachment(name: str) -> str:
    """A header for a download of this name."""
    plain = UNSAFE.sub("_", name)
    header = f'attachment; filename="{plain}"'
    return header if plain == name else f"{header}; filename*=UTF-8''{quote(name, safe='')}"


def _decode(text: bytes, charset: str) -> str:
    try:
        return text.decode(charset)
    except UnicodeDecodeError:
        return text.decode("latin-1")
