"""Connections to other machines: which addresses are allowed, clients for Redis, signatures.

In come URLs of settings and callers. Out go clients (``redis_clients``), checked addresses (``addresses``: nothing that
a caller names may lead into the private network) and the headers of a signed webhook (``signing``).
"""
