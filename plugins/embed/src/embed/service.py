"""Sentence embeddings by all-MiniLM-L6-v2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from embed.schema import Input, Output
from embed.weights import MODEL_VERSION, find_model
from worker.service import Service

#: Tokens that the model was made for; longer texts are cut off, as sentence-transformers does.
MAX_TOKENS = 256
#: Texts are padded to the longest of a bucket, whose lengths differ by at most this factor (over it up to 16 tokens).
BUCKET_RATIO = 1.5


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text as the model reads it."""

    ids: list[int]
    truncated: bool


class Embed(Service[Input, Output]):
    """A text becomes 384 numbers."""

    max_batch_size = 64

    def load(self) -> None:
        """Weights and tokenizer, after a look at their checksums."""
        from tokenizers import Tokenizer

        from embed.encoder import Encoder

        folder = find_model()
        self.encoder = Encoder(folder)
        self.tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(MAX_TOKENS)

    def warmup(self) -> None:
        """The first product of two matrices starts the library's threads."""
        self.predict_batch([self.preprocess(Input(text="hello world"))])

    def preprocess(self, input: Input) -> Tokens:
        """Cut into tokens."""
        found = self.tokenizer.encode(input.text)
        return Tokens(found.ids, bool(found.overflowing))

    def bucket(self, features: Tokens) -> int:
        """By length: 1 to 16 tokens, to 24, to 36, and so on."""
        bound = 16.0
        while len(features.ids) > bound:
            bound *= BUCKET_RATIO
        return int(bound)

    def predict_batch(self, batch: list[Tokens]) -> list[Any]:
        """All of a bucket in one pass."""
        embeddings = self.encoder.encode([item.ids for item in batch]).tolist()
        return list(zip(embeddings, batch, strict=True))

    def postprocess(self, raw: tuple[list[float], Tokens]) -> Output:
        """Rounded to seven digits: single precision has no more."""
        embedding, tokens = raw
        rounded = [round(number, 7) for number in embedding]
        return Output(
            embedding=rounded, tokens=len(tokens.ids), truncated=tokens.truncated, model_version=MODEL_VERSION
        )
