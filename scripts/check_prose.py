"""Count "what", "who" and "so many" in comments, docstrings and documents: ``python -m scripts.check_prose``.

A sentence that puts "what" or "who" in the place of a noun has to be translated by its reader. The models of this
project (dramatiq, httpx, starlette, pluggy) have at most 0.4 of these words in 1,000; here a tree may have ``MOST``.
``--list`` prints every place.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
#: Most of these words in 1,000 words of a tree.
MOST = 2.0
#: The trees: folders of Python and Lua, and the documents.
TREES = ("worker", "api", "client/src", "libs_service", "scripts", "benchmarks", "plugins", "docs")
WORDS = re.compile(r"\b(what|whatever|who|whoever|so many)\b|^(?:Of (?!course)|Whose)\b", re.IGNORECASE)
WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
#: Code within prose, and the code blocks of documents.
CODE = re.compile(r"``[^`]*``|`[^`]*`|\"\w+\"|https?://\S+")
BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


class Text(NamedTuple):
    """A piece of prose and its place."""

    path: Path
    line: int
    text: str


def read_python(path: Path) -> Iterator[Text]:
    """The docstrings and comments of a module."""
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                for offset, line in enumerate(first.value.value.splitlines()):
                    yield Text(path, first.lineno + offset, line)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Text(path, token.start[0], token.string.lstrip("#: "))


def read_lua(path: Path) -> Iterator[Text]:
    """The comments of a script."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if found := re.search(r"(?:^|\s)-- (?!@)(.*)", line):
            yield Text(path, number, found[1])


def read_document(path: Path) -> Iterator[Text]:
    """A document without its code blocks."""
    text = BLOCK.sub(lambda found: "\n" * found[0].count("\n"), path.read_text())
    for number, line in enumerate(text.splitlines(), 1):
        yield Text(path, number, line)


READERS = {".py": read_python, ".lua": read_lua, ".md": read_document}


def read_tree(tree: str) -> list[Text]:
    """All prose of a tree; that of ``docs`` with the README and CONTRIBUTING."""
    paths = [
        path for path in sorted((ROOT / tree).rglob("*")) if path.suffix in READERS and "new_plugin" not in path.parts
    ]
    if tree == "docs":
        paths += [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    return [text for path in paths for text in READERS[path.suffix](path)]


def main() -> int:
    """Check every tree; gives the exit code."""
    code = 0
    for tree in TREES:
        texts = [text._replace(text=CODE.sub(" ", text.text)) for text in read_tree(tree)]
        words = sum(len(WORD.findall(text.text)) for text in texts)
        places = [text for text in texts for _ in WORDS.findall(text.text)]
        share, most = 1000 * len(places) / max(1, words), MOST
        if share > most or "--list" in sys.argv:
            code = max(code, share > most)
            for text in dict.fromkeys(places):
                print(f"{text.path.relative_to(ROOT)}:{text.line}: {text.text.strip()}")
        print(f"{tree}: {share:.1f} of what and who in 1,000 words (at most {most:g} are allowed)")
    return code


if __name__ == "__main__":
    sys.exit(main())
