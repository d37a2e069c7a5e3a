"""A real herenow process for the tests: its own port, its own directory, its own credentials. Nothing here waits without a limit."""

from __future__ import annotations

import http.server
import itertools
import json
import os
import pathlib
import socket
import subprocess
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from typing import TypeVar

import httpx
import pytest

ROOT = pathlib.Path(__file__).parents[3]
BINARY = os.environ.get("HERENOW_BIN", str(ROOT / "target/debug/herenow"))

T = TypeVar("T")

_names = itertools.count()


def user(name: str) -> str:
    """A user whom no other test has, so that tests can share a process."""
    return f"{name}-{next(_names)}"


def until(what: str, condition: Callable[[], T], within_s: float = 10) -> T:
    """What `condition` gives once it is truthy."""
    end = time.monotonic() + within_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, f"not within {within_s} s: {what}"
        time.sleep(0.02)


class Herenow:
    def __init__(self, directory: pathlib.Path, toml: str = "") -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._directory = directory
        self._log = directory / "log"
        (directory / "herenow.toml").write_text(
            f'data_dir = "{directory}/data"\nserver.listen = "127.0.0.1:{port}"\nserver.admin_listen = ""\nserver.drain_s = 1\n{toml}'
        )
        self.begin()

    def begin(self) -> None:
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [BINARY, "serve"],
                cwd=self._directory,
                env={"PATH": os.environ["PATH"], "RUST_BACKTRACE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        until("herenow is ready", self._ready, 20)
        self.api_key = tomllib.loads((self._directory / "data/credentials.toml").read_text())["api_key"]
        self.backend = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.api_key}"}, trust_env=False)

    def _ready(self) -> bool:
        assert self._process.poll() is None, self.log()
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False).is_success
        except httpx.TransportError:
            return False

    def log(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        """As a power cut ends it."""
        self._process.kill()
        self._process.wait(10)
        self.backend.close()

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


@pytest.fixture(scope="session")
def herenow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Herenow]:
    # The longest that there is, so that whatever `ttl_ms` the document allows is allowed.
    process = Herenow(tmp_path_factory.mktemp("herenow"), "store.retention_s = 315360000\n")
    yield process
    process.kill()


class Receiver:
    """An operator's endpoint, which takes everything."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        got = self.got

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                got.append((self.path, dict(self.headers), body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def about(self, message: str) -> list[tuple[str, dict[str, str], bytes]]:
        return [one for one in self.got if message in json.dumps(json.loads(one[2])["data"])]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    endpoint = Receiver()
    yield endpoint
    endpoint.close()
