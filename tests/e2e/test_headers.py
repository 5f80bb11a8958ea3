"""Headers in both directions are the gateway's own: an exact list to clients, an exact list to backends."""

from __future__ import annotations

import json

import pytest

from tests.e2e.backend import Backend, Exchange, raw, response, rest, say, whole_body
from tests.e2e.processes import BOB, Gateway
from tests.e2e.wire import chat, request

ALWAYS = ["Date", "Server", "X-Request-Id", "Content-Type"]
LOUD = "".join(
    f"{name}: covert\r\n"
    for name in (
        "Server", "Via", "X-Powered-By", "X-Request-Id", "Set-Cookie", "Link", "Location", "ETag", "Age", "Vary", "Alt-Svc",
        "Cache-Control", "Retry-After", "traceparent", "tracestate", "baggage", "openai-organization", "X-Covert",
        "Access-Control-Allow-Origin", "x-ratelimit-remaining-tokens", "Content-Language", "Content-Disposition",
    )
)  # fmt: skip


@pytest.mark.parametrize("headers", ["", LOUD])
def test_an_unstreamed_answer_has_exactly_these_headers(gateway: Gateway, backend: Backend, headers: str) -> None:
    backend.script = raw(response(whole_body("Hello"), headers=headers))
    answer = gateway.ask()
    assert [name for name, _ in answer.headers] == [*ALWAYS, "Content-Length"]
    assert answer.line == "HTTP/1.1 200 OK"
    assert (answer.header("Server"), answer.header("Content-Type")) == ("weir", "application/json")
    assert answer.json["id"] == f"chatcmpl-{answer.header('X-Request-Id')}"
    assert b"covert" not in answer.raw_head


@pytest.mark.parametrize("headers", ["", LOUD])
def test_a_streamed_answer_has_exactly_these_headers(gateway: Gateway, backend: Backend, headers: str) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin(headers=headers)
        await rest(exchange, ["Hello"])

    backend.script = script
    answer = gateway.ask(stream=True)
    assert [name for name, _ in answer.headers] == [*ALWAYS, "Cache-Control", "X-Accel-Buffering", "Transfer-Encoding"]
    assert answer.header("Content-Type") == "text/event-stream; charset=utf-8"
    assert answer.header("Cache-Control") == "no-cache"
    assert answer.text == "Hello"
    assert b"covert" not in answer.raw_head


@pytest.mark.parametrize("status", ["400 covert", "429 covert", "500 covert"])
def test_a_failed_answer_has_exactly_these_headers(gateway: Gateway, backend: Backend, status: str) -> None:
    backend.script = raw(response(b"covert", status=status, headers=LOUD))
    answer = gateway.ask()
    assert [name for name, _ in answer.headers] == [*ALWAYS, "Content-Length"]
    assert b"covert" not in answer.raw_head + answer.body


LOUD_CLIENT = "".join(
    f"{name}: covert-client\r\n"
    for name in (
        "User-Agent", "Cookie", "X-Forwarded-For", "Forwarded", "X-Real-Ip", "Origin", "Referer", "traceparent", "X-Api-Key",
        "OpenAI-Organization", "Accept-Language", "X-Stainless-Lang", "Idempotency-Key", "Proxy-Authorization", "Via",
        "X-Request-Id", "If-None-Match", "Range", "Accept",
    )
)  # fmt: skip


@pytest.mark.parametrize("streamed", [False, True])
def test_a_backend_gets_the_gateways_headers_and_the_tables_path_only(
    gateway: Gateway, backend: Backend, streamed: bool
) -> None:
    gateway.ask(headers=LOUD_CLIENT, stream=streamed)
    gateway.ask(stream=streamed)
    loud, quiet = backend.requests
    assert loud.line == quiet.line == "POST /v1/chat/completions HTTP/1.1"
    assert [name for name, _ in loud.headers] == [name for name, _ in quiet.headers]
    assert {name: value for name, value in loud.headers if name != "content-length"} == {
        "host": f"127.0.0.1:{backend.port}",
        "content-type": "application/json",
        "accept-encoding": "identity",
        "user-agent": "weir",
    }
    assert b"covert" not in loud.head + loud.body
    assert gateway.key.encode() not in loud.head + loud.body


def test_a_backend_gets_a_body_of_listed_fields_only(gateway: Gateway, backend: Backend) -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "Hello"}], "name": "x"}
    body = {
        **chat(max_completion_tokens=7, temperature=0.5, top_p=0.9, top_k=5, stop=["a", "b"], stream=True),
        "messages": [{"role": "system", "content": "Be brief."}, message],
        "user": "covert-client",
        "metadata": {"a": "covert-client"},
        "n": 1,
        "logprobs": False,
        "store": False,
        "stream_options": {"include_usage": False},
        "steering": {"vectors": [{"id": "joy", "scale": 2.0, "layers": [3]}]},
    }
    answer = gateway.send(request(body=json.dumps(body, indent=4).encode(), key=gateway.key))
    assert answer.status == 200
    (received,) = backend.requests
    assert received.json.keys() == {
        "model", "messages", "max_tokens", "temperature", "top_p", "top_k", "stop", "stream", "stream_options", "seed", "steering",
    }  # fmt: skip
    assert received.json["max_tokens"] == 7
    assert received.json["stream_options"] == {"include_usage": True}
    assert 0 <= received.json["seed"] < 2**63
    (vector,) = received.json["steering"]["vectors"]
    assert vector["id"].endswith("-joy")
    assert vector["id"] != "joy", "a tenant's vectors have a name space of their own"
    assert "alice" not in vector["id"]


def test_each_request_gets_a_seed_of_its_own(gateway: Gateway, backend: Backend) -> None:
    for _ in range(8):
        gateway.ask()
    assert len({received.json["seed"] for received in backend.requests}) == 8


def test_a_job_is_asked_for_under_a_path_that_the_client_cannot_shape(gateway: Gateway, backend: Backend) -> None:
    body = json.dumps({"status": "running", "progress": 0.2567, "id": "covert", "error": {"message": "covert"}})
    backend.script = raw(response(body.encode()))
    job = "job-evaluate-62c66a7a-abc"  # the mark in the middle is of the model "m"
    mine = gateway.get(f"/v1/jobs/{job}")
    assert (mine.status, mine.json) == (
        200,
        {"id": job, "object": "job", "kind": "evaluate", "status": "running", "progress": 0.26},
    )
    (received,) = backend.requests
    method, path, _ = received.line.split(" ")
    assert method == "GET"
    assert path.startswith("/v1/jobs/")
    assert path.endswith(f"-{job}")
    assert received.body == b""


def test_tenants_do_not_share_names_of_vectors(gateway: Gateway, backend: Backend) -> None:
    backend.script = say("x")
    gateway.ask(steering={"vectors": [{"id": "joy"}]})
    refused = gateway.ask(
        key=BOB, steering={"vectors": [{"id": backend.requests[0].json["steering"]["vectors"][0]["id"]}]}
    )
    assert refused.status == 403
