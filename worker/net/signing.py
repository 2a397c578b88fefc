"""Signatures by the Standard Webhooks specification (https://www.standardwebhooks.com), version ``v1``.

``docs/architecture/decisions.md`` gives the reason why the library ``standardwebhooks`` is used in tests only.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Sequence

PREFIX = "whsec_"
#: Bytes of a secret: the specification's limits, and the size of those made here.
MIN_BYTES, MAX_BYTES, MADE_BYTES = 24, 64, 32


def make_secret() -> str:
    """A new random secret."""
    return PREFIX + base64.b64encode(os.urandom(MADE_BYTES)).decode()


def parse_secret(text: str) -> bytes:
    """The key in a secret. Raises ``ValueError``, whose text does not contain the secret."""
    expected = f"expected {PREFIX} and {MIN_BYTES} to {MAX_BYTES} bytes in base64; `services webhooks new` makes one"
    if not text.startswith(PREFIX):
        raise ValueError(expected)
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError(expected) from error
    if not MIN_BYTES <= len(key) <= MAX_BYTES:
        raise ValueError(expected)
    return key


def sign(secrets: Sequence[str], message_id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
    """The three headers of a webhook, signed with each secret. A receiver needs only one of them."""
    content = b"%b.%d.%b" % (message_id.encode(), timestamp_s, body)
    signed = [hmac.digest(parse_secret(secret), content, hashlib.sha256) for secret in secrets]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in signed),
    }
