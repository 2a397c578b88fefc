"""all-MiniLM-L6-v2 in numpy: a BERT encoder of six layers, the mean of its tokens, normalised.

Sources: Devlin et al., "BERT" (arXiv:1810.04805); Reimers and Gurevych, "Sentence-BERT" (arXiv:1908.10084); Wang et
al., "MiniLM" (arXiv:2002.10957). All arrays are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

Array = np.ndarray[Any, np.dtype[np.float32]]

LAYERS, HEADS, WIDTH = 6, 12, 384
HEAD = WIDTH // HEADS
EPSILON = 1e-12
#: Added to the scores of padding, which then weighs nothing.
MASKED = np.float32(-1e9)
#: Numbers to one pass of the activation, so that they stay in the processor's cache.
CHUNK = 1 << 15


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights, laid out for ``x @ w + b``; the query's carry the scale of the attention."""

    qkv_w: Array  # (384, 1152)
    qkv_b: Array
    out_w: Array  # (384, 384)
    out_b: Array
    up_w: Array  # (384, 1536)
    up_b: Array
    down_w: Array  # (1536, 384)
    down_b: Array
    norms: tuple[tuple[Array, Array], tuple[Array, Array]]  #: after the attention, after the two dense layers


class Encoder:
    """The model. ``folder`` holds ``model.safetensors``."""

    def __init__(self, folder: Path) -> None:
        weights: dict[str, Array] = load_file(folder / "model.safetensors")
        self._words = weights["embeddings.word_embeddings.weight"]
        # Every text is of the first of BERT's two types.
        self._places = (
            weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
        )
        self._norm = _norm_of(weights, "embeddings.LayerNorm")
        self._layers = [_layer_of(weights, f"encoder.layer.{i}") for i in range(LAYERS)]

    def encode(self, texts: Sequence[Sequence[int]]) -> Array:
        """Embeddings, (texts, 384), of texts given as token ids; each is padded to the longest of them."""
        longest = max(map(len, texts))
        ids = np.zeros((len(texts), longest), dtype=np.int64)
        mask = np.zeros((len(texts), longest), dtype=np.float32)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = text
            mask[row, : len(text)] = 1
        x = normalise(self._words[ids] + self._places[:longest], *self._norm).reshape(-1, WIDTH)
        bias = None if mask.all() else ((1 - mask) * MASKED)[:, None, None, :]
        for layer in self._layers:
            x = _run_layer(layer, x, bias, len(texts), longest)
        tokens = x.reshape(len(texts), longest, WIDTH)
        pooled = (tokens * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        embeddings: Array = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return embeddings


def _run_layer(layer: Layer, x: Array, bias: Array | None, texts: int, longest: int) -> Array:
    """``x`` is (texts * longest, 384); so is the result."""
    attended = _attend(x @ layer.qkv_w + layer.qkv_b, bias, texts, longest) @ layer.out_w + layer.out_b
    x = normalise(attended + x, *layer.norms[0])
    hidden = gelu(x @ layer.up_w + layer.up_b) @ layer.down_w + layer.down_b
    return normalise(hidden + x, *layer.norms[1])


def _attend(qkv: Array, bias: Array | None, texts: int, longest: int) -> Array:
    """Attention of 12 heads over (texts * longest, 3 * 384)."""
    q, k, v = qkv.reshape(texts, longest, 3, HEADS, HEAD).transpose(2, 0, 3, 1, 4)
    scores = q @ k.transpose(0, 1, 3, 2)
    if bias is not None:
        scores += bias
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    attended: Array = (scores @ v).transpose(0, 2, 1, 3).reshape(-1, WIDTH)
    return attended


def normalise(x: Array, weight: Array, bias: Array) -> Array:
    """Layer normalisation over the last axis."""
    x = x - x.mean(axis=-1, keepdims=True)
    variance = np.einsum("...i,...i->...", x, x)[..., None] / x.shape[-1]
    x /= np.sqrt(variance + EPSILON)
    x *= weight
    x += bias
    return x


def gelu(x: Array) -> Array:
    """x Φ(x), in place. Φ is by Abramowitz and Stegun's formula 7.1.26 (error under 2e-7): numpy has no erf."""
    flat = x.reshape(-1)
    for begin in range(0, flat.size, CHUNK):
        part = flat[begin : begin + CHUNK]
        z = np.abs(part)
        z *= np.float32(0.5**0.5)
        t = 1 / (1 + np.float32(0.3275911) * z)
        series = t * np.float32(1.061405429)
        for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
            series += np.float32(factor)
            series *= t
        np.multiply(z, z, out=z)
        np.negative(z, out=z)
        np.exp(z, out=z)
        series *= z  # 1 - erf(|x| / √2)
        positive = part > 0
        series *= np.float32(0.5)
        np.subtract(1, series, out=series, where=positive)
        part *= series
    return x


def _norm_of(weights: dict[str, Array], name: str) -> tuple[Array, Array]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def _dense(weights: dict[str, Array], name: str) -> tuple[Array, Array]:
    return np.ascontiguousarray(weights[f"{name}.weight"].T), weights[f"{name}.bias"]


def _layer_of(weights: dict[str, Array], name: str) -> Layer:
    query, key, value = (_dense(weights, f"{name}.attention.self.{part}") for part in ("query", "key", "value"))
    scale = np.float32(HEAD**-0.5)
    return Layer(
        np.concatenate([query[0] * scale, key[0], value[0]], axis=1),
        np.concatenate([query[1] * scale, key[1], value[1]]),
        *_dense(weights, f"{name}.attention.output.dense"),
        *_dense(weights, f"{name}.intermediate.dense"),
        *_dense(weights, f"{name}.output.dense"),
        (_norm_of(weights, f"{name}.attention.output.LayerNorm"), _norm_of(weights, f"{name}.output.LayerNorm")),
    )
