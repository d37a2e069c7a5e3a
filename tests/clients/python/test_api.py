"""schemathesis makes requests out of /openapi.json, good ones and bad ones, and holds the answers against it and against the contract."""

from __future__ import annotations

import json
import re

import hypothesis
import pytest
import requests
import schemathesis
from schemathesis import Case
from schemathesis.core.transport import Response

from api import user
from conftest import ROOT, Herenow

# The same requests on every run: what fails here fails for everybody.
SETTINGS = hypothesis.settings(
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)

# CONTRACT: every error is one of these, with this status.
CODES = {
    "malformed_json": 400,
    "missing_credentials": 401,
    "invalid_credentials": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "idempotency_in_progress": 409,
    "too_many_devices": 409,
    "payload_too_large": 413,
    "unsupported_media_type": 415,
    "invalid_request": 422,
    "idempotency_key_reused": 422,
    "rate_limited": 429,
    "presence_unavailable": 503,
    "store_unavailable": 503,
    "draining": 503,
    "internal": 500,
}


# The operations must be known before the first process runs; that it serves this very document is a test of its own.
api = schemathesis.openapi.from_path(ROOT / "openapi/openapi.json")
# A stream that was let in has no end to wait for: `test_streams` reads it.
everything_else = api.exclude(operation_id="open_stream")
streams = api.include(operation_id="open_stream")


def test_the_document_is_the_one_that_is_served(herenow: Herenow) -> None:
    assert herenow.must("GET", "/openapi.json") == json.loads((ROOT / "openapi/openapi.json").read_text())


def problem_document(_: object, response: Response, case: Case) -> None:
    """CONTRACT 1: errors are RFC 9457, with a code of the list, and every answer bears a request id."""
    check_problem(response.status_code, {name: values[0] for name, values in response.headers.items()}, response.json if response.status_code >= 400 else None)


def check_problem(status: int, headers: dict[str, str], json: object) -> None:
    headers = {name.lower(): value for name, value in headers.items()}
    assert headers.get("x-request-id"), "no X-Request-Id"
    if status < 400:
        return
    assert headers["content-type"] == "application/problem+json"
    document = json() if callable(json) else json
    assert CODES.get(document["code"]) == status == document["status"], document
    assert document["type"] == "about:blank"
    assert document["title"] and document["detail"]
    assert document["request_id"] == headers["x-request-id"]
    for flaw in document.get("errors", []):
        assert flaw.keys() == {"pointer", "detail"}
    if status in (429, 503):
        assert headers.get("retry-after"), "no Retry-After"
    if status == 401:
        assert headers.get("www-authenticate", "").startswith("Bearer")
    if status == 405:
        assert re.fullmatch(r"[A-Z]+(, ?[A-Z]+)*", headers["allow"])


def whole(value: object) -> object:
    """JSON Schema counts 5.0 among the integers; herenow, like most typed readers, takes only 5."""
    if isinstance(value, dict):
        return {name: whole(one) for name, one in value.items()}
    if isinstance(value, list):
        return [whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@schemathesis.hook
def map_body(_: object, body: object) -> object:
    return whole(body)


def depends_on_what_was_before(response: Response) -> bool:
    """A document can't say which keys were used, which cursors were given out, and what a token names."""
    if response.status_code != 422:
        return False
    problem = response.json()
    return problem["code"] == "idempotency_key_reused" or any(
        flaw["detail"].startswith(("is beyond what was sent", "is needed, as the token names no device")) for flaw in problem["errors"]
    )


def refuses_within(response: Response) -> bool:
    """A batch is answered 207, and each wrong message in it for itself."""
    return response.status_code == 207 and any(result["status"] >= 400 for result in response.json()["results"])


def validate(case: Case, herenow: Herenow, token: str) -> None:
    request = {"base_url": herenow.url, "headers": {"Authorization": f"Bearer {token}"}, "timeout": 10}
    response = case.call(**request)
    excluded = [schemathesis.checks.positive_data_acceptance] if depends_on_what_was_before(response) else []
    if refuses_within(response):
        excluded.append(schemathesis.checks.negative_data_rejection)
    case.validate_response(
        response,
        headers=request["headers"],
        additional_checks=[problem_document],
        excluded_checks=excluded,
        transport_kwargs=request,
    )


@everything_else.parametrize()
@SETTINGS
def test_as_a_backend(case: Case, herenow: Herenow) -> None:
    validate(case, herenow, herenow.api_key)


@pytest.fixture(scope="session")
def device_token(herenow: Herenow) -> str:
    return herenow.token(user("fuzzed"), "device")


@pytest.fixture(scope="session")
def open_token(herenow: Herenow) -> str:
    """One that names no device."""
    return herenow.token(user("fuzzed"))


@everything_else.parametrize()
@SETTINGS
def test_as_a_device(case: Case, herenow: Herenow, device_token: str) -> None:
    validate(case, herenow, device_token)


@everything_else.include(tag="devices").parametrize()
@SETTINGS
def test_as_a_device_that_names_itself(case: Case, herenow: Herenow, open_token: str) -> None:
    validate(case, herenow, open_token)


@streams.parametrize()
@SETTINGS
def test_streams(case: Case, herenow: Herenow, open_token: str) -> None:
    request = case.as_transport_kwargs(base_url=herenow.url, headers={"Authorization": f"Bearer {open_token}"})
    with requests.request(**request, stream=True, timeout=10) as response:
        assert response.status_code in (200, 401, 403, 409, 422, 405), response.text
        if response.status_code == 200:
            assert response.headers["content-type"] == "text/event-stream"
            assert next(response.iter_content(12)) == b"retry: 2000\n"
        check_problem(response.status_code, dict(response.headers), response.json if response.status_code >= 400 else None)
