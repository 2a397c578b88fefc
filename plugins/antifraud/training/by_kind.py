"""How many of people's devices are flagged, by kind, and how many bots are found: of this version and of an earlier one.

    cd plugins/antifraud
    python -m training.by_kind --data FOLDER --at cfb42b4 [--devices FOLDER]

The texts are those that training never saw: the texts that ``training.corpus`` holds out, and the hand-made sets. ``--devices`` is
a folder of user agents by kind from another source, as the fixtures of ``device_detector`` are (PyPI's source archive,
``device_detector/tests/fixtures/upstream``; needs PyYAML): nothing was trained on it. Each version is run whole, by its
own code and model, in a process of its own. Writes ``training/by_kind.json``, and its table into ``MODEL_CARD.md``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from training import corpus

HERE = Path(__file__).resolve().parent
PLUGIN = HERE.parent
RESULT = HERE / "by_kind.json"
CARD = PLUGIN / "MODEL_CARD.md"
TITLE = "## By kind of device"
SEED = 20261123
#: The kinds, told by words of the text itself, so that no version of the service has a say in it. The first that fits.
KINDS = {
    "no device writes this (Chrome's engine in an iPhone, Windows NT 9, Windows in X11, a header's name in front)": r"\((?:iPhone|iPad).*(?<!like )\bChrome/|Windows NT 9|X11; Windows|^User-Agent:",
    "console": r"PlayStation|PLAYSTATION|PSP|Nintendo|Xbox",
    "TV": r"TV\b|Web0S|webOS|Tizen|SMART-TV|HbbTV|Roku|CrKey|NetCast|AFT[A-Z]|BRAVIA|Vewd|Opera TV|DirectFB|Kodi|Viera",
    "feature phone": r"MIDP|CLDC|Symbian|Series ?[346]0|SymbOS|J2ME|BREW|MAUI|UP\.(?:Browser|Link)|BlackBerry|KAIOS|DoCoMo|KDDI"
    r"|SoftBank|NetFront|Obigo",
    "in-app": r"; wv\)|FBAN|FB_IAB|FBAV|Instagram|CFNetwork|Dalvik|okhttp|Electron/|MicroMessenger|Line/|Snapchat|GSA/"
    r"|like Mac OS X\)(?!.*Safari/)|^(?!Mozilla|Opera).*(?:Android|iPhone|iOS|Darwin)",
    "phone or tablet": r"Android|iPhone|iPad|iPod|Windows Phone|IEMobile|Mobile",
    "desktop": r"Windows|Macintosh|Mac OS X|Mac_PowerPC|X11|Linux|CrOS|Win9",
}
#: Files of another source's people that show ads, with the kind that they are; and the texts of no browser or app of a screen.
OTHER_KINDS = {
    "smartphone": "phone or tablet", "phablet": "phone or tablet", "tablet": "phone or tablet", "mobile_apps": "in-app",
    "clienthints": "phone or tablet", "clienthints-app": "in-app", "tv": "TV", "console": "console",
    "feature_phone": "feature phone", "desktop": "desktop",
}  # fmt: skip
Texts = dict[str, list[str]]


def main() -> None:
    """Measure both versions, or (``--texts``) score texts by the version that is on the path."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, help="the data folder")
    parser.add_argument("--devices", type=Path, help="another source's user agents: a folder of KIND.yml and bots.yml")
    parser.add_argument("--at", default="cfb42b4", help="the commit to compare with (default: cfb42b4)")
    parser.add_argument("--texts", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.texts:
        print(json.dumps(score(json.loads(chosen.texts.read_text()))))
        return
    if not chosen.data:
        parser.error("--data is missing: the folder with crawler_ua, browser_ua and apache_access_log")
    groups = held_out(chosen.data) | (other_source(chosen.devices) if chosen.devices else {})
    with tempfile.TemporaryDirectory() as folder:
        before = run(groups, extract(chosen.at, Path(folder)))
    now = run(groups, PLUGIN / "src")
    found = {"at": chosen.at, "model": now["model"], "people": people(before, now), "bots": bots(before, now)}
    found["milliseconds"] = {name: [before["spent"][name], now["spent"][name]] for name in now["spent"]}
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    card = CARD.read_text(encoding="utf-8")
    start, end = card.index(TITLE), card.index("## Limits")
    CARD.write_text(card[:start] + table() + "\n" + card[end:], encoding="utf-8")
    print(table())


def held_out(data: Path) -> Texts:
    """``people: KIND`` and ``bots: SET``, none of which training saw."""
    visits = corpus.visits(data)
    samples = [s for s in [*corpus.crawlers(data), *corpus.browsers(data), *corpus.logged(visits)] if s.is_held_out]
    hand = {which: corpus.handmade(PLUGIN / "tests", which) for which in ("handmade", "second")}
    texts = [s.text for s in samples if not s.is_bot] + [text for peoples, _ in hand.values() for text in peoples]
    groups: Texts = {f"people: {kind}": [] for kind in [*KINDS, "other"]}
    for text in dict.fromkeys(texts):
        groups[f"people: {kind_of(text)}"].append(text)
    groups["bots: crawler families never seen"] = [s.text for s in samples if s.is_bot]
    groups["bots: hand-made"] = hand["handmade"][1]
    groups["bots: second hand-made"] = hand["second"][1]
    return groups


def kind_of(text: str) -> str:
    """The kind of device that a person's user agent is of."""
    return next((kind for kind, words in KINDS.items() if re.search(words, text)), "other")


def other_source(folder: Path) -> Texts:
    """Another source's people by their kinds, and its bots."""
    yaml = importlib.import_module("yaml")
    groups: Texts = {}
    for path in sorted(folder.glob("*.yml")):
        kind = re.sub(r"-\d+$", "", path.stem)
        rows = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
        name = "other source, bots" if kind == "bots" else f"other source, people: {OTHER_KINDS.get(kind, '')}"
        if not name.endswith(": "):
            groups.setdefault(name, []).extend(row["user_agent"] for row in rows if row.get("user_agent"))
    return {name: list(dict.fromkeys(texts)) for name, texts in groups.items()}


def extract(commit: str, folder: Path) -> Path:
    """The plugin's source as it was at ``commit``."""
    done = subprocess.run(
        ["git", "archive", commit, "src"], cwd=PLUGIN, check=True, capture_output=True
    )  # of this folder alone
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder / "src"


def run(groups: Texts, source: Path) -> dict[str, Any]:
    """Score all texts by the plugin whose source lies in ``source``."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(groups, file)
        file.flush()
        paths = os.pathsep.join([str(source), str(PLUGIN)])
        command = [sys.executable, "-m", "training.by_kind", "--texts", file.name]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=PLUGIN, env={**os.environ, "PYTHONPATH": paths}
        )
    found: dict[str, Any] = json.loads(done.stdout)
    if not found["source"].startswith(str(source)):
        raise RuntimeError(f"{found['source']} was measured; expected the plugin in {source}")
    return found


def score(groups: Texts) -> dict[str, Any]:
    """For each text: the whole service's score, and the model's probability alone."""
    service_module = importlib.import_module("antifraud.service")
    schema = importlib.import_module("antifraud.schema")
    service = service_module.Antifraud()
    service.load()
    scores: dict[str, list[tuple[float, float]]] = {}
    spent = {name: milliseconds(service, schema, texts) for name, texts in slow_and_usual(groups).items()}
    for name, texts in groups.items():
        rows: list[tuple[float, float]] = []
        for start in range(0, len(texts), service.max_batch_size):
            events = [service.preprocess(event(schema, text)) for text in texts[start : start + service.max_batch_size]]
            raw = service.predict_batch(events)
            rows += [(service.postprocess(one).score, one.user_agent or 0.0) for one in raw]
        scores[name] = rows
    return {"source": service_module.__file__, "model": service.version, "scores": scores, "spent": spent}


def slow_and_usual(groups: Texts) -> Texts:
    """The texts to time: people's user agents, and long ones that were made to be slow."""
    usual = [text for name, texts in groups.items() if name.startswith("people: ") for text in texts]
    return {"usual": usual, "made to be slow": [f"{'aaaaaaaa-' * 113}{n})" for n in range(10)]}


def milliseconds(service: Any, schema: Any, texts: list[str]) -> float:
    """The median of the processor's time for all lists and checks of one event whose user agent was not read before."""
    events = [event(schema, text) for text in ["warm", *texts]]
    spent = []
    for one in events:
        before = time.process_time()
        service.preprocess(one)
        spent.append((time.process_time() - before) * 1000)
    return round(float(np.median(spent[1:])), 3)


def event(schema: Any, text: str) -> Any:
    """An event of which the user agent alone is known."""
    return schema.Input(kind="impression", time="2026-08-22T10:15:09Z", device={"ua": text[:8192]})


def people(before: dict[str, Any], now: dict[str, Any]) -> list[dict[str, Any]]:
    """For each kind of people's devices, how many are flagged, and how many ``invalid``."""
    rows = []
    for name in before["scores"]:
        if "people" in name and before["scores"][name]:
            counts = {
                f"{verdict}_{when}": sum(total >= least for total, _ in found["scores"][name])
                for when, found in (("before", before), ("now", now))
                for verdict, least in (("flagged", 0.5), ("invalid", 0.9))
            }
            rows.append({"kind": name.replace("people: ", ""), "texts": len(before["scores"][name])} | counts)
    return rows


def bots(before: dict[str, Any], now: dict[str, Any]) -> list[dict[str, Any]]:
    """For each set of bots, the shares that are flagged, and found where 1 % of the same source's people are."""
    rows = []
    for name in before["scores"]:
        if "bots" in name:
            row: dict[str, Any] = {"set": name.replace("bots: ", ""), "texts": len(before["scores"][name])}
            for when, found in (("before", before), ("now", now)):
                scores = found["scores"]
                row[f"flagged_{when}"] = share([total for total, _ in scores[name]], 0.5)
                row[f"service_at_1_{when}"], row[f"model_at_1_{when}"] = (
                    at_one_percent(name, scores, i) for i in (0, 1)
                )
            rows.append(row)
    return rows


def share(values: list[float], least: float) -> float:
    """The share of values that are at least ``least``."""
    return round(float(np.mean(np.array(values) >= least)), 4)


def at_one_percent(name: str, scores: dict[str, Any], which: int) -> float:
    """The share of a set's bots above the score of 1 % of people, of the same source."""
    source = name.split("bots")[0] + "people"
    peoples = np.sort([row[which] for kind, rows in scores.items() if kind.startswith(source) for row in rows])
    limit = peoples[min(int(np.ceil(len(peoples) * 0.99)), len(peoples) - 1)]
    return round(float(np.mean(np.array([row[which] for row in scores[name]]) > limit)), 4)


def table() -> str:
    """The card's section, from the last measurement."""
    found = json.loads(RESULT.read_text())
    lines = [
        f"{TITLE}\n",
        f"The whole service, without an operator's files, of model {found['model']}, beside commit {found['at']}. Measured by "
        "`python -m training.by_kind` on texts that training never saw; the other source is the fixtures of PyPI's "
        "`device_detector` 6.5.1.\n",
        f"| people's devices | texts | flagged at {found['at']} | flagged now | invalid at {found['at']} | invalid now |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in found["people"]:
        cells = (row[key] for key in ("flagged_before", "flagged_now", "invalid_before", "invalid_now"))
        lines.append(f"| {row['kind']} | {row['texts']} | " + " | ".join(map(str, cells)) + " |")
    lines += [
        "\nBots found, at " + found["at"] + " → now. 1 % of the same source's people are above the line.\n",
        "| bots | texts | flagged | at 1 % false positives, the service's score | the same, the model alone |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in found["bots"]:
        pairs = (
            f"{row[f'{key}_before']:.1%} → {row[f'{key}_now']:.1%}" for key in ("flagged", "service_at_1", "model_at_1")
        )
        lines.append(f"| {row['set']} | {row['texts']} | " + " | ".join(pairs) + " |")
    for name, (before, now) in found["milliseconds"].items():
        lines.append(
            f"\nLists and checks of one event whose user agent was not read before, {name}: {before} → {now} ms (median)."
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
