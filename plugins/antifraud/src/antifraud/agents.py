"""An operator's own words for user agents: an allow-list and a block-list, each a text file."""

from __future__ import annotations

import re
from pathlib import Path

#: A shorter word would be found in too many user agents.
SHORTEST = 3


class AgentsError(ValueError):
    """A file of words cannot be used; the text names the file, the line and the expectation."""


class Agents:
    """Words of user agents. Each is found where it stands alone, in capitals or not, never inside another word."""

    def __init__(self, words: list[str]) -> None:
        self._pattern = re.compile("|".join(map(_alone, words)), re.IGNORECASE)

    def __contains__(self, user_agent: str) -> bool:
        return self._pattern.search(user_agent) is not None


def _alone(word: str) -> str:
    """A pattern of the word, bounded on either side where it begins or ends with a letter or digit."""
    before = "(?<![A-Za-z0-9])" if word[0].isalnum() else ""
    return f"{before}{re.escape(word)}{'(?![A-Za-z0-9])' if word[-1].isalnum() else ''}"


def read_agents(path: Path) -> Agents:
    """Read one word or phrase a line; lines that begin with ``#`` and empty lines are skipped."""
    expected = "expected a word or phrase of a user agent a line, such as AcmeMonitor/2"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AgentsError(f"{path}: cannot read the words ({error}); {expected}") from error
    words = []
    for number, line in enumerate(lines, start=1):
        word = line.strip()
        if not word or word.startswith("#"):
            continue
        if len(re.sub(r"[\W_]", "", word)) < SHORTEST:
            raise AgentsError(f"{path}, line {number}: {word!r} has under {SHORTEST} letters or digits; {expected}")
        words.append(word)
    if not words:
        raise AgentsError(f"{path}: holds no word; {expected}")
    return Agents(words)
