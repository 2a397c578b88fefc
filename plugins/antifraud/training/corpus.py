"""The training data, read in place from the data folder and from PyPI packages, and split into trained and held out."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from importlib import resources
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from antifraud.features import Behaviour
from antifraud.ranges import Ranges, read_ranges

from training import grammar

HOSTING_PROVIDERS = (
    "amazon",
    "google",
    "microsoft",
    "oracle",
    "digitalocean",
    "linode",
    "vultr",
    "cloudflare",
    "github",
)
PROXIES = ("apple-proxy", "protonvpn")
#: One crawler family in this many is held out.
FAMILY_FOLDS = 4
#: Share of the access log's hours that is trained on; the rest is the later time span.
TRAINED_SHARE_OF_HOURS = 0.6
_LOG_LINE = re.compile(r'(\S+) \S+ \S+ \[([^\]]+)\] "(\S+) (\S+)[^"]*" \d+ \S+ "([^"]*)" "(.*)"$')


@dataclass(frozen=True)
class Sample:
    """One user agent with its label, its source, and whether training may see it."""

    text: str
    is_bot: bool
    source: str
    is_held_out: bool


@dataclass(frozen=True)
class Visit:
    """One request of the access log. ``who`` is the address's hash: the log holds people's addresses."""

    who: str
    user_agent: str
    is_bot: bool
    is_later: bool
    behaviour: Behaviour


def bucket(text: str, folds: int) -> int:
    """A stable bucket of ``text``, the same in every run and on every machine."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % folds


def family(pattern: str) -> str:
    """The crawler family of a list pattern: "Googlebot-Mobile" and "Googlebot\\/" are both "google"."""
    name = re.sub(r"\\.|[\[\](){}^$?*+|]", " ", pattern.lower()).strip()
    first = re.split(r"[\s/_.:;,-]+", name)[0]
    return re.sub(r"(?:bot|spider|crawler)s?$", "", first) or first


def crawlers(data: Path) -> list[Sample]:
    """Every example of the crawler list; a family's examples are all trained on or all held out."""
    entries = json.loads((data / "crawler_ua" / "crawler-user-agents.json").read_text(encoding="utf-8"))
    held = [re.compile(e["pattern"]) for e in entries if bucket(family(e["pattern"]), FAMILY_FOLDS) == 0]
    texts = dict.fromkeys(text for entry in entries for text in entry["instances"])
    return [Sample(text, True, "crawler_ua", any(p.search(text) for p in held)) for text in texts]


def top_browsers(data: Path) -> list[str]:
    texts: list[str] = json.loads((data / "browser_ua" / "top-user-agents.json").read_text(encoding="utf-8"))
    return texts


def browsers(data: Path) -> list[Sample]:
    """The most used browsers, all of them held out, and those of the package ``fake-useragent``, split by form."""
    top = [Sample(text, False, "browser_ua", True) for text in dict.fromkeys(top_browsers(data))]
    lines = (resources.files("fake_useragent") / "data" / "browsers.jsonl").read_text(encoding="utf-8").splitlines()
    package = dict.fromkeys(json.loads(line)["useragent"] for line in lines)
    known = {sample.text for sample in top}
    return top + [
        Sample(text, False, "fake-useragent", bucket(re.sub(r"\d+", "0", text), 5) == 0)
        for text in package
        if text not in known
    ]


def made_up(seed: int) -> list[Sample]:
    """The grammar's user agents: all trained on, since they would flatter any figure."""
    return [Sample(text, False, "grammar", False) for text in dict.fromkeys(grammar.peoples(3600, seed))] + [
        Sample(text, True, "grammar", False) for text in dict.fromkeys(grammar.bots(900, seed))
    ]


def logged(visits: list[Visit]) -> list[Sample]:
    """The access log's people; a user agent first seen in the later time span is held out. Its bots are in the list."""
    early = {visit.user_agent for visit in visits if not visit.is_later}
    texts = dict.fromkeys(visit.user_agent for visit in visits if not visit.is_bot and len(visit.user_agent) > 1)
    return [Sample(text, False, "apache_access_log", text not in early) for text in texts if not _names_itself(text)]


def _names_itself(text: str) -> bool:
    """Whether the weak label is plainly wrong: the list misses some crawlers and feed readers that declare themselves."""
    return (
        re.search(r"https?:|@|bot|crawl|spider|fetch|feed|rss|curl|wget|libwww|java/|python|ruby|php", text, re.I)
        is not None
    )


def handmade(folder: Path, which: str = "handmade") -> tuple[list[str], list[str]]:
    """People's and bots' user agents written by hand, after devices and tools that the sources above lack."""
    files = (f"{which}_peoples.txt", f"{which}_bots.txt")
    peoples, bots = ((folder / name).read_text(encoding="utf-8").splitlines() for name in files)
    return peoples, bots


def provider_files(data: Path, providers: tuple[str, ...]) -> list[Path]:
    folder = data / "datacenter_cidr"
    return sorted(path for path in folder.glob("*.txt") if path.name.split(".")[0] in providers)


@lru_cache
def ranges_of(data: Path, providers: tuple[str, ...]) -> tuple[Ranges, ...]:
    return tuple(read_ranges(path) for path in provider_files(data, providers))


def visits(data: Path) -> list[Visit]:
    """The access log in its order, each request with the counts that a caller would have had at that moment."""
    entries = json.loads((data / "crawler_ua" / "crawler-user-agents.json").read_text(encoding="utf-8"))
    is_bot = lru_cache(None)(re.compile("|".join(e["pattern"] for e in entries)).search)
    lines = (data / "apache_access_log" / "apache_logs").read_text(encoding="utf-8").splitlines()
    rows = [match.groups() for line in lines if (match := _LOG_LINE.match(line))]
    hours = sorted({_hour(row[1]) for row in rows})
    later_from = hours[int(len(hours) * TRAINED_SHARE_OF_HOURS)]
    hosting = ranges_of(data, HOSTING_PROVIDERS)
    history: dict[str, list[Any]] = {}
    found = []
    for address, time, _, path, referrer, text in rows:
        hour = _hour(time)
        past = history.setdefault(address, [])
        past.append((hour, path.split("?")[0], text, referrer == "-"))
        behaviour = _count(
            past, hour, "" if referrer == "-" else referrer, any(ip_address(address) in r for r in hosting)
        )
        who = hashlib.sha256(address.encode()).hexdigest()[:16]
        found.append(Visit(who, text, is_bot(text) is not None, hour >= later_from, behaviour))
    return found


def _hour(time: str) -> datetime:
    # Every minute of this log was overwritten, so that only the hour can be trusted.
    return datetime.strptime(time, "%d/%b/%Y:%H:%M:%S %z").replace(minute=0, second=0)


def _count(past: list[Any], hour: datetime, referrer: str, is_hosting: bool) -> Behaviour:
    day = [row for row in past if row[0] > hour - timedelta(hours=24)]
    return Behaviour(
        events_1h=sum(row[0] == hour for row in day),
        events_24h=len(day),
        pages_24h=len({row[1] for row in day}),
        user_agents_24h=len({row[2] for row in day}),
        without_referrer_24h=sum(row[3] for row in day),
        active_hours_24h=len({row[0] for row in day}),
        referrer=referrer,
        page="http://semicomplete.com/",
        is_hosting=is_hosting,
    )
