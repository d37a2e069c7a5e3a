"""A real herenow process for the tests: its own port, its own directory, its own credentials. Nothing here waits without a limit."""

from __future__ import annotations

import http.server
import json
import os
import pathlib
import socket
import subprocess
import threading
import tomllib
from collections.abc import Iterator

import httpx
import pytest

from api import Api, until

ROOT = pathlib.Path(__file__).parents[3]
BINARY = os.environ.get("HERENOW_BIN", str(ROOT / "target/debug/herenow"))


class Herenow(Api):
    def __init__(self, directory: pathlib.Path, toml: str = "") -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        self._log = directory / "log"
        (directory / "herenow.toml").write_text(
            f'data_dir = "{directory}/data"\nserver.listen = "127.0.0.1:{port}"\nserver.admin_listen = ""\nserver.drain_s = 1\n{toml}'
        )
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [BINARY, "serve"],
                cwd=directory,
                env={"PATH": os.environ["PATH"], "RUST_BACKTRACE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        until("herenow is ready", lambda: self._ready(url), 20)
        super().__init__(url, tomllib.loads((directory / "data/credentials.toml").read_text())["api_key"])

    def _ready(self, url: str) -> bool:
        assert self._process.poll() is None, self.log()
        try:
            return httpx.get(f"{url}/readyz", trust_env=False).is_success
        except httpx.TransportError:
            return False

    def log(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        """As a power cut ends it."""
        self._process.kill()
        self._process.wait(10)
        self.backend.close()


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
