"""PyPI's `standardwebhooks` verifies what herenow's callbacks bear, unchanged."""

from __future__ import annotations

import base64
import json
import pathlib

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from api import until, user
from conftest import Herenow, Receiver

NEW, OLD, OTHER = ("whsec_" + base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2, 3))


def test_callbacks_verify_with_each_secret_and_no_other(tmp_path: pathlib.Path, receiver: Receiver) -> None:
    herenow = Herenow(
        tmp_path,
        f"""
[callbacks.storage]
url = "{receiver.url}/storage"
secrets = ["{NEW}", "{OLD}"]
[callbacks.push]
url = "{receiver.url}/push"
secrets = ["{NEW}", "{OLD}"]
""",
    )
    try:
        alice, bob = user("alice"), user("bob")
        body = {"from": alice, "to": {"users": [bob]}, "type": "chat", "payload": {"text": "schön 💬"}, "push": {"title": "Alice"}}
        sent = herenow.must("POST", "/v1/messages", json=body)
        until("both callbacks", lambda: len(receiver.about(sent["id"])) == 2)
        callbacks = {path: (headers, content) for path, headers, content in receiver.about(sent["id"])}
        for headers, content in callbacks.values():
            for known in (NEW, OLD):
                assert Webhook(known).verify(content, headers) == json.loads(content)
            for secret, text in [(OTHER, content), (NEW, content.replace("schön".encode(), b"schon"))]:
                with pytest.raises(WebhookVerificationError):
                    Webhook(secret).verify(text, headers)
        storage = json.loads(callbacks["/storage"][1])
        assert (storage["type"], storage["data"]["message"]["payload"]) == ("message.stored", {"text": "schön 💬"})
        push = json.loads(callbacks["/push"][1])
        assert (push["type"], push["data"]["recipient"], push["data"]["push"]) == ("message.push", bob, {"title": "Alice"})
    finally:
        herenow.kill()
