#!/usr/bin/env python3
"""What a send to a group of 100,000 takes, of whom 100 are online, and how long others wait meanwhile.

    cargo build --release && benches/group.py
    benches/group.py target/release/herenow --set redis.url=redis://127.0.0.1:6379 --set cluster.single_node=true

Starts the program on a port and a directory of its own; what follows its name are arguments for it.
"""

import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

MEMBERS, ONLINE, PORT = 100_000, 100, 7801
program, *arguments = sys.argv[1:] or ["target/release/herenow"]


def post(path, body):
    headers = {"Authorization": "Bearer k", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def timed(what, message, rounds):
    for _ in range(rounds):
        begun = time.perf_counter()
        summary = post("/v1/messages", message)["summary"]
        print(f"{what}: {(time.perf_counter() - begun) * 1e3:7.1f} ms  {summary}")


class Others:
    """Persisted sends to one user each, one after the other, until the end of the block. The client's own pauses count too."""

    def __init__(self, while_what):
        self.while_what, self.ended, self.took = while_what, threading.Event(), []

    def __enter__(self):
        self.thread = threading.Thread(target=self.send)
        self.thread.start()

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()
        took = sorted(self.took)
        shown = ", ".join(f"{what} {took[int(len(took) * part)]:.1f} ms" for what, part in [("half within", 0.5), ("99 % within", 0.99)])
        print(f"others while {self.while_what}: {len(took)} sends, {shown}, the longest {took[-1]:.1f} ms")

    def send(self):
        n = 0
        while not self.ended.is_set():
            # To members too, whose inboxes are written to by both.
            message = {"from": "other", "to": {"users": [users[n * 7919 % MEMBERS]]}, "type": "t", "payload": {}}
            begun = time.perf_counter()
            post("/v1/messages", message)
            self.took.append((time.perf_counter() - begun) * 1e3)
            n += 1


with tempfile.TemporaryDirectory() as directory:
    command = [program, "serve", "--data-dir", f"{directory}/data", "--listen", f"127.0.0.1:{PORT}"]
    environment = {"HERENOW_AUTH__API_KEYS": "k", "HERENOW_AUTH__DEVICE_SECRETS": "s" * 32}
    quiet = ["--set", "server.admin_listen=", "--set", "log.level=error"]
    node = subprocess.Popen(command + quiet + arguments, env=environment)
    try:
        while socket.socket().connect_ex(("127.0.0.1", PORT)):
            time.sleep(0.05)
        users = [f"user-{n:06}" for n in range(MEMBERS)]
        for n in range(0, MEMBERS, 1_000):
            post("/v1/groups/all/members", {"add": users[n : n + 1_000]})
        streams = []
        for user in users[:: MEMBERS // ONLINE]:
            token = post("/v1/tokens", {"user": user, "device": "phone", "ttl_s": 600})["token"]
            stream = socket.create_connection(("127.0.0.1", PORT))
            stream.sendall(f"GET /v1/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
            stream.recv(1)
            streams.append(stream)
        message = {"from": "somebody", "to": {"group": "all"}, "type": "t", "payload": {}}
        timed("online-only", {**message, "online_only": True}, 10)
        timed("persisted  ", message, 3)
        with Others("nothing else is sent"):
            time.sleep(2)
        with Others("a persisted message goes to all"):
            timed("persisted  ", message, 5)
        sent = post("/v1/messages", message)["id"]
        with Others("that message is recalled"):
            begun = time.perf_counter()
            headers = {"Authorization": "Bearer k"}
            url = f"http://127.0.0.1:{PORT}/v1/messages/{sent}"
            urllib.request.urlopen(urllib.request.Request(url, headers=headers, method="DELETE")).close()
            print(f"recall     : {(time.perf_counter() - begun) * 1e3:7.1f} ms")
            # Its rows are taken out afterwards.
            time.sleep(8)
    finally:
        node.terminate()
        node.wait()
