"""``verify_webhook``, with the specification's own vector and the public ``standardwebhooks`` library's signatures."""

from __future__ import annotations

import base64
import json
import time
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook

from api.client import InvalidWebhook, verify_webhook

SECRET = "whsec_" + base64.b64encode(b"k" * 24).decode()
OTHER = "whsec_" + base64.b64encode(b"o" * 32).decode()
BODY = json.dumps({"type": "job.succeeded", "data": {"text": "zwölf"}}).encode()


def signed(age_s: float = 0, secret: str = SECRET) -> dict[str, str]:
    """The headers of a webhook that was sent so long ago."""
    sent = time.time() - age_s
    signature = Webhook(secret).sign("msg_1", datetime.fromtimestamp(sent, UTC), BODY.decode())
    return {"Webhook-Id": "msg_1", "WEBHOOK-TIMESTAMP": str(int(sent)), "webhook-signature": signature}


def test_the_specifications_vector() -> None:
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    assert verify_webhook(headers, '{"test": 2432232314}', secret, tolerance_s=1e12) == {"test": 2432232314}
    with pytest.raises(InvalidWebhook, match="s old"):
        verify_webhook(headers, '{"test": 2432232314}', secret)


def test_signatures_of_the_public_library_are_accepted() -> None:
    assert verify_webhook(signed(), BODY, SECRET) == json.loads(BODY)
    assert verify_webhook(signed(), BODY.decode(), [OTHER, SECRET]), "while a secret is being replaced"
    both = signed(secret=OTHER)["webhook-signature"] + " v1a,other " + signed()["webhook-signature"]
    assert verify_webhook({**signed(), "webhook-signature": both}, BODY, SECRET)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"webhook-signature": "v1,AAAA"}, "no signature"),
        ({"webhook-signature": "v1,ümlaut"}, "no signature"),
        ({"webhook-signature": "v2," + signed()["webhook-signature"][3:]}, "no signature"),
        ({"webhook-signature": ""}, "webhook-signature is missing"),
        ({"Webhook-Id": "msg_2"}, "no signature"),
        ({"WEBHOOK-TIMESTAMP": "soon"}, "expected seconds"),
    ],
)
def test_foreign_webhooks_are_refused(changes: dict[str, str], reason: str) -> None:
    with pytest.raises(InvalidWebhook, match=reason):
        verify_webhook({**signed(), **changes}, BODY, SECRET)


def test_changed_old_and_unsigned_webhooks_are_refused() -> None:
    for body, secret in ((BODY + b" ", SECRET), (BODY, OTHER), (BODY, [])):
        with pytest.raises(InvalidWebhook, match="no signature"):
            verify_webhook(signed(), body, secret)
    with pytest.raises(InvalidWebhook, match="no signature"):
        verify_webhook({**signed(), "WEBHOOK-TIMESTAMP": str(int(time.time()) - 20)}, BODY, SECRET)
    for age in (301.0, -301.0):
        with pytest.raises(InvalidWebhook, match="s old"):
            verify_webhook(signed(age), BODY, SECRET)
    assert verify_webhook(signed(290), BODY, SECRET)
    for secret in ("whsec_", "whsec_n*t"):
        with pytest.raises(ValueError, match="secret"):
            verify_webhook(signed(), BODY, secret)
