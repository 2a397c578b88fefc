"""The public lists of crawlers, read word by word: a list's word counts where it stands alone, not inside another.

The lists hold some 3,000 regular expressions. Here they are kept by their first letter and tried where a word begins,
which is both their meaning ("Sonic" is no part of "ViewSonic") and quicker than a search at every letter. What may
repeat without end in them is bounded, so that the time grows with the text's length, not with its square.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

import crawleruseragents
from crawlerdetect.crawlerdetect import get_compiled_exclusions_regex
from crawlerdetect.providers.crawlers import data as crawlerdetect_patterns

#: No list means a longer gap than this by "anything", in characters.
LONGEST_GAP = 200

#: A word ends where no letter follows: "Sonic" is not in "Sonicwall", but in "Sonic/1.0", "Sonics" and "SonicBot".
_END = r"(?:(?<![A-Za-z])|(?-i:(?<=[a-z])s?(?![a-z])|(?<=[A-Z])(?![A-Za-z])))"
#: A general word ("bot", "crawl") may be the end of a name, and may have these endings.
_GENERAL_END = r"(?:e[nr]s?|ing|s)?(?-i:(?<=[a-z])(?![a-z])|(?<=[A-Z])(?![A-Z])|(?![A-Za-z]))"
_WORD_START = re.compile(r"(?<![A-Za-z0-9])[A-Za-z0-9]")
_GENERAL = re.compile(r"^\[[^\]]*\]\*(?=\()")
_ENDLESS = re.compile(r"(?<!\\)(\.|\[\\s\\S\])[*+]\??")


class WordList:
    """Patterns of one list. ``search`` tells whether one of them stands in a text as a word of its own."""

    def __init__(self, patterns: Iterable[str], flags: int = 0) -> None:
        self._folds = bool(flags & re.IGNORECASE)
        by_letter: dict[str, list[str]] = defaultdict(list)
        others: list[str] = []
        for pattern in patterns:
            bounded = _ENDLESS.sub(rf"\1{{0,{LONGEST_GAP}}}", pattern)
            if _starts_with_letter(bounded):
                by_letter[bounded[0].lower() if self._folds else bounded[0]].append(bounded)
            else:
                others.append(_anywhere(bounded))
        self._by_letter = {
            letter: re.compile(f"(?:{'|'.join(f'(?:{p})' for p in group)}){_END}", flags)
            for letter, group in by_letter.items()
        }
        self._others = re.compile("|".join(others), flags) if others else None

    def search(self, text: str) -> bool:
        """Whether a word of the list is in ``text``."""
        for match in _WORD_START.finditer(text):
            letter = match[0].lower() if self._folds else match[0]
            pattern = self._by_letter.get(letter)
            if pattern is not None and pattern.match(text, match.start()):
                return True
        return self._others is not None and self._others.search(text) is not None


def _starts_with_letter(pattern: str) -> bool:
    return pattern[0].isalnum() and "|" not in pattern and pattern[1:2] not in ("*", "?", "{", "+")


def _anywhere(pattern: str) -> str:
    """A pattern that begins with a choice, an anchor or a sign, with its own bounds."""
    if _GENERAL.match(pattern):
        return f"{_GENERAL.sub('', pattern)}{_GENERAL_END}"
    start = "" if pattern[0] in "^ ;" or pattern.startswith("(^") else r"(?<![A-Za-z0-9])"
    return f"{start}(?:{pattern}){_END}"


#: Libraries that the lists know as the end of a longer word.
_OWN = ("pycurl", "^libcurl")
_entries = crawleruseragents.CRAWLER_USER_AGENTS_DATA
_crawlers = WordList(entry["pattern"] for entry in _entries)
_libraries = WordList(entry["pattern"] for entry in _entries if "http-library" in entry.get("tags", ()))
_detector = WordList((*crawlerdetect_patterns, *_OWN), re.IGNORECASE)


def count(text: str) -> int:
    """How many of the two lists know ``text`` as a crawler."""
    without_browsers = get_compiled_exclusions_regex().sub("", text)
    return _crawlers.search(text) + _detector.search(without_browsers)


def is_library(text: str) -> bool:
    """Whether the list that has tags knows it as an HTTP library."""
    return _libraries.search(text)
