"""Batches over HTTP: many inputs sent as one.

In come NDJSON bodies of any length (``routes``), which are stored as chunks while they arrive (``submit``).
Out go the batch's state, its results in the order of its rows, and its events (``events``).
"""
