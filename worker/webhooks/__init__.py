"""Webhooks: signed requests to a caller's URL when a job or a batch ends.

Input: ends of jobs, which the ledger writes into the service's outbox. The worker of the queue ``webhooks`` (``pool``)
makes a delivery of each event (``outbox``), claims deliveries as jobs and sends them (``sender``). Output: HTTP
requests, and the log of attempts (``log``), which the API shows. ``events`` defines the requests' bodies.
"""
