"""Access: the gate that every request passes.

In comes every request (``gate``, plain ASGI): its headers, host, API key, rate and the time that its body takes.
Out go a caller with its scopes, or 401, 403 and 429; and the audit log. ``keyring`` holds the API keys in memory.
"""
