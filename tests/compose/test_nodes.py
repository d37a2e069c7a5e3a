"""Two nodes are one herenow, through nginx and each by itself."""

from __future__ import annotations

import pytest
from conftest import DOORS, NODES, Device, called_back, containers

from api import Api, until, user

EACH = pytest.mark.parametrize("device_at", DOORS)
TO_EACH = pytest.mark.parametrize("sent_to", DOORS)


@EACH
@TO_EACH
def test_an_online_only_message_reaches_a_device_whichever_node_has_it(doors: dict[str, Api], device_at: str, sent_to: str) -> None:
    alice, bob = user("alice"), user("bob")
    with Device(doors[device_at], bob, "phone") as phone:
        for n in range(5):
            assert doors[sent_to].signal(alice, bob, n) == "delivered"
            until("it is there at once", lambda: phone.payloads() == list(range(n + 1)), 1)
    until("who has closed is offline", lambda: doors[sent_to].signal(alice, bob, "nobody sees it") == "offline", 2)


@EACH
@TO_EACH
def test_a_persisted_message_reaches_every_device_in_order(doors: dict[str, Api], device_at: str, sent_to: str) -> None:
    alice, bob = user("alice"), user("bob")
    with Device(doors[device_at], bob, "phone") as phone, Device(doors["node1"], bob, "laptop") as laptop:
        for n in range(20):
            doors[sent_to].store(alice, bob, n)
        for device in phone, laptop:
            until("all are there", lambda: len(device.messages) >= 20)
            assert device.payloads() == list(range(20))
    with Device(doors[device_at], bob, "came later") as later:
        until("what was stored comes", lambda: later.payloads() == list(range(20)))


def test_one_device_gets_it_though_the_user_has_one_on_each_node(doors: dict[str, Api]) -> None:
    alice, bob = user("alice"), user("bob")
    with Device(doors["node1"], bob, "phone") as phone, Device(doors["node2"], bob, "laptop") as laptop:
        for n in range(20):
            assert doors["nginx"].signal(alice, bob, n) == "delivered"
        until("all are there", lambda: len(phone.messages) + len(laptop.messages) >= 20)
        assert sorted(phone.payloads() + laptop.payloads()) == list(range(20))


def test_presence_is_the_same_everywhere(doors: dict[str, Api]) -> None:
    bob = user("bob")
    with Device(doors["node1"], bob, "phone"), Device(doors["node2"], bob, "laptop"):
        for api in doors.values():
            presence = api.must("GET", f"/v1/users/{bob}/presence")
            assert presence["online"]
            assert {one["device"]: one["node"] for one in presence["devices"]} == {"phone": "node1", "laptop": "node2"}


def test_nginx_spreads_streams_over_both_nodes(doors: dict[str, Api]) -> None:
    bob = user("bob")
    devices = [Device(doors["nginx"], bob, f"device-{n}") for n in range(8)]
    for device in devices:
        device.__enter__()
    assert {device.nodes[0] for device in devices} == set(NODES)
    for device in devices:
        device.__exit__()


def test_a_repeated_key_is_one_message_whichever_node_gets_it(doors: dict[str, Api]) -> None:
    alice, bob = user("alice"), user("bob")
    body = {"from": alice, "to": {"users": [bob]}, "type": "chat", "payload": "once"}
    headers = {"Idempotency-Key": user("key")}
    first, again = (doors[node].backend.post("/v1/messages", json=body, headers=headers) for node in NODES)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json() == first.json()
    with Device(doors["nginx"], bob, "phone") as phone:
        doors["node2"].store(alice, bob, "last")
        until("the last one", lambda: "last" in phone.payloads())
        assert phone.payloads() == ["once", "last"]


@TO_EACH
def test_a_persisted_message_is_called_back_and_verifies(doors: dict[str, Api], sent_to: str) -> None:
    alice, bob = user("alice"), user("bob")
    body = {"from": alice, "to": {"users": [bob]}, "type": "chat", "payload": {"text": "schön 💬"}, "push": {"title": "Alice"}}
    message = doors[sent_to].must("POST", "/v1/messages", json=body)["id"]
    stored = until("the storage callback", lambda: called_back("/storage", message))[0]
    assert (stored["type"], stored["data"]["message"]["payload"]) == ("message.stored", {"text": "schön 💬"})
    pushed = until("the push callback", lambda: called_back("/push", message))[0]
    assert (pushed["data"]["recipient"], pushed["data"]["push"]) == (bob, {"title": "Alice"})
    until("it is noted as done", lambda: doors["nginx"].must("GET", f"/v1/messages/{message}")["storage"]["state"] == "sent")


def test_an_online_only_message_is_not_called_back(doors: dict[str, Api]) -> None:
    alice, bob = user("alice"), user("bob")
    doors["nginx"].signal(alice, bob, "gone")
    doors["nginx"].store(alice, bob, "kept")
    until("the one that follows is", lambda: called_back("/storage", bob))
    assert [one["data"]["message"]["payload"] for one in called_back("/storage", bob)] == ["kept"]


def test_who_comes_and_who_goes_is_called_back_once(doors: dict[str, Api]) -> None:
    bob = user("bob")
    with Device(doors["node1"], bob, "phone"), Device(doors["node2"], bob, "laptop"):
        until("bob is online", lambda: called_back("/presence", bob))
    until("bob is offline", lambda: len(called_back("/presence", bob)) >= 2)
    assert [one["type"] for one in called_back("/presence", bob)] == ["presence.online", "presence.offline"]


def test_large_payloads_pass_nginx_and_larger_ones_get_herenows_own_answer(doors: dict[str, Api]) -> None:
    alice, bob = user("alice"), user("bob")
    with Device(doors["nginx"], bob, "phone") as phone:
        text = "x" * 65_000
        doors["nginx"].store(alice, bob, text)
        until("it is there", lambda: phone.payloads() == [text])
    body = {"from": alice, "to": {"users": [bob]}, "type": "chat", "payload": "x" * 70_000}
    refused = doors["nginx"].backend.post("/v1/messages", json=body)
    assert (refused.status_code, refused.json()["code"]) == (413, "payload_too_large")


def test_no_container_is_root_can_write_to_its_image_or_is_reached_from_outside() -> None:
    for service, one in containers().items():
        assert one["Config"]["User"] not in ("", "root", "0"), service
        assert one["HostConfig"]["ReadonlyRootfs"], service
        assert one["HostConfig"]["CapDrop"] == ["ALL"], service
        published = [at["HostIp"] for ports in (one["HostConfig"]["PortBindings"] or {}).values() for at in ports]
        assert set(published) <= {"127.0.0.1"}, service
