-- advance: the next page of a cancel or a retry of a batch.
--
-- Arguments: group (the batch's id).
-- Answer: 1 where further pages follow, 2 where they wait for room in the queue, else 0.
-- A repeated call does the page after; where there is none, it changes nothing.
--@ include "lib/allow_when_full" "lib/commit" "lib/pages"

return commit(advance(ARGV[FIRST]))
