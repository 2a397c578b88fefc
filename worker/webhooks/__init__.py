"""Webhooks: signed requests to a caller's URL when a job or a batch ends.

In come ends of jobs, which the ledger notes in the service's outbox. The worker of the queue ``webhooks`` (``pool``)
makes a delivery of each (``outbox``), claims deliveries as jobs and sends them (``sender``). Out go HTTP requests and
the log of attempts (``log``), which the API shows. ``events`` defines the requests' bodies.
"""
