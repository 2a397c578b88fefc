-- leave: a worker stops. The jobs that it has not finished are queued again at once, without a charge.
--
-- Arguments: worker.
-- Answer: the ids of these jobs.
-- A repeated call finds no such worker, and changes nothing.
--@ include "lib/allow_when_full" "lib/commit" "lib/forget_worker"

return commit(forget_worker(ARGV[FIRST], 'handed_back'))
