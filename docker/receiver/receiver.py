"""A receiver of herenow's callbacks, to look at: it verifies each and shows what came, as a page (/) and as JSON (/events).

It needs Python and nothing else. The secrets are in CALLBACK_SECRETS, with commas between them.
"""

from __future__ import annotations

import base64
import collections
import hashlib
import hmac
import html
import http.server
import json
import os
import signal
import sys
import threading
import time
import urllib.parse

SECRETS = [base64.b64decode(secret.removeprefix("whsec_")) for secret in os.environ["CALLBACK_SECRETS"].split(",")]
# The window of the Standard Webhooks specification: an old one may be a replay.
TOLERANCE_S = 300
EVENTS_MAX = 1_000
BODY_MAX = 64 << 20
SHOWN = 100

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="refresh" content="2">
<title>Callbacks</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; }
  table { border-collapse: collapse; width: 100%; }
  th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #ccc; }
  pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
</style>
<h1>Callbacks</h1>
<p>COUNT came, REFUSED were refused for want of a good signature. The newest are first; all that are remembered: <a href="/events">/events</a>.</p>
<table>
<tr><th>at<th>to<th>type<th>times<th>data
ROWS
</table>
"""


def is_signed(headers: dict[str, str], body: bytes) -> bool:
    """https://www.standardwebhooks.com: an HMAC over id, time and body, under one of the secrets."""
    event, timestamp, signatures = (headers.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature"))
    if not timestamp.isdecimal() or abs(time.time() - int(timestamp)) > TOLERANCE_S:
        return False
    signed = f"{event}.{timestamp}.".encode() + body
    expected = [b"v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)) for secret in SECRETS]
    given = signatures.encode().split()
    return any(hmac.compare_digest(one, other) for one in expected for other in given)


class Events:
    """What came, newest last. An event may come again: it is known by its id."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: collections.OrderedDict[str, dict] = collections.OrderedDict()
        self._came = 0
        self._refused = 0

    def refuse(self) -> None:
        with self._lock:
            self._refused += 1

    def take(self, event: str, path: str, body: dict) -> None:
        with self._lock:
            self._came += 1
            known = self._events.setdefault(event, {"id": event, "path": path, "times": 0, "first_at": now(), **body})
            known["times"] += 1
            if len(self._events) > EVENTS_MAX:
                self._events.popitem(last=False)

    def about(self, text: str) -> dict:
        with self._lock:
            events = [one for one in self._events.values() if text in json.dumps(one, ensure_ascii=False)]
            return {"came": self._came, "refused": self._refused, "events": events}


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def row(event: dict) -> str:
    data = json.dumps(event["data"], ensure_ascii=False, indent=1)
    cells = [event["first_at"], event["path"], event["type"], str(event["times"])]
    return "<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in cells) + f"<td><pre>{html.escape(data)}</pre>"


def page(all_of_it: dict) -> str:
    rows = "\n".join(row(event) for event in reversed(all_of_it["events"][-SHOWN:]))
    counted = PAGE.replace("COUNT", str(all_of_it["came"])).replace("REFUSED", str(all_of_it["refused"]))
    return counted.replace("ROWS", rows)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # A connection that says nothing for so long is closed.
    timeout = 60
    events = Events()

    def do_POST(self) -> None:
        length = self.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > BODY_MAX:
            self.close_connection = True
            return self.answer(413)
        body = self.rfile.read(int(length))
        if not is_signed({name.lower(): value for name, value in self.headers.items()}, body):
            self.events.refuse()
            return self.answer(401)
        event = json.loads(body)
        self.events.take(self.headers["webhook-id"], self.path, event)
        print(self.path, event["type"], self.headers["webhook-id"])
        self.answer(204)

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        about = urllib.parse.parse_qs(url.query).get("about", [""])[0]
        match url.path:
            case "/":
                self.answer(200, "text/html; charset=utf-8", page(self.events.about("")))
            case "/events":
                self.answer(200, "application/json", json.dumps(self.events.about(about), ensure_ascii=False))
            case "/healthz":
                self.answer(200, "text/plain", "ok\n")
            case _:
                self.answer(404)

    def answer(self, status: int, kind: str = "text/plain", text: str = "") -> None:
        body = text.encode()
        self.send_response(status)
        if status != 204:
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    # As the first process of a container it would not heed the signal by itself.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = http.server.ThreadingHTTPServer(("", 8090), Handler)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main()
