"""The inputs of a batch on their way through the stages, as columns: which go on, and why the others do not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from worker.errors import PLUGIN_ERRORS, Cancelled, ServicesError
from worker.progress import JobLog, current
from worker.settings import MAX_OUTPUT_BYTES

#: The end of an input: its output as JSON, or the error for which it has none.
Outcome = bytes | ServicesError

Verb = Callable[..., Any]
#: Gives the error that an input ends with for which a verb raised this.
NameFailure = Callable[[BaseException], ServicesError]


class BatchItems:
    """Inputs that go through the stages together; one that fails keeps its error and goes no further.

    Values are columns, and a verb is called by C's loop: by loops of our own over an object for each input, a batch of
    4,096 rows took a twentieth longer, of which two thirds are the model's (measured).

    Args:
        inputs: their JSON.
        job_ids: of each, for its events and for ``cancelled``; empty where the inputs are rows of a chunk.
        cancelled: ids of the jobs that are no longer wanted; it may grow meanwhile.
        most_bytes: of one output as JSON.
    """

    def __init__(
        self,
        inputs: Sequence[Any],
        job_ids: Sequence[str] = (),
        cancelled: Collection[str] = (),
        most_bytes: int = MAX_OUTPUT_BYTES,
    ) -> None:
        self.values: list[Any] = list(inputs)  #: input JSON → Input → features → raw → Output → output JSON
        self.job_ids: Sequence[str] = job_ids  #: the jobs that the values belong to; empty for rows of a chunk
        self.most_bytes = most_bytes
        self._cancelled = cancelled
        self._places: Sequence[int] = range(len(inputs))  # of the values among the inputs
        self._errors: dict[int, ServicesError] = {}  # by place

    def each(self, verb: Verb, name_failure: NameFailure) -> None:
        """Replace each value by the result of ``verb``; an input for which it raises keeps the error and stops here."""
        self.values = self.ask_each(verb, name_failure)

    def ask_each(self, verb: Verb, name_failure: NameFailure) -> list[Any]:
        """As ``each``, but leave the values: gives the results of ``verb`` for the inputs that continue."""
        self.drop_cancelled()
        speech = current()
        columns = [iter(self.values)]
        if self.job_ids:
            verb, columns = partial(_say_whose, speech, verb), [iter(self.job_ids), *columns]
        made: list[Any] = []
        failures: dict[int, ServicesError] = {}
        while len(made) < len(self.values):
            try:
                made.extend(map(verb, *columns))  # where one raises, the list keeps the results before it
                if len(made) < len(self.values):
                    raise StopIteration  # the verb did, which ends a loop as an end does
            except PLUGIN_ERRORS as error:
                failures[len(made)] = name_failure(error)
                made.append(None)
        if self.job_ids:
            speech.jobs = ()
        self.drop(failures)
        return [one for i, one in enumerate(made) if i not in failures] if failures else made

    def drop(self, failures: Mapping[int, ServicesError]) -> None:
        """Let these values go no further, given by their indices."""
        if failures:
            self._errors.update({self._places[i]: error for i, error in failures.items()})
            going_on = [i for i in range(len(self.values)) if i not in failures]
            self.values = [self.values[i] for i in going_on]
            self.job_ids = [self.job_ids[i] for i in going_on] if self.job_ids else ()
            self._places = [self._places[i] for i in going_on]

    def drop_cancelled(self) -> None:
        """Let those go no further that are no longer wanted."""
        if self._cancelled:
            self.drop({i: Cancelled() for i, job_id in enumerate(self.job_ids) if job_id in self._cancelled})

    def is_cancelled(self, job_id: str) -> bool:
        """Whether this job is no longer wanted."""
        return job_id in self._cancelled

    @property
    def has_failed(self) -> bool:
        """Whether any input did."""
        return bool(self._errors)

    def part(self, indices: Sequence[int]) -> BatchItems:
        """Some of the values, to go on by themselves; their outcomes are to be brought back."""
        job_ids = [self.job_ids[i] for i in indices] if self.job_ids else ()
        return BatchItems([self.values[i] for i in indices], job_ids, self._cancelled, self.most_bytes)

    def outcomes(self) -> list[Any]:
        """Each input's value or error, in order; after the last stage, an ``Outcome``."""
        if not self._errors:
            return self.values
        ended = dict(zip(self._places, self.values, strict=True)) | self._errors
        return [ended[place] for place in range(len(ended))]


def _say_whose(speech: JobLog, verb: Verb, job_id: str, value: Any) -> Any:
    speech.jobs = (job_id,)
    return verb(value)
