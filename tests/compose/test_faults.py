"""A node, Redis or PostgreSQL goes away and comes back. No node is started anew by hand for another's sake, and all is right again by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from conftest import NODES, Device, away, called_back, compose, containers, start

from api import Api, until, user

pytestmark = pytest.mark.usefixtures("healthy")

LEASE_S = 10


class Sender:
    """A backend that sends 0, 1, 2 … and repeats what met a fault, with its key, until it is answered 201."""

    def __init__(self, api: Api, recipient: str) -> None:
        self.sent = 0
        self.repeated = 0
        self._api = api
        self._recipient = recipient
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Sender:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive(), "a send was never answered"

    def goes_on(self) -> None:
        so_far = self.sent
        until("sends go on", lambda: self.sent > so_far + 10)

    def _run(self) -> None:
        while not self._stop.is_set():
            while not self._is_stored(self.sent):
                self.repeated += 1
                time.sleep(0.1)
            self.sent += 1
            self._stop.wait(0.05)

    def _is_stored(self, n: int) -> bool:
        body = {"from": "sender", "to": {"users": [self._recipient]}, "type": "chat", "payload": n}
        headers = {"Idempotency-Key": f"{self._recipient}-{n}"}
        try:
            answer = self._api.backend.post("/v1/messages", json=body, headers=headers)
        except httpx.TransportError:
            return False
        assert answer.status_code in (201, 409, 502, 503, 504), answer.text
        return answer.status_code == 201


@contextmanager
def devices_through_nginx(api: Api, bob: str) -> Iterator[list[Device]]:
    devices = [Device(api, bob, f"device-{n}") for n in range(8)]
    try:
        for device in devices:
            device.__enter__()
        assert {device.nodes[-1] for device in devices} == set(NODES)
        yield devices
    finally:
        for device in devices:
            device.__exit__()


def all_are_whole(devices: list[Device], sender: Sender) -> None:
    print(f"{sender.sent} messages were sent, for which {sender.repeated} requests were repeated")
    for device in devices:
        until("what was sent is there", lambda: len(device.messages) >= sender.sent, 20)
        assert device.payloads() == list(range(sender.sent)), "in order, none missing, none twice"


@pytest.mark.parametrize("node", NODES)
def test_a_node_that_is_stopped_hands_its_devices_over_and_sends_go_on(doors: dict[str, Api], node: str) -> None:
    bob = user("bob")
    other = next(name for name in NODES if name != node)
    with devices_through_nginx(doors["nginx"], bob) as devices:
        there = [device for device in devices if device.nodes[-1] == node]
        with Sender(doors["nginx"], bob) as sender:
            compose("stop", node)
            until("all are on the other node", lambda: {device.nodes[-1] for device in devices} == {other}, 20)
            # nginx may bring one back to it until it is gone: it is told again.
            assert all(set(device.byes) == {"draining"} for device in there)
            assert doors["nginx"].signal("alice", user("nobody"), 1) == "offline"
            sender.goes_on()
            start(node)
            sender.goes_on()
        all_are_whole(devices, sender)
        until("new streams go where there are fewest", lambda: _node_of_a_new_stream(doors["nginx"]) == node)


def test_an_upgrade_node_by_node_loses_nothing(doors: dict[str, Api]) -> None:
    bob = user("bob")
    before = _started()
    with devices_through_nginx(doors["nginx"], bob) as devices:
        with Sender(doors["nginx"], bob) as sender:
            for node in NODES:
                compose("up", "--detach", "--no-deps", "--force-recreate", "--wait", "--wait-timeout", "90", node)
                sender.goes_on()
        all_are_whole(devices, sender)
    assert all(started != before[node] for node, started in _started().items())


def test_a_node_that_is_killed_loses_nothing_and_is_not_waited_for(doors: dict[str, Api]) -> None:
    bob, carol = user("bob"), user("carol")
    with (
        devices_through_nginx(doors["nginx"], bob) as devices,
        Device(doors["node1"], carol, "phone") as phone,
        Device(doors["node2"], carol, "laptop", once=True),
    ):
        # The laptop came last, so it is tried first.
        with Sender(doors["nginx"], bob) as sender:
            compose("kill", "--signal", "KILL", "node2")
            until("the next device gets it", lambda: doors["node1"].signal("alice", carol, "now") == "delivered", 3)
            until("the phone shows it", lambda: "now" in phone.payloads())
            until("all devices are on the other node", lambda: {device.nodes[-1] for device in devices} == {"node1"})
            presence = lambda: {one["device"] for one in doors["node1"].must("GET", f"/v1/users/{carol}/presence")["devices"]}
            until("what was on it is offline", lambda: presence() == {"phone"}, LEASE_S + 2)
            sender.goes_on()
            start("node2")
            with Device(doors["node2"], carol, "laptop") as laptop:
                until("it takes part again", lambda: doors["node1"].signal("alice", carol, "again") == "delivered")
                until("on one of them", lambda: "again" in phone.payloads() + laptop.payloads())
        all_are_whole(devices, sender)


def test_without_redis_presence_is_unknown_persisted_messages_go_on_and_all_is_right_afterwards(doors: dict[str, Api]) -> None:
    alice, bob = user("alice"), user("bob")
    started = _started()
    with Device(doors["node1"], bob, "phone") as phone, Device(doors["node2"], bob, "laptop") as laptop:
        compose("stop", "redis")
        for node in NODES:
            until("it says what is away", lambda: away(node) == ["presence"])
            refused = _online_only(doors[node], alice, bob)
            assert (refused.status_code, refused.json()["code"]) == (503, "presence_unavailable")
            assert refused.headers["retry-after"]
            unknown = doors[node].backend.get(f"/v1/users/{bob}/presence")
            assert (unknown.status_code, unknown.json()["code"]) == (503, "presence_unavailable")
            doors[node].store(alice, bob, f"through {node}")
        # Each node tells its own streams; those of the other one hear of it at the latest when Redis is back.
        until("it is there", lambda: "through node1" in phone.payloads())
        until("it is there", lambda: "through node2" in laptop.payloads())
        until("callbacks go on", lambda: len(called_back("/storage", bob)) == 2)
        start("redis")
        for node in NODES:
            until("it is ready", lambda: away(node) == [], 15)
            devices = lambda: {one["device"]: one["node"] for one in doors[node].must("GET", f"/v1/users/{bob}/presence")["devices"]}
            until("presence is right", lambda: devices() == {"phone": "node1", "laptop": "node2"}, 5)
            assert _online_only(doors[node], alice, bob, deliver_to="every_device").json()["summary"]["delivered"] == 1
        for device, node in [(phone, "node1"), (laptop, "node2")]:
            until("nothing is missing", lambda: len(device.messages) >= 4)
            assert device.payloads()[:2] == ["through node1", "through node2"]
            assert device.nodes == [node], "its stream was never cut"
    assert _started() == started


def test_without_postgresql_only_persisted_messages_are_refused(doors: dict[str, Api]) -> None:
    alice, bob = user("alice"), user("bob")
    started = _started()
    with Device(doors["node1"], bob, "phone") as phone:
        doors["node1"].store(alice, bob, "before")
        compose("stop", "postgres")
        for node in NODES:
            until("it says what is away", lambda: away(node) == ["store"], 15)
            body = {"from": alice, "to": {"users": [bob]}, "type": "chat", "payload": "never"}
            refused = doors[node].backend.post("/v1/messages", json=body)
            assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
            assert _online_only(doors[node], alice, bob).json()["summary"]["delivered"] == 1
        start("postgres")
        for node in NODES:
            until("it is ready", lambda: away(node) == [], 15)
            doors[node].store(alice, bob, f"through {node}")
        persisted = lambda: [one["payload"] for one in phone.messages if not one["online_only"]]
        until("it is there", lambda: persisted() == ["before", "through node1", "through node2"])
        until("callbacks go on", lambda: len(called_back("/storage", bob)) == 3, 30)
        assert phone.nodes == ["node1"], "its stream was never cut"
    assert _started() == started


def test_a_receiver_that_was_away_gets_everything(doors: dict[str, Api]) -> None:
    alice, bob = user("alice"), user("bob")
    compose("stop", "receiver")
    for n in range(20):
        doors["nginx"].store(alice, bob, n)
    start("receiver")
    until("all are called back", lambda: len(called_back("/storage", bob)) == len(called_back("/push", bob)) == 20, 75)


def _online_only(api: Api, alice: str, bob: str, **more: str) -> httpx.Response:
    body = {"from": alice, "to": {"users": [bob]}, "type": "typing", "payload": "now", "online_only": True, **more}
    return api.backend.post("/v1/messages", json=body)


def _node_of_a_new_stream(api: Api) -> str:
    with Device(api, user("carol"), "phone") as phone:
        return phone.nodes[0]


def _started() -> dict[str, str]:
    """When the processes of the nodes began."""
    inspected = containers()
    return {node: inspected[node]["State"]["StartedAt"] for node in NODES}
