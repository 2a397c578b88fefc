"""For operators: ``GET /metrics``, the console at ``/``, and the watch for workers of another version.

In come counts of this process's requests (``meter``) and the ledger's overview of each service.
Out go Prometheus text (``metrics``), the console's files (``console``) and warnings in the log (``versions``).
"""
