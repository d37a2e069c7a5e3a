#!/usr/bin/env python3
"""What an idle stream costs in memory: plain, over TLS, and over HTTP/2 (TLS, a connection of its own for each).

    cargo build --release && benches/idle.py
    benches/idle.py target/release/herenow 5000

Starts the program anew for each kind, on a port and a directory of its own; opens as many streams as are said (2,000) and reads the process's
resident memory (VmRSS) before and after. Needs `openssl`, for a certificate.
"""

import base64
import hmac
import json
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time

PORT, SECRET = 7802, "s" * 32
PROGRAM = sys.argv[1] if len(sys.argv) > 1 else "target/release/herenow"
STREAMS = int(sys.argv[2]) if len(sys.argv) > 2 else 2_000


def token(user):
    def part(value):
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    claims = {"sub": user, "device": "phone", "exp": int(time.time()) + 3_600}
    signed = part(json.dumps({"alg": "HS256"}).encode()) + b"." + part(json.dumps(claims).encode())
    return (signed + b"." + part(hmac.digest(SECRET.encode(), signed, "sha256"))).decode()


def resident_kib(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


def frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def request(http2, user):
    if not http2:
        return f"GET /v1/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token(user)}\r\n\r\n".encode()
    headers = {":method": "GET", ":scheme": "https", ":path": "/v1/stream", ":authority": "x"}
    block = b""
    for name, value in {**headers, "authorization": f"Bearer {token(user)}"}.items():
        # HPACK: literals without indexing, not compressed; a length of 127 or more goes on in a second byte or a third.
        block += b"\x00" + bytes([len(name)]) + name.encode()
        rest = len(value) - 127
        if rest < 0:
            block += bytes([len(value)])
        else:
            block += b"\x7f" + (bytes([rest]) if rest < 128 else bytes([rest % 128 + 128, rest // 128]))
        block += value.encode()
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 0b101, 1, block)


def open_stream(context, http2, user):
    stream = socket.create_connection(("127.0.0.1", PORT))
    if context:
        stream = context.wrap_socket(stream, server_hostname="localhost")
    stream.sendall(request(http2, user))
    seen = b""
    while b"event: ready" not in seen:
        more = stream.recv(4_096)
        assert more, seen
        seen += more
    return stream


def measure(kind, protocol, directory):
    command = [PROGRAM, "serve", "--data-dir", f"{directory}/{kind}", "--listen", f"127.0.0.1:{PORT}"]
    settings = ["server.admin_listen=", "log.level=error", f"auth.device_secrets={SECRET}", "auth.api_keys=k"]
    context = None
    if protocol:
        settings += [f"server.tls.cert={directory}/cert.pem", f"server.tls.key={directory}/key.pem"]
        context = ssl.create_default_context(cafile=f"{directory}/cert.pem")
        context.set_alpn_protocols([protocol])
    node = subprocess.Popen(command + [word for setting in settings for word in ("--set", setting)], env={})
    try:
        while socket.socket().connect_ex(("127.0.0.1", PORT)):
            time.sleep(0.05)
        # What the first streams bring into being is there once.
        streams = [open_stream(context, protocol == "h2", f"first-{n}") for n in range(100)]
        before = resident_kib(node.pid)
        streams += [open_stream(context, protocol == "h2", f"user-{n}") for n in range(STREAMS)]
        after = resident_kib(node.pid)
        print(f"{kind}: {before} KiB, with {STREAMS} more streams {after}: {(after - before) * 1024 // STREAMS} bytes each")
    finally:
        node.terminate()
        for stream in streams:
            stream.close()
        node.wait()


with tempfile.TemporaryDirectory() as directory:
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    named = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", f"{directory}/key.pem", "-out", f"{directory}/cert.pem"]
    subprocess.run(made + named + files, check=True, stderr=subprocess.DEVNULL)
    measure("plain", None, directory)
    measure("TLS", "http/1.1", directory)
    measure("HTTP2", "h2", directory)
