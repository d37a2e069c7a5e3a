"""What an operator sees: Prometheus with its alerts, and the receiver's page."""

from __future__ import annotations

import json
import pathlib
import re
from datetime import datetime, timedelta, timezone

import httpx
from conftest import PROMETHEUS, RECEIVER, ROOT, called_back, compose, get
from standardwebhooks import Webhook

from api import Api, until, user

HERE = pathlib.Path(__file__).parent


def test_prometheus_scrapes_both_nodes() -> None:
    def up() -> bool:
        targets = get(f"{PROMETHEUS}/api/v1/targets")["data"]["activeTargets"]
        return {one["labels"]["instance"]: one["health"] for one in targets} == {"node1:9090": "up", "node2:9090": "up"}

    until("both are up", up, 30)


def test_prometheus_has_the_alerts_and_they_speak_of_metrics_that_there_are() -> None:
    written = (ROOT / "docker/prometheus/alerts.yml").read_text()
    groups = get(f"{PROMETHEUS}/api/v1/rules")["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert [rule["name"] for rule in rules] == re.findall(r"- alert: (\w+)", written)
    named = set(re.findall(r"herenow_\w+", " ".join(rule["query"] for rule in rules)))
    until("each has values", lambda: named <= set(get(f"{PROMETHEUS}/api/v1/label/__name__/values")["data"]), 30)


def test_each_alert_fires_when_it_should() -> None:
    tests = (HERE / "alerts.test.yml").read_text()
    # promtool reads files only, and only what is in the container.
    run = "cat >/tmp/alerts.test.yml && promtool test rules /tmp/alerts.test.yml"
    assert "SUCCESS" in compose("exec", "--no-TTY", "prometheus", "sh", "-c", run, stdin=tests)
    alerts = re.findall(r"- alert: (\w+)", (ROOT / "docker/prometheus/alerts.yml").read_text())
    assert set(re.findall(r"alertname: (\w+)", tests)) == set(alerts), "an alert without a test"


def test_metrics_are_not_published(doors: dict[str, Api]) -> None:
    for api in doors.values():
        assert api.backend.get("/metrics").status_code == 404


def test_the_receiver_shows_what_it_got(doors: dict[str, Api]) -> None:
    alice, bob = user("alice"), user("bob")
    doors["nginx"].store(alice, bob, "<b>bold</b>")
    until("it came", lambda: called_back("/storage", bob))
    page = httpx.get(RECEIVER, trust_env=False).text
    assert bob in page and "&lt;b&gt;bold&lt;/b&gt;" in page and "<b>bold" not in page


def test_the_receiver_takes_only_what_is_signed() -> None:
    config = json.loads(compose("config", "--format", "json"))
    secret = config["services"]["receiver"]["environment"]["CALLBACK_SECRETS"]
    event, now = user("event"), datetime.now(timezone.utc)

    def post(body: str, signed: str, at: datetime, key: str = secret) -> int:
        headers = {
            "webhook-id": event,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": "v1,bm90aGluZw== " + Webhook(key).sign(event, at, signed),
        }
        return httpx.post(f"{RECEIVER}/storage", content=body, headers=headers, trust_env=False).status_code

    good, bad = '{"type":"t","data":1}', '{"type":"t","data":2}'
    assert post(bad, good, now) == 401
    assert post(good, good, now - timedelta(minutes=6)) == 401
    assert post(good, good, now, "whsec_" + "AAAA" * 8) == 401
    assert called_back("/storage", event) == []
    assert post(good, good, now) == post(good, good, now) == 204
    assert [(one["times"], one["data"]) for one in called_back("/storage", event)] == [(2, 1)]
