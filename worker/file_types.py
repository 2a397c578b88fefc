"""Content types and the endings of file names: a table of our own, since an image may have no ``/etc/mime.types``.

``mimetypes`` reads that file where it is there, so it answers differently on each machine. It is asked only for the
types that are not in this table.
"""

from __future__ import annotations

import mimetypes
import os

#: The type of a file that nobody knows.
UNKNOWN_TYPE = "application/octet-stream"

#: The endings of each type; a file gets the first.
ENDINGS: dict[str, tuple[str, ...]] = {
    "application/dicom": (".dcm",),
    "application/epub+zip": (".epub",),
    "application/geo+json": (".geojson",),
    "application/gzip": (".gz", ".tgz"),
    "application/json": (".json",),
    "application/msword": (".doc",),
    "application/pdf": (".pdf",),
    "application/postscript": (".ps", ".eps"),
    "application/rtf": (".rtf",),
    "application/toml": (".toml",),
    "application/vnd.apache.arrow.file": (".arrow", ".feather"),
    "application/vnd.apache.arrow.stream": (".arrows",),
    "application/vnd.apache.parquet": (".parquet",),
    "application/vnd.ms-excel": (".xls",),
    "application/vnd.ms-powerpoint": (".ppt",),
    "application/vnd.oasis.opendocument.presentation": (".odp",),
    "application/vnd.oasis.opendocument.spreadsheet": (".ods",),
    "application/vnd.oasis.opendocument.text": (".odt",),
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": (".pptx",),
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": (".xlsx",),
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": (".docx",),
    "application/vnd.rar": (".rar",),
    "application/vnd.sqlite3": (".sqlite", ".sqlite3"),
    "application/wasm": (".wasm",),
    "application/x-7z-compressed": (".7z",),
    "application/x-bzip2": (".bz2",),
    "application/x-hdf5": (".h5", ".hdf5"),
    "application/x-ndjson": (".ndjson", ".jsonl"),
    "application/x-npy": (".npy",),
    "application/x-npz": (".npz",),
    "application/x-tar": (".tar",),
    "application/x-xz": (".xz",),
    "application/xml": (".xml",),
    "application/yaml": (".yaml", ".yml"),
    "application/zip": (".zip",),
    "application/zstd": (".zst",),
    "audio/3gpp": (".3ga",),
    "audio/aac": (".aac",),
    "audio/aiff": (".aiff", ".aif", ".aifc"),
    "audio/amr": (".amr",),
    "audio/basic": (".au",),
    "audio/flac": (".flac",),
    "audio/midi": (".mid", ".midi"),
    "audio/mp4": (".m4a",),
    "audio/mpeg": (".mp3",),
    "audio/ogg": (".ogg", ".oga"),
    "audio/opus": (".opus",),
    "audio/wav": (".wav",),
    "audio/webm": (".weba",),
    "audio/x-ms-wma": (".wma",),
    "font/otf": (".otf",),
    "font/ttf": (".ttf",),
    "font/woff": (".woff",),
    "font/woff2": (".woff2",),
    "image/apng": (".apng",),
    "image/avif": (".avif",),
    "image/bmp": (".bmp",),
    "image/gif": (".gif",),
    "image/heic": (".heic",),
    "image/heif": (".heif",),
    "image/jp2": (".jp2",),
    "image/jpeg": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "image/jxl": (".jxl",),
    "image/png": (".png",),
    "image/svg+xml": (".svg",),
    "image/tiff": (".tiff", ".tif"),
    "image/vnd.adobe.photoshop": (".psd",),
    "image/vnd.microsoft.icon": (".ico",),
    "image/webp": (".webp",),
    "image/x-canon-cr2": (".cr2",),
    "message/rfc822": (".eml",),
    "model/gltf+json": (".gltf",),
    "model/gltf-binary": (".glb",),
    "model/obj": (".obj",),
    "model/stl": (".stl",),
    "text/css": (".css",),
    "text/csv": (".csv",),
    "text/html": (".html", ".htm"),
    "text/javascript": (".js", ".mjs"),
    "text/markdown": (".md",),
    "text/plain": (".txt", ".text", ".log"),
    "text/tab-separated-values": (".tsv",),
    "text/vtt": (".vtt",),
    "video/3gpp": (".3gp",),
    "video/mp2t": (".ts",),
    "video/mp4": (".mp4",),
    "video/mpeg": (".mpeg", ".mpg"),
    "video/ogg": (".ogv",),
    "video/quicktime": (".mov",),
    "video/webm": (".webm",),
    "video/x-flv": (".flv",),
    "video/x-m4v": (".m4v",),
    "video/x-matroska": (".mkv",),
    "video/x-ms-wmv": (".wmv",),
    "video/x-msvideo": (".avi",),
}

#: Other names of the same types, which browsers, systems and libraries give.
ALIASES: dict[str, str] = {
    "application/bzip2": "application/x-bzip2",
    "application/font-sfnt": "font/ttf",
    "application/font-woff": "font/woff",
    "application/javascript": "text/javascript",
    "application/jsonl": "application/x-ndjson",
    "application/jsonlines": "application/x-ndjson",
    "application/parquet": "application/vnd.apache.parquet",
    "application/rar": "application/vnd.rar",
    "application/x-bzip": "application/x-bzip2",
    "application/x-gzip": "application/gzip",
    "application/x-hdf": "application/x-hdf5",
    "application/x-parquet": "application/vnd.apache.parquet",
    "application/x-pdf": "application/pdf",
    "application/x-rar-compressed": "application/vnd.rar",
    "application/x-sqlite3": "application/vnd.sqlite3",
    "application/x-yaml": "application/yaml",
    "application/x-zip-compressed": "application/zip",
    "application/x-zstd": "application/zstd",
    "audio/m4a": "audio/mp4",
    "audio/mp3": "audio/mpeg",
    "audio/vnd.wave": "audio/wav",
    "audio/wave": "audio/wav",
    "audio/x-aac": "audio/aac",
    "audio/x-aiff": "audio/aiff",
    "audio/x-flac": "audio/flac",
    "audio/x-m4a": "audio/mp4",
    "audio/x-midi": "audio/midi",
    "audio/x-mp3": "audio/mpeg",
    "audio/x-mpeg": "audio/mpeg",
    "audio/x-ogg": "audio/ogg",
    "audio/x-wav": "audio/wav",
    "image/jpg": "image/jpeg",
    "image/jpx": "image/jp2",
    "image/pjpeg": "image/jpeg",
    "image/svg": "image/svg+xml",
    "image/x-bmp": "image/bmp",
    "image/x-icon": "image/vnd.microsoft.icon",
    "image/x-ms-bmp": "image/bmp",
    "image/x-png": "image/png",
    "image/x-webp": "image/webp",
    "text/json": "application/json",
    "text/x-csv": "text/csv",
    "text/x-markdown": "text/markdown",
    "text/x-yaml": "application/yaml",
    "text/xml": "application/xml",
    "text/yaml": "application/yaml",
    "video/avi": "video/x-msvideo",
    "video/matroska": "video/x-matroska",
    "video/msvideo": "video/x-msvideo",
    "video/x-mp4": "video/mp4",
}

_TYPES = {ending: kind for kind, endings in ENDINGS.items() for ending in endings}


def canonical(content_type: str) -> str:
    """The one name of a type that has several, such as ``audio/wav`` for ``audio/x-wav``."""
    return ALIASES.get(content_type, content_type)


def suffix_of(content_type: str) -> str:
    """The ending of a file's name by its type, such as ``.png``; some libraries go by it. "" for an unknown type."""
    known = ENDINGS.get(canonical(content_type))
    return known[0] if known else mimetypes.guess_extension(content_type) or ""


def type_of(path: str | os.PathLike[str]) -> str:
    """The type of a file by the ending of its name; ``UNKNOWN_TYPE`` where it names none."""
    ending = os.path.splitext(path)[1].lower()  # noqa: PTH122 - a name, which need be no path
    if known := _TYPES.get(ending):
        return known
    guessed, packed = mimetypes.guess_type(path)
    return UNKNOWN_TYPE if packed or not guessed else canonical(guessed)
