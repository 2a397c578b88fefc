-- The keys of the ledger in Redis, and the names by which the scripts of this folder use them.
--
-- Each operation of the ledger is one script of this folder and changes its keys in one atomic step. It is called with
--   KEYS[1]  the service's name, which is also its Celery queue (a list of messages);
--   ARGV[1]  the operation's name;
--   ARGV[2]  remember_us: for how long after its record was dropped a job answers 410 instead of 404 (lib/lifetimes);
--   ARGV[3]  the date (RFC 3339) for Celery's results, see base/celery;
--   ARGV[4]… the arguments that the operation's file lists, from FIRST on.
-- A number in a name or a comment that ends in _us is in microseconds. Every time is a time of Redis's own clock, so no
-- host's clock matters.
--
-- record.py lists the fields of the records (S:job:<id>, S:batch:<id>, S:about), each with the files that write it, the
-- files that read it, and its meaning.
--
-- S is "{<service>}:". The braces are a hash tag: all keys of a service lie in the same slot of a Redis Cluster as its list.
--   <service>            list   Celery messages. Ours only announce that a job waits; those of other producers carry a job
--                               that is not adopted yet
--   S:job:<id>           hash   the record of a job; dropped keep_for_s after its end
--   S:batch:<id>         hash   the record of a batch (POST /batches). Its chunks are jobs <id>.0, <id>.1, …; they are in no
--                               index and their records live as long as the batch
--   S:pages              hash   batch -> the operation on its chunks that goes on page by page (lib/pages)
--   S:seen:<id>          string marks that a job existed, from its end on. The value is its API key's id, else 1; it lives
--                               remember_us longer than the record. S:seen:batch:<id>: the same for a batch, from its
--                               acceptance on
--   S:revoked:<id>       string marks that Celery's revoke named a job that the ledger does not know yet; lives remember_us
--   S:idempotency:<sha256> string a client's Idempotency-Key (hashed): "<job> <sha256 of the body>"; lives as long as the job
--   S:said:<id>          stream the latest "progress" and "log" events of a job, each under its number
--   S:partial:<id>       stream all partial outputs of a job, numbered together with those events. Both streams exist only
--                               for a job that published something, and live as long as its record
--   S:waiting            zset   queued jobs by urgency: the time of creation, or the turn, plus the priority's offset
--   S:chunks             zset   those of the queued jobs that are chunks; a forecast finds their places by it
--   S:delayed            zset   queued jobs that may not run yet (the pause before a retry), by the time at which they may
--   S:scheduled          zset   queued jobs whose "not_before" has not come, by that time
--   S:index              zset   every job that has a record, by the time of its creation
--   S:expires            zset   ended jobs by the time at which their record is dropped
--   S:owned:<key>        zset   every job of an API key that has a record, by the time of its creation
--   S:owned:expires      zset   ended jobs of API keys, "<key>:<job>", by the time at which their record is dropped
--   S:open               hash   API key -> the number of its jobs (of a batch: rows) that are queued or running
--   S:turns              hash   "<API key> <priority>" -> the turn of its next job; only while jobs of API keys wait
--   S:deadlines          zset   unfinished jobs with start_within_s or finish_within_s, by the earlier of the two deadlines
--   S:workers            zset   live workers by the time at which their lease expires
--   S:workers:info       hash   worker -> JSON: host, pid, state
--   S:running:<worker>   hash   job -> token of the claim under which this worker runs it
--   S:busy:<worker>      hash   pool process -> "<since_us> <rows> <ahead>": when its current run began (after its last run:
--                               when that ended, until the process asks for the next); the rows of a chunk, else 0; the
--                               number of a further claim of the process, else 0: it will run that before it claims again
--   S:taken:<worker>     hash   messages of other producers that this worker took and has not adopted yet, each under
--                               "<pool process> …"
--   S:cancels:<worker>   set    "<token> <job>": jobs that were cancelled while this worker runs them
--   S:about              hash   the service as its newest worker described it, and its counters
--   S:outbox             stream ends of jobs and batches with a webhook, each with the record as it ended (webhooks.py)
--   S:swept              string the time of the last sweep
--   S:cached:<key>, S:equals:<key>, S:leader:<key>: see lib/equal_jobs/keys
--   celery-task-meta-<id> string a job's result as stock Celery writes it (base/celery); lives as long as the record
--   services:schema      hash   "number" and "version": the schema of all these keys, and its release (data_schema.py)
--   services             set    every service that ever had a job or a worker; written by Python, since no slot of a Redis
--                               Cluster belongs to all services
-- Channel jobs:ended: a JSON array of the jobs and batches that have just ended. An entry is the id or, for a job whose
--                     client waits for it ("awaited") and that published nothing, the array that End in jobs.py reads,
--                     so that the API need not read the record.
-- Channel jobs:told:  a JSON array of ids: jobs that published something, "watched" jobs that began to run or are queued
--                     again, and "watched" batches whose counts have changed.

local service = KEYS[1]
local S = '{' .. service .. '}:'
local FIRST = 4
local ABOUT = S .. 'about'

local function record(id) return S .. 'job:' .. id end
