"""Tells happy texts from sad ones. The worker alone imports this module: it may import anything."""

from __future__ import annotations

from libs_service import Service

from .schema import Input, Output


class PluginName(Service[Input, Output]):
    """Counts words that it knows. Replace it by your model; the verbs stay."""

    max_batch_size = 64  # most inputs to one predict_batch; `services bench` proposes a number

    def load(self) -> None:
        """Once in each process: weights, and imports that are heavy.

        A model's file lies in this package, beside this module: `Path(__file__).parent / "model.bin"`.
        """
        self.words = {"lovely": 1.0, "awful": -1.0}

    def preprocess(self, input: Input) -> list[str]:
        """Each input by itself; one that raises here fails alone."""
        return input.text.lower().split()

    def predict_batch(self, batch: list[list[str]]) -> list[float]:
        """All of a batch in one call of the model: as many results as items, in the same order."""
        return [sum(self.words.get(word, 0.0) for word in words) for words in batch]

    def postprocess(self, raw: float) -> Output:
        """Each result by itself."""
        return Output(score=max(-1.0, min(1.0, raw)))
