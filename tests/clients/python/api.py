"""The API as a backend of the tests speaks it, and how they wait."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TypeVar

import httpx

T = TypeVar("T")


def user(name: str) -> str:
    """A user whom no other test has, and no other run, so that they can share a herenow."""
    return f"{name}-{secrets.token_hex(4)}"


def until(what: str, condition: Callable[[], T], within_s: float = 10) -> T:
    """What `condition` gives once it is truthy."""
    end = time.monotonic() + within_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, f"not within {within_s} s: {what}"
        time.sleep(0.02)


class Api:
    """A backend of the herenow at `url`."""

    def __init__(self, url: str, api_key: str) -> None:
        self.url = url
        self.api_key = api_key
        self.backend = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {api_key}"}, trust_env=False)

    def token(self, name: str, device: str | None = None) -> str:
        body = {"user": name} | ({"device": device} if device else {})
        return self.must("POST", "/v1/tokens", json=body)["token"]

    def must(self, method: str, path: str, **request: object) -> dict:
        response = self.backend.request(method, path, **request)
        assert response.is_success, response.text
        return response.json() if response.content else {}

    def store(self, sender: str, recipient: str, payload: object) -> str:
        """The cursor of a persisted message."""
        body = {"from": sender, "to": {"users": [recipient]}, "type": "chat", "payload": payload}
        return self.must("POST", "/v1/messages", json=body)["recipients"][0]["cursor"]

    def signal(self, sender: str, recipient: str, payload: object) -> str:
        """What became of an online-only message."""
        body = {"from": sender, "to": {"users": [recipient]}, "type": "typing", "payload": payload, "online_only": True}
        return self.must("POST", "/v1/messages", json=body)["recipients"][0]["outcome"]
