"""The containers of docker-compose.yml, up and healthy (scripts/test-compose sees to that), and devices that come back by themselves."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import threading
from collections.abc import Iterator
from typing import Self

import httpx
import httpx_sse
import pytest

from api import Api, until

ROOT = pathlib.Path(__file__).parents[2]
API_KEY = os.environ.get("HERENOW_API_KEY", "dev-api-key")
NODES = {"node1": "http://127.0.0.1:8081", "node2": "http://127.0.0.1:8082"}
DOORS = {"nginx": "http://127.0.0.1:8080", **NODES}
RECEIVER = "http://127.0.0.1:8090"
PROMETHEUS = "http://127.0.0.1:9090"


def compose(*arguments: str, stdin: str = "") -> str:
    done = subprocess.run(
        ["docker", "compose", *arguments], cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"docker compose {arguments}: {done.stderr}"
    return done.stdout


def containers() -> dict[str, dict]:
    """What Docker says of each service's container."""
    ids = compose("ps", "--all", "--quiet").split()
    inspected = json.loads(subprocess.check_output(["docker", "inspect", *ids], timeout=60))
    return {one["Config"]["Labels"]["com.docker.compose.service"]: one for one in inspected}


def get(url: str, **params: str) -> dict:
    return httpx.get(url, params=params, trust_env=False).raise_for_status().json()


def away(node: str) -> list[str]:
    """What keeps a node from being ready."""
    return httpx.get(f"{NODES[node]}/readyz", trust_env=False).json()["away"]


def called_back(path: str, about: str) -> list[dict]:
    """The callbacks that the receiver got and verified."""
    return [one for one in get(f"{RECEIVER}/events", about=about)["events"] if one["path"] == path]


def start(*services: str) -> None:
    """Starts what is stopped, all if none is named, and waits until it is healthy."""
    compose("up", "--detach", "--no-deps", "--no-recreate", "--wait", "--wait-timeout", "90", *services)


@pytest.fixture
def healthy() -> Iterator[None]:
    """For tests that break something: all is whole again after them."""
    yield
    start()


@pytest.fixture(scope="session")
def doors() -> dict[str, Api]:
    return {name: Api(url, API_KEY) for name, url in DOORS.items()}


class Device:
    """A device at one of the doors. When its stream ends it comes again from where it was, as an EventSource does, unless `once`."""

    def __init__(self, api: Api, user: str, name: str, once: bool = False) -> None:
        self.nodes: list[str] = []
        self.messages: list[dict] = []
        self.byes: list[str] = []
        self.once = once
        self._api = api
        self._headers = {"Authorization": f"Bearer {api.token(user, name)}"}
        self._socket: socket.socket | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        until("the device is here", lambda: self.nodes)
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        while self._thread.is_alive():
            if self._socket:
                try:
                    self._socket.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # it ended by itself
            self._thread.join(0.1)

    def payloads(self) -> list[object]:
        return [message["payload"] for message in self.messages]

    def _live(self) -> None:
        with httpx.Client(base_url=self._api.url, timeout=httpx.Timeout(5, read=30), trust_env=False) as client:
            while not self._closed.is_set():
                try:
                    self._connection(client)
                except (httpx.HTTPError, httpx_sse.SSEError):
                    pass  # no node, or one that has just died
                if self.once:
                    return
                self._closed.wait(0.2)

    def _connection(self, client: httpx.Client) -> None:
        with httpx_sse.connect_sse(client, "GET", "/v1/stream", headers=self._headers) as source:
            self._socket = source.response.extensions["network_stream"].get_extra_info("socket")
            for event in source.iter_sse():
                self._take(event)

    def _take(self, event: httpx_sse.ServerSentEvent) -> None:
        if not event.data:
            return  # a heartbeat: once there was an id, httpx-sse takes the empty line after the comment for an event
        match event.event:
            case "ready":
                self.nodes.append(event.json()["node"])
            case "message":
                self.messages.append(event.json())
                if event.id:
                    self._headers["Last-Event-ID"] = event.id
            case "bye":
                self.byes.append(event.json()["reason"])
