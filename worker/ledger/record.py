"""The fields of the records in Redis: of a job, of a batch and of a service.

``written_by`` and ``read_by`` name the files of ``ledger/lua`` (without ``lib/`` and ``base/``) and the Python classes;
"*": many files. A test compares this with the code. Times are microseconds by Redis's clock; durations are
microseconds.
"""

from __future__ import annotations

from typing import NamedTuple


class Field(NamedTuple):
    """A field of a record."""

    written_by: str
    read_by: str
    meaning: str


#: ``S:job:<id>``: a job, or a chunk of a batch.
JOB_FIELDS: dict[str, Field] = {
    # the request
    "service": Field("create seal", "Job", "the service's name"),
    "version": Field("create seal claim", "Job ends history", "the service's version that read the input, or runs it"),
    "priority": Field("create seal", "Job equal_jobs/places retry sweep", "a Priority"),
    "created": Field("create seal pages", "* Job", "when the job was accepted, or its chunk was queued again"),
    "keep": Field("create seal", "ends AttachedJob Deliveries", "for how long the record is kept after the end"),
    "metadata": Field("NewJob", "Job Delivery", "JSON of the client; missing for {}"),
    "input": Field("create stage chunk_end", "Job claim create retry pages changes", "JSON; of a chunk: lines"),
    "start_within": Field("create", "ends retry", "how long after its queueing the job may start; 0: any time"),
    "finish_within": Field("create", "retry", "how long after its queueing the job may end; 0: any time"),
    "not_before": Field("create", "Job claim overview retry sweep", "the time before which the job does not run"),
    "idempotency": Field("create", "ends retry", "sha256 of the Idempotency-Key"),
    "body": Field("create", "create", "sha256 of the request, where the client made the id"),
    "webhook": Field("NewJob", "Job ends", "JSON by webhooks.dump_webhook"),
    "owner": Field("create seal", "Job ends equal_jobs/places retry sweep AttachedJob Owner", "id of the API key"),
    "awaited": Field("create", "ends", "1: the client waits for the end, which is published in full"),
    "celery": Field("create", "ends", "1: the result is written as stock Celery's, too"),
    "cache": Field("create", "*", "the wish of a job that shares results, see lib/equal_jobs/keys"),
    # the queue
    "status": Field(
        "create seal claim retry pages put_back ends equal_jobs/copies",
        "* Job StoredChunk Owner Holder",
        "a Status",
    ),
    "score": Field(
        "create seal pause retry pages sweep turns equal_jobs/places",
        "put_back pause retry sweep equal_jobs/places Delivery",
        "the place in the queue; until not_before comes, counted from that time",
    ),
    "turn": Field(
        "create seal pause retry pages sweep turns equal_jobs/places",
        "claim put_back pause retry sweep equal_jobs/places",
        "the turn that the score counts from; missing where the time of creation does",
    ),
    "start_by": Field("create retry claim equal_jobs/begun", "claim sweep", "deadline of the start; 0: none, or met"),
    "finish_by": Field("create retry", "claim sweep", "deadline of the end; 0: none"),
    "alone": Field("seal retry pages put_back", "claim", "1: the job is claimed by itself, as a chunk always is"),
    "takes": Field("equal_jobs/copies", "sweep", "id of the job whose output this job will end with"),
    # the runs
    "attempt": Field(
        "create seal claim put_back", "* Job Rerun Delivery", "the last run's number: charged runs, and itself"
    ),
    "base": Field("pause progress retry pages", "complete run_again Rerun Delivery", "attempts that no longer count"),
    "uncharged": Field("put_back", "run_again", "runs that came to nothing and did not count"),
    "max_attempts": Field("claim", "complete run_again Rerun", "charged attempts after base; of a chunk one more"),
    "worker": Field("claim", "* Job", "id of the worker that runs it, or ran it last"),
    "token": Field("claim", "* Job", "token of the claim under which it runs, or ran last: the fence"),
    "started": Field("claim equal_jobs/copies", "* Job Delivery", "when it was claimed"),
    "batch_size": Field("claim ends", "Job history run_again", "jobs that were run together"),
    "stopping": Field("stop_run", "equal_jobs/settle retry pages", "1: a cancel or a deadline ended its run"),
    "history": Field("history", "history Job", "attempts that did not succeed, a line of JSON each"),
    # events
    "progress": Field("say", "Job", "from 0 to 1, as the plugin reported it last"),
    "events": Field("say", "ends hear retry say", "number of its last event"),
    "said_by": Field("say", "say", "token of the run that published last"),
    "said": Field("say", "say", "number of that run's last event, within the run"),
    "watched": Field("hear", "claim put_back retry hear", "1: a client listens to its changes"),
    # the end
    "finished": Field("ends", "Job hear retry pages Holder", "when it ended"),
    "expires": Field("ends", "Job", "when the record is dropped"),
    "output": Field(
        "ends", "Job equal_jobs/results sweep StoredChunk Rerun", "JSON; of a chunk: lines after its parts"
    ),
    "error": Field("ends", "Job StoredChunk", "JSON"),
    "timings": Field("ends", "Job", "JSON: milliseconds of the stages"),
    "cached_from": Field("equal_jobs/copies", "Job", "id of the job whose output it took over"),
    # chunks
    "group": Field("stage", "Job chunks claim ends put_back run_again sweep Holder", "id of its batch"),
    "first": Field("stage", "claim StoredChunk", "number of its first row in the batch"),
    "rows": Field("stage pages", "claim ends forecast put_back pages seal StoredChunk", "rows of its input"),
    "bad": Field("chunk_end", "pages", "rows that failed in a chunk that succeeded"),
    "numbers": Field("chunk_end", "StoredChunk Rerun", "numbers of the rows of input, where these failed before"),
    "retried": Field("pause pages", "Rerun", "attempt at the last retry or pause"),
    "why": Field("put_back", "Rerun", "why the last run ended: lost, memory, timed_out, handed_back, paused, failed"),
    "partial": Field("partial_results", "Rerun", "result lines of an unfinished chunk, after the parts of so_far"),
    "so_far": Field("part", "complete Rerun", "'<series> <parts>' that precede partial, see lib/parts"),
    "merged": Field("part", "complete", "'<series> <parts>' into which the results of a retry are merged"),
    "out": Field("complete", "complete part StoredChunk Rerun", "'<series> <parts>' that precede output"),
}

#: ``S:batch:<id>``: a batch.
BATCH_FIELDS: dict[str, Field] = {
    "service": Field("seal", "StoredBatch", "the service's name"),
    "version": Field("seal", "StoredBatch", "the service's version that read the rows"),
    "priority": Field("seal", "StoredBatch pages", "a Priority"),
    "keep": Field("seal", "chunk_end", "for how long the record is kept after the end"),
    "metadata": Field("seal", "StoredBatch", "JSON of the client"),
    "rows": Field("seal", "StoredBatch", "number of its rows"),
    "chunks": Field("seal", "StoredBatch cancel_batch retry_batch pages chunk_end", "number of its chunks"),
    "open": Field("seal retry_batch chunk_end", "chunk_end", "chunks that have not ended"),
    "created": Field("seal", "StoredBatch hear_batch", "when it was accepted"),
    "webhook": Field("seal", "StoredBatch chunk_end", "JSON by webhooks.dump_webhook"),
    "owner": Field("seal", "StoredBatch retry_batch pages", "id of the API key"),
    "idempotency": Field("seal", "chunk_end retry_batch", "sha256 of the Idempotency-Key"),
    "running": Field("claim put_back ends", "StoredBatch", "rows of chunks that run"),
    "succeeded": Field("chunk_end", "StoredBatch", "rows that succeeded"),
    "failed": Field("chunk_end retry_batch", "StoredBatch retry_batch", "rows that failed"),
    "cancelled": Field("chunk_end retry_batch", "StoredBatch retry_batch", "rows that were cancelled"),
    "stopped": Field("cancel_batch", "StoredBatch pages", "1: a client cancelled it"),
    "finished": Field("chunk_end", "StoredBatch cancel_batch retry_batch pages", "when its last chunk ended"),
    "expires": Field("chunk_end", "StoredBatch pages", "when the record is dropped"),
    "begun": Field("retry_batch", "StoredBatch pages", "when its rows were queued again"),
    "retry": Field("retry_batch", "retry_batch", "id of the last request to run it again"),
    "watched": Field("hear_batch", "hear_batch batches", "1: a client listens to its changes"),
}

#: ``S:about``: a service. ``Overview`` reads the counters, too: "ended:<status>" (jobs), "inputs:<status>" (rows of
#: batches) and "requeued:<why>" (attempts after which a job was queued again).
ABOUT_FIELDS: dict[str, Field] = {
    "version": Field("tell", "create Overview", "the service's version"),
    "knobs": Field("tell", "forecast Overview", "JSON"),
    "max_queue_size": Field("tell", "create room Overview", "jobs that may wait; 0: any number"),
    "max_queue_bytes": Field("tell", "create room Overview", "bytes of inputs that may wait; 0: any number"),
    "cache_for": Field("tell", "create", "for how long results are taken over"),
    "model": Field("tell", "create tell", "hash of version and knobs in the keys of equal jobs"),
    "failure": Field("fail", "Overview", "JSON: why the plugin cannot be loaded"),
    "waiting_bytes": Field("commit", "create room Overview", "bytes of the inputs of queued jobs"),
    "parked": Field(
        "equal_jobs/join equal_jobs/places equal_jobs/settle", "create room Overview", "jobs that wait for an equal"
    ),
    "reused": Field("equal_jobs/copies", "Overview", "jobs that ended with the output of another job"),
    "rate": Field("complete", "rate Overview", "jobs that end in a second"),
    "rate_at": Field("complete", "rate Overview", "when the rate was measured"),
    "pace": Field("measure", "claim measure turns", "the time that a pool process takes for an input"),
    "batch_time": Field("measure", "measure forecast", "the time of a claim's jobs: '<mean> <weight> <when>'"),
    "row_time": Field("measure", "measure forecast", "the same for a row of a chunk"),
    "turn": Field("claim turns", "turns pause sweep", "the turn of the job that was claimed last"),
}

#: The fields that Python reads together, in the order in which the reader unpacks them.
CHUNK_FIELDS = ("status", "output", "error", "first", "rows", "numbers", "out")  # StoredChunk
RERUN_FIELDS = (  # Rerun
    *("partial", "why", "numbers", "output", "so_far", "out"),
    *("attempt", "base", "max_attempts", "retried"),
)
DELIVERY_FIELDS = ("metadata", "attempt", "base", "started", "score")  # Delivery
ATTACHED_JOB_FIELDS = ("owner", "keep")  # AttachedJob: whose the files of an output are, and for how long
OWNER_FIELDS = ("status", "owner")  # Owner: which files an input may use
HOLDER_FIELDS = ("status", "finished", "group")  # Holder: whether a job still needs its files


def fields_of(reader: str) -> tuple[str, ...]:
    """The fields of a job's record that this class reads."""
    return tuple(name for name, field in JOB_FIELDS.items() if reader in field.read_by.split())
