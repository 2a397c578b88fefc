"""The worker's processes: which run batches, under which lease, and how they end.

Input: the queues of ``-Q`` (``slots.ServicePool``, which Celery starts). Each slot has a pool process (``child``),
which claims its next batch (``feeder``) and runs it (``worker.inference``). One thread renews the worker's lease
(``lease``). Output: enforced limits, cancels and restarts. A process that dies, hangs or grows too large is replaced,
and its jobs run again.
"""
