"""Verifies webhooks by the Standard Webhooks specification (https://www.standardwebhooks.com).

The library ``standardwebhooks`` is not used; ``docs/architecture/decisions.md`` gives the reason.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from libs_service_client.errors import InvalidWebhook

#: Largest difference in seconds between a webhook's time and this host's clock.
TOLERANCE_S = 300.0
PREFIX = "whsec_"


def verify_webhook(
    headers: Mapping[str, str], body: bytes | str, secrets: str | Sequence[str], *, tolerance_s: float = TOLERANCE_S
) -> Any:
    """Verify that the server has sent a webhook, and return its event. Raises ``InvalidWebhook``.

    Args:
        headers: the request's headers, with names in upper or lower case.
        body: the request's body as received; a body that was parsed and written again has another signature.
        secrets: ``whsec_…``; the old and the new secret while the secret is being replaced.
        tolerance_s: largest difference in seconds from this host's clock; an older webhook may be a replay.
    """
    values = {name.lower(): value for name, value in headers.items()}
    missing = [name for name in ("webhook-id", "webhook-timestamp", "webhook-signature") if not values.get(name)]
    if missing:
        raise InvalidWebhook(f"the header {missing[0]} is missing")
    _check_time(values["webhook-timestamp"], tolerance_s)
    text = body.encode() if isinstance(body, str) else body
    signed = f"{values['webhook-id']}.{values['webhook-timestamp']}.".encode() + text
    signatures = [s.partition(",")[2] for s in values["webhook-signature"].split() if s.startswith("v1,")]
    keys = [_read_secret(secret) for secret in ([secrets] if isinstance(secrets, str) else secrets)]
    expected = [base64.b64encode(hmac.digest(key, signed, hashlib.sha256)) for key in keys]
    # Every pair is compared in constant time, so that the duration reveals nothing about the signature.
    matches = [hmac.compare_digest(ours, theirs.encode()) for ours in expected for theirs in signatures]
    if not any(matches):
        raise InvalidWebhook("no signature matches: the secret differs, or the body was changed")
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidWebhook("the body is not JSON") from error


def _check_time(text: str, tolerance_s: float) -> None:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise InvalidWebhook("webhook-timestamp: expected seconds since the epoch")
    age = time.time() - int(text)
    if abs(age) > tolerance_s:
        raise InvalidWebhook(f"the webhook is {age:.0f} s old; at most {tolerance_s:g} s either way are allowed")


def _read_secret(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"a webhook's secret is {PREFIX}<base64>; this secret is not base64") from error
    if not key:
        raise ValueError("a webhook's secret must not be empty")
    return key
