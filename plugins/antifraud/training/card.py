"""The model card. Every figure in it is measured by the run that writes it."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

from training import by_kind
from training.corpus import Sample, Visit
from training.metrics import Figure

#: The data that is read, with its licence.
SOURCES = {
    "crawler_ua/crawler-user-agents.json": "crawler-user-agents, MIT: crawlers",
    "browser_ua/top-user-agents.json": "top-user-agents, MIT: browsers, all held out",
    "apache_access_log/apache_logs": "elastic/examples, Apache-2.0: behaviour, and people's user agents of 2015",
}

LIMITS = """## Limits

* The access log is of one web site in May 2015, and its label is weak: a request counts as a bot's where its user agent
  is on the crawler list. Behaviour of ad fraud as such (click farms, hijacked devices, emulators) is not in it.
* A client that sends a browser's user agent to the letter is a browser to the user-agent rows; only its behaviour or its
  address can tell.
* The hand-made set was written by the plugin's developers from their knowledge of devices and tools, beside the data,
  and is not trained on; the made-up grammar was written by the same people, so expect less from strangers' sources.
* The second hand-made set was written when the model was done, to find its mistakes: it leans to what is hard (bots with
  a browser's user agent, templates, apps' web views). The lists' and checks' rules were mended by it since, the model
  was not. So its figures are the model's on unseen user agents; the whole service's on it would flatter.
* Sophisticated invalid traffic (SIVT) that neither model nor checks find: clients that copy a browser's user agent, hints
  and device to the letter and keep a person's pace (stealth browsers, emulators, device farms, hijacked devices);
  incentivised clicks, click injection and flooding, falsified or replayed events that fit together; hidden or stacked
  ads, spoofed domains and bundles; residential proxies. The checks of contradictions find careless forgers alone.
* A crawler that writes its name into an Android comment, among model and build ("Storebot-Google/1.0"), is not found by
  its name: makers write there, and their words counted against people's phones.
* The other source of the table by kind was not trained on, but the checks (words behind a browser's own, versions,
  masks) were mended by looking at its people, so its figures now flatter people's devices. The first row's texts are
  people's by their sources' weak labels; what they write was never shipped, and is now `ua_contradicts` or
  `ua_malformed`.
* "At 1 % false positives" on some hundred texts is decided by one or two of people's.
* The model alone makes an event `suspicious` at most, never `invalid`.
* The log holds people's addresses: they are hashed where they are read, and none is in the model.
"""


def write(
    path: Path,
    data: Path,
    version: str,
    thresholds: dict[str, float],
    samples: list[Sample],
    visits: list[Visit],
    figures: list[Figure],
) -> None:
    """Write the card."""
    parts = [
        f"# Model card: antifraud {version}\n",
        "Written by `python plugins/antifraud/train.py`; LightGBM's text format, "
        "two rows an event (user agent, behaviour).\n",
        _data(data, samples, visits),
        _figures(figures, thresholds),
        by_kind.table(),
        LIMITS,
    ]
    path.write_text("\n".join(parts), encoding="utf-8")


def _data(data: Path, samples: list[Sample], visits: list[Visit]) -> str:
    rows = ["## Data\n", "| file | what, licence | sha256 |", "| --- | --- | --- |"]
    for name, what in SOURCES.items():
        digest = hashlib.sha256((data / name).read_bytes()).hexdigest()
        rows.append(f"| `{name}` | {what} | `{digest[:16]}…` |")
    rows += [
        "| `datacenter_cidr/*` | lord-alfred/ipranges, CC0: whether a logged address is a hosting provider's | |",
        "| `fake-useragent` (PyPI) | Apache-2.0: people's user agents of today | |",
        "| `training/peoples.txt`, `bots.txt` | a grammar of our own, for devices and tools that the data lacks | |",
        "\n## Split\n",
        "Held out: one crawler family in four, whole; every browser of `browser_ua`; one form in five of "
        "`fake-useragent`; the last 40 % of the access log's hours.\n",
        "| user agents | trained on | held out |",
        "| --- | --- | --- |",
    ]
    counts = Counter((s.source, "bots" if s.is_bot else "people", s.is_held_out) for s in samples)
    for source, label in sorted({(s, label) for s, label, _ in counts}):
        rows.append(f"| {source}, {label} | {counts[source, label, False]} | {counts[source, label, True]} |")
    early = sum(not v.is_later for v in visits)
    rows.append(f"| requests of the access log (behaviour) | {early} | {len(visits) - early} |")
    return "\n".join(rows) + "\n"


def _figures(figures: list[Figure], thresholds: dict[str, float]) -> str:
    told = ", ".join(f"{name} {value:g}" for name, value in thresholds.items())
    rows = [
        "## Figures\n",
        "Of the model alone, without lists and checks, on what was held out. "
        f"Thresholds for `suspicious`, from out-of-fold predictions of the trained part: {told}.\n",
        "| set | bots | people | AUC | bots found at 1 % false positives | found at the threshold | false positives there |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for f in figures:
        shares = f"{f.tpr_at_1:.1%} | {f.tpr:.1%} | {f.fpr:.2%}"
        rows.append(f"| {f.name} | {f.positives} | {f.negatives} | {f.auc:.4f} | {shares} |")
    return "\n".join(rows) + "\n"
