"""Webhooks by the Standard Webhooks specification, from the receiver's side."""

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

#: Seconds by which a webhook's time may differ from this host's.
TOLERANCE_S = 300.0
PREFIX = "whsec_"


def verify_webhook(
    headers: Mapping[str, str], body: bytes | str, secrets: str | Sequence[str], *, tolerance_s: float = TOLERANCE_S
) -> Any:
    """The event that a webhook brings, once it is sure that the server sent it. Raises ``InvalidWebhook``.

    Args:
        headers: the request's, in any case: ``webhook-id``, ``webhook-timestamp``, ``webhook-signature``.
        body: the request's, byte for byte as it came; a body that was parsed and written again has another signature.
        secrets: ``whsec_…``; while one is being replaced, both.
        tolerance_s: by how much the time may differ; an older webhook may be a recorded one that is sent again.
    """
    given = {name.lower(): value for name, value in headers.items()}
    missing = [name for name in ("webhook-id", "webhook-timestamp", "webhook-signature") if not given.get(name)]
    if missing:
        raise InvalidWebhook(f"the header {missing[0]} is missing")
    _check_time(given["webhook-timestamp"], tolerance_s)
    text = body.encode() if isinstance(body, str) else body
    signed = f"{given['webhook-id']}.{given['webhook-timestamp']}.".encode() + text
    signatures = [s.partition(",")[2] for s in given["webhook-signature"].split() if s.startswith("v1,")]
    keys = [_read_secret(secret) for secret in ([secrets] if isinstance(secrets, str) else secrets)]
    expected = [base64.b64encode(hmac.digest(key, signed, hashlib.sha256)) for key in keys]
    # Every pair is compared, each in constant time, so that the time taken tells nothing of the signature.
    fits = [hmac.compare_digest(ours, theirs.encode()) for ours in expected for theirs in signatures]
    if not any(fits):
        raise InvalidWebhook("no signature fits: another secret, or the body is not as it was sent")
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
        raise ValueError(f"a webhook's secret is {PREFIX}<base64>; this one is no base64") from error
    if not key:
        raise ValueError("a webhook's secret must not be empty")
    return key
