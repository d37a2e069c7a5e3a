"""httpx, with httpx-sse on top, as a device: blocking and asynchronous."""

from __future__ import annotations

import asyncio
import json
import queue
import threading

import httpx
import httpx_sse
import requests
import sseclient

from api import until, user
from conftest import Herenow

LIMIT = httpx.Timeout(10, read=20)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_a_blocking_client_reads_both_kinds_of_message(herenow: Herenow) -> None:
    alice, bob = user("alice"), user("bob")
    with (
        httpx.Client(base_url=herenow.url, timeout=LIMIT, trust_env=False) as client,
        httpx_sse.connect_sse(client, "GET", "/v1/stream", headers=bearer(herenow.token(bob, "script"))) as source,
    ):
        assert source.response.headers["cache-control"] == "no-store"
        assert source.response.headers["x-accel-buffering"] == "no"
        events = source.iter_sse()
        ready = next(events)
        assert (ready.event, ready.retry) == ("ready", 2000)
        assert ready.json() == ready.json() | {"user": bob, "device": "script"}
        cursor = herenow.store(alice, bob, {"text": "kept"})
        assert herenow.signal(alice, bob, "for now") == "delivered"
        kept, signal = next(events), next(events)
        assert (kept.event, kept.id, kept.json()["cursor"], kept.json()["payload"]) == ("message", cursor, cursor, {"text": "kept"})
        # The library shows the last id until there is another, as the standard says.
        assert (signal.event, signal.id, signal.json()["payload"]) == ("message", cursor, "for now")
        assert "cursor" not in signal.json()


def test_the_clients_of_requests_get_each_event_at_once(herenow: Herenow) -> None:
    """`requests` hands out blocks of a size that its user chose, and waits for each to be full unless the body is chunked."""
    alice, bob = user("alice"), user("bob")
    with requests.Session() as session:
        session.trust_env = False
        response = session.get(f"{herenow.url}/v1/stream", headers=bearer(herenow.token(bob, "script")), stream=True, timeout=20)
        heard: queue.Queue[sseclient.Event] = queue.Queue()
        threading.Thread(target=lambda: [heard.put(event) for event in sseclient.SSEClient(response).events()], daemon=True).start()
        # Sooner than a heartbeat, whose bytes would push on what is stuck.
        assert heard.get(timeout=5).event == "ready"
        for n in range(3):
            assert herenow.signal(alice, bob, n) == "delivered"
            assert json.loads(heard.get(timeout=5).data)["payload"] == n
        assert herenow.backend.delete(f"/v1/users/{bob}/devices/script").status_code == 204
        assert heard.get(timeout=5).event == "bye"


def test_a_closed_connection_is_offline_at_once(herenow: Herenow) -> None:
    alice, bob = user("alice"), user("bob")
    with (
        httpx.Client(base_url=herenow.url, timeout=LIMIT, trust_env=False) as client,
        httpx_sse.connect_sse(client, "GET", "/v1/stream", headers=bearer(herenow.token(bob, "script"))) as source,
    ):
        # The library closes the connection with its iterator, so that is kept.
        events = source.iter_sse()
        assert next(events).event == "ready"
        assert herenow.signal(alice, bob, 1) == "delivered"
    until("offline", lambda: herenow.signal(alice, bob, 2) == "offline", 1)


def test_a_stream_goes_on_after_what_was_acknowledged(herenow: Herenow) -> None:
    alice, bob = user("alice"), user("bob")
    headers = bearer(herenow.token(bob, "script"))
    first = herenow.store(alice, bob, 1)
    second = herenow.store(alice, bob, 2)
    with httpx.Client(base_url=herenow.url, timeout=LIMIT, trust_env=False, headers=headers) as client:
        assert client.post("/v1/ack", json={"cursor": first}).status_code == 204
        page = client.get("/v1/inbox").json()
        assert ([m["payload"] for m in page["messages"]], page["next"], page["more"]) == ([2], second, False)
        with httpx_sse.connect_sse(client, "GET", "/v1/stream") as source:
            events = source.iter_sse()
            assert next(events).json()["resumed_after"] == first
            assert next(events).json()["payload"] == 2
        with httpx_sse.connect_sse(client, "GET", "/v1/stream", headers={"Last-Event-ID": second}, params={"after": "earliest"}) as source:
            events = source.iter_sse()
            assert next(events).json()["resumed_after"] == second, "Last-Event-ID wins over ?after"


def test_an_asynchronous_client_holds_many_streams(herenow: Herenow) -> None:
    alice = user("alice")
    people = [user("reader") for _ in range(20)]

    async def read(client: httpx.AsyncClient, name: str, ready: asyncio.Semaphore, count: int) -> list[object]:
        payloads = []
        async with httpx_sse.aconnect_sse(client, "GET", "/v1/stream", headers=bearer(herenow.token(name, "script"))) as source:
            async for event in source.aiter_sse():
                if event.event == "ready":
                    ready.release()
                else:
                    payloads.append(event.json()["payload"])
                if len(payloads) == count:
                    return payloads
        raise AssertionError(f"the stream ended after {payloads}")

    async def all_of_them() -> list[list[object]]:
        async with httpx.AsyncClient(base_url=herenow.url, timeout=LIMIT, trust_env=False, limits=httpx.Limits(max_connections=None)) as client:
            ready = asyncio.Semaphore(0)
            readers = [asyncio.create_task(read(client, name, ready, 11)) for name in people]
            for _ in people:
                await ready.acquire()
            backend = bearer(herenow.api_key)
            for n in range(10):
                body = {"from": alice, "to": {"users": people}, "type": "chat", "payload": n}
                assert (await client.post("/v1/messages", json=body, headers=backend)).status_code == 201
            body = {"from": alice, "to": {"users": people}, "type": "typing", "payload": "for now", "online_only": True}
            sent = (await client.post("/v1/messages", json=body, headers=backend)).json()
            assert sent["summary"] == {"delivered": 20, "offline": 0, "unconfirmed": 0, "expired": 0, "superseded": 0}
            return await asyncio.gather(*readers)

    for payloads in asyncio.run(asyncio.wait_for(all_of_them(), 30)):
        assert [payload for payload in payloads if payload != "for now"] == list(range(10))
        assert "for now" in payloads


def test_a_payload_arrives_as_it_was_written(herenow: Herenow) -> None:
    bob = user("bob")
    payload = '{"n":12345678901234567890,"z":1.0e5,"a":"\\u00e9","line":"a\\r\\nb","lone":"\\ud83d"}'
    body = f'{{"from":"x","to":{{"users":["{bob}"]}},"type":"t","payload":{payload}}}'
    sent = herenow.backend.post("/v1/messages", content=body, headers={"Content-Type": "application/json"})
    assert sent.status_code == 201, sent.text
    with (
        httpx.Client(base_url=herenow.url, timeout=LIMIT, trust_env=False) as client,
        httpx_sse.connect_sse(client, "GET", "/v1/stream", headers=bearer(herenow.token(bob, "script"))) as source,
    ):
        events = source.iter_sse()
        next(events)
        assert f'"payload":{payload},' in next(events).data
    inbox = httpx.get(f"{herenow.url}/v1/inbox", params={"after": "earliest"}, headers=bearer(herenow.token(bob, "script")), trust_env=False)
    assert f'"payload":{payload},' in inbox.text
    assert json.loads(inbox.text)["messages"][0]["payload"]["n"] == 12345678901234567890
