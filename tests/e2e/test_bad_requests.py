"""What a client must not ask: refused in OpenAI's shape, unseen by the backend, and free of charge."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.backend import Backend
from tests.e2e.processes import ALICE, BOB, Gateway, digest
from tests.e2e.wire import Response, chat, request

MIB = 1024 * 1024
MESSAGES = [{"role": "user", "content": "Hello"}]


class Untouched:
    """Holds the gateway's and the backend's figures against those from before."""

    def __init__(self, gateway: Gateway, backend: Backend) -> None:
        self._gateway, self._backend = gateway, backend
        self._before = self._figures()

    def _figures(self) -> Any:
        status = self._gateway.status()
        used = {account["id"]: (account["used_bits"], account["reserved_bits"]) for account in status["accounts"]}
        return used, self._gateway.metric("weir_charged_bits_total"), self._gateway.metric("weir_released_bits_total")

    def check(self) -> None:
        assert self._backend.requests == []
        assert self._figures() == self._before


@pytest.fixture
def untouched(gateway: Gateway, backend: Backend) -> Untouched:
    """`check` fails if anything was asked of the backend or charged since the test began."""
    return Untouched(gateway, backend)


PATHS = [
    "/",
    "/nothing",
    "/metrics",
    "/readyz",
    "/status.json",
    "/get_weights_by_name",
    "/server_info",
    "/collective_rpc",
    "/slots",
    "/props",
    "/v1/load_lora_adapter",
    "/v1/rerank",
    "/v1/models/",
    "/v1/models/m",
    "/v1/models?limit=1",
    "/v1/models#fragment",
    "/V1/models",
    "//v1/models",
    "/v1//models",
    "/v1/./models",
    "/v1/models/../../get_weights_by_name",
    "/v1/models/..%2f..%2fget_weights_by_name",
    "/v1/models/%2e%2e/%2e%2e/get_weights_by_name",
    "/v1%2fmodels",
    "/v1/%6dodels",
    "/v1/models;x=1",
    "/v1/models%00",
    "/v1/models\\..",
    "/v1/jobs/../models",
    "/v1/jobs/",
    "/v1/jobs/job-extract-zzzzzzzz-1",
    "/v1/jobs/job-covert-00000000-1",
    "/v1/jobs/job-00000000-1",
    "/v1/jobs/job-extract-00000000-1/",
    "/v1/jobs/job-extract-00000000-1/events/",
    "/v1/jobs/job-extract-00000000-1/events?model=m",
    "/v1/jobs/job-extract-00000000-1/result",
    "/v1/jobs/job-extract-00000000-../../x",
    "/v1/steering/vectors/",
    "/v1/steering/vectors/Upper",
    "/v1/steering/vectors/..",
    "/v1/steering/vectors/calm/file",
    "/v1/steering/vectors/calm/file?format=safetensors",
    "/v1/steering/vectors/import?id=calm&format=gguf",
    "/v1/steering/vectors?limit=1",
    "/v1/steering/vectors?model=",
    "/v1/steering/vectors?model=m&model=m",
    "/v1/steering/vectors?model=m&x=1",
    "/v1/steering/vectors?model=m/../x",
    "/v1/steering/vectors?model=%6d",
    "/v1/steering/extract?model=m",
    "/v1/steering/datasets",
    "/v1/steering/import",
    "/v1/steering/export",
    "/v1/activations",
    "/v1/chat/completions/",
    "/v1/chat/completions?stream=1",
    "http://gateway/v1/models",
    "http://127.0.0.1:9/v1/models",
    "https://gateway/v1/chat/completions",
    "*",
]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", PATHS)
def test_a_path_outside_the_table_does_not_exist(
    gateway: Gateway, untouched: Untouched, method: str, path: str
) -> None:
    answer = gateway.send(request(method, path, chat() if method == "POST" else b"", key=gateway.key))
    if answer.status == 400:  # the parser itself refuses what is no path at all
        assert path in ("*", "/v1/models\\..")
        assert answer.error["code"] == "invalid_request"
    else:
        assert answer.status == 404
        assert answer.error["code"] == "unknown_url"
        assert answer.error["type"] == "invalid_request_error"
    untouched.check()


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/v1/models", "GET"),
        ("OPTIONS", "/v1/models", "GET"),
        ("POST", "/v1/budget", "GET"),
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/v1/chat/completions", "POST"),
        ("PATCH", "/v1/completions", "POST"),
        ("TRACE", "/v1/completions", "POST"),
        ("GET", "/v1/steering/extract", "POST"),
        ("POST", "/v1/jobs/job-extract-00000000-1", "DELETE, GET"),
        ("DELETE", "/v1/jobs/job-extract-00000000-1/events", "GET"),
        ("POST", "/v1/steering/vectors", "GET"),
        ("PUT", "/v1/steering/vectors/calm", "DELETE, GET"),
        ("POST", "/v1/steering/vectors/import", "DELETE, GET"),
        ("PUT", "/v1/steering/vectors/combine", "DELETE, GET, POST"),
        ("GET", "/v1/steering/models/free", "DELETE"),
    ],
)
def test_a_wrong_method_is_refused_and_told_the_right_one(
    gateway: Gateway, untouched: Untouched, method: str, path: str, allow: str
) -> None:
    answer = gateway.send(request(method, path, key=gateway.key))
    assert answer.status == 405
    assert answer.header("Allow") == allow
    assert answer.error["code"] == "method_not_allowed"
    untouched.check()


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Basic {ALICE}",
        f"{ALICE}",
        f"Bearer {digest(ALICE)}",
        f"Bearer {digest(ALICE).removeprefix('sha256:')}",
        f"Bearer {ALICE}x",
        f"Bearer {ALICE.upper()}",
        f"Bearer {ALICE},{BOB}",
        "Bearer " + "k" * 4000,
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/v1/budget", "/v1/steering/extract"])
def test_a_missing_or_wrong_key_is_401(
    gateway: Gateway, untouched: Untouched, authorization: str | None, path: str
) -> None:
    headers = f"Authorization: {authorization}\r\n" if authorization is not None else ""
    method = "GET" if path in ("/v1/models", "/v1/budget") else "POST"
    answer = gateway.send(request(method, path, chat() if method == "POST" else b"", headers=headers))
    assert answer.status == 401
    assert answer.error["code"] == "invalid_api_key"
    assert answer.error["type"] == "authentication_error"
    assert answer.header("WWW-Authenticate") == "Bearer"
    untouched.check()


def test_two_authorization_headers_do_not_let_the_second_in(gateway: Gateway, untouched: Untouched) -> None:
    headers = f"Authorization: Bearer wrong\r\nAuthorization: Bearer {ALICE}\r\n"
    assert gateway.send(request("GET", "/v1/models", headers=headers)).status in (400, 401)
    untouched.check()


def test_a_model_that_does_not_exist_is_404(gateway: Gateway, untouched: Untouched) -> None:
    for model in ("gpt-4", "", "M", "m ", "../m"):
        answer = gateway.ask(model=model)
        assert answer.status == 404
        assert answer.error["code"] == "model_not_found"
        assert answer.error["param"] == "model"
    untouched.check()


BODIES: list[tuple[bytes | dict[str, Any], str]] = [
    (b"", "invalid_json"),
    (b"{", "invalid_json"),
    (b"null", "invalid_request"),
    (b"[]", "invalid_request"),
    (b'"text"', "invalid_request"),
    (b"{}", "invalid_request"),
    (json.dumps(chat()).encode() + b"x", "invalid_json"),
    (b'{"model": "m", "messages": [{"role": "user", "content": "\xff\xfe"}]}', "invalid_json"),
    (b'{"model": "m", "messages": [{"role": "user", "content": "\xed\xa0\x80"}]}', "invalid_json"),
    (b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "invalid_json"),
    (b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": Infinity}', "invalid_json"),
    (b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": 1e999}', "invalid_json"),
    (b'\xef\xbb\xbf{"model": "m", "messages": [{"role": "user", "content": "x"}]}', "invalid_json"),
    (b"[" * 100_000, "invalid_json"),
    (b'{"model": "m", "messages": ' + b"[" * 100_000, "invalid_json"),
    (chat(messages=[]), "invalid_request"),
    (chat(messages=None), "invalid_request"),
    (chat(messages="Hello"), "invalid_request"),
    (chat(messages=[{"role": "wizard", "content": "x"}]), "invalid_request"),
    (chat(messages=[{"role": "user", "content": 7}]), "invalid_request"),
    (chat(messages=[{"role": "user", "content": "x", "weight": 1}]), "unsupported_parameter"),
    (chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]), "*"),
    (chat(model=7), "invalid_request"),
    (chat(max_tokens=-1), "invalid_request"),
    (chat(max_tokens=0), "invalid_request"),
    (chat(max_tokens=4097), "invalid_request"),
    (chat(max_tokens=10**9), "invalid_request"),
    (chat(max_tokens=2**70), "invalid_request"),
    (chat(max_tokens="12"), "invalid_request"),
    (chat(max_tokens=1.5), "invalid_request"),
    (chat(max_completion_tokens=-1), "invalid_request"),
    (chat(temperature=-0.1), "invalid_request"),
    (chat(temperature=2.1), "invalid_request"),
    (chat(temperature="hot"), "invalid_request"),
    (chat(top_p=0), "invalid_request"),
    (chat(top_p=1.1), "invalid_request"),
    (chat(top_k=-1), "invalid_request"),
    (chat(stop=["a"] * 5), "invalid_request"),
    (chat(stop="x" * 257), "invalid_request"),
    (chat(stop=""), "invalid_request"),
    (chat(stream="yes"), "invalid_request"),
    (chat(stream_options={"include_obfuscation": True}), "unsupported_parameter"),
    (chat(presence_penalty=1), "invalid_request"),
    (chat(n=2), "unsupported_parameter"),
    (chat(n=1.0), "unsupported_parameter"),
    (chat(seed=1), "unsupported_parameter"),
    (chat(logprobs=True), "unsupported_parameter"),
    (chat(top_logprobs=5), "unsupported_parameter"),
    (chat(prompt_logprobs=5), "unsupported_parameter"),
    (chat(logit_bias={"1": 100}), "unsupported_parameter"),
    (chat(echo=True), "unsupported_parameter"),
    (chat(best_of=4), "unsupported_parameter"),
    (chat(return_token_ids=True), "unsupported_parameter"),
    (chat(return_hidden_states=True), "unsupported_parameter"),
    (chat(kv_transfer_params={}), "unsupported_parameter"),
    (chat(custom_logit_processor="x"), "unsupported_parameter"),
    (chat(lora_path="/etc/passwd"), "unsupported_parameter"),
    (chat(extra_body={}), "unsupported_parameter"),
    (chat(soft_prompt="x"), "unsupported_parameter"),
    (chat(response_format={"type": "json_object"}), "invalid_request"),
    (chat(tools=[{"type": "function", "function": {"name": "a b"}}]), "invalid_request"),
    (chat(tools=[{"type": "function", "function": {"name": "f"}}] * 2), "invalid_request"),
    (chat(tools=[{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]), "invalid_request"),
    (chat(tool_choice={"type": "function", "function": {"name": "g"}}), "invalid_request"),
    (chat(steering={"vectors": [{"id": "v", "scale": "much"}]}), "invalid_request"),
    (chat(steering={"vectors": [{"id": "v", "scale": 1e5}]}), "invalid_request"),
    (chat(steering={"vectors": [{"id": "v", "scale": -1e5}]}), "invalid_request"),
    (b'{"model":"m","messages":[{"role":"user","content":"x"}],"steering":{"vectors":[{"id":"v","scale":NaN}]}}', "*"),
    (
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"steering":{"vectors":[{"id":"v","scale":1e999}]}}',
        "*",
    ),
    (chat(steering={"vectors": [{"id": "v", "layers": [-1]}]}), "invalid_request"),
    (chat(steering={"vectors": [{"id": "v", "layers": [1024]}]}), "invalid_request"),
    (chat(steering={"vectors": [{"id": "v", "layers": []}]}), "invalid_request"),
    (chat(steering={"vectors": [{"id": "v", "layers": [0.5]}]}), "invalid_request"),
    (chat(steering={"vectors": [{"id": "../v"}]}), "invalid_request"),
    (chat(steering={"vectors": [{"id": "v" * 64}]}), "invalid_request"),
    (chat(steering={"vectors": [{"id": "v"}] * 17}), "invalid_request"),
    (chat(steering={"vectors": [{"id": "v", "vector": [0.1, 0.2]}]}), "unsupported_parameter"),
    (chat(steering={"vectors": [{}]}), "invalid_request"),
    (chat(steering={"strength": 1, "vectors": []}), "unsupported_parameter"),
    (chat(steering=[]), "invalid_request"),
]


@pytest.mark.parametrize(("body", "code"), BODIES, ids=[str(body)[:70] for body, _ in BODIES])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_body_that_asks_for_what_does_not_exist_is_400(
    gateway: Gateway, untouched: Untouched, body: bytes | dict[str, Any], code: str, streamed: bool
) -> None:
    if isinstance(body, dict):
        body = {"stream": streamed, **body}
    answer = gateway.send(
        request(body=body, key=gateway.key, headers="" if body else "Content-Type: application/json\r\n")
    )
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert answer.error["code"] == code or code == "*"
    assert answer.header("Content-Type") == "application/json"
    untouched.check()


def test_lone_surrogates_in_a_prompt_do_not_reach_the_backend(gateway: Gateway, untouched: Untouched) -> None:
    body = b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}'
    answer = gateway.send(request(body=body, key=gateway.key))
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    untouched.check()


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json"]
)
def test_a_body_that_is_not_declared_as_json_is_415(
    gateway: Gateway, untouched: Untouched, content_type: str | None
) -> None:
    answer = gateway.send(request(body=chat(), key=gateway.key, content_type=content_type))
    assert answer.status == 415
    assert answer.error["code"] == "unsupported_content_type"
    untouched.check()


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_over_the_limit_is_413(gateway: Gateway, untouched: Untouched, framing: str) -> None:
    body = json.dumps(chat("x" * (4 * MIB))).encode()
    if framing == "length":
        data = request(body=body, key=gateway.key)
    else:
        head = request(key=gateway.key, headers="Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n")
        parts = [body[start : start + 65536] for start in range(0, len(body), 65536)]
        data = head + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    answer = gateway.send(data)
    assert answer.status == 413
    assert answer.error["code"] == "request_too_large"
    untouched.check()


def test_a_body_just_under_the_limit_is_served(gateway: Gateway, backend: Backend) -> None:
    room = 4 * MIB - len(json.dumps(chat("")))
    assert gateway.ask("x" * room).status == 200
    assert len(backend.requests) == 1


def test_headers_over_the_limits_are_refused(gateway: Gateway, untouched: Untouched) -> None:
    for headers in ("X-Long: " + "x" * 9000 + "\r\n", "".join(f"X-{i}: 1\r\n" for i in range(100))):
        answer = gateway.send(request("GET", "/v1/models", key=gateway.key, headers=headers))
        assert answer.status == 400
        assert answer.error["type"] == "invalid_request_error"
    untouched.check()


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n\x00\x01\x02\r\n\r\n",
        b"GET /v1/models\r\n\r\n",
        b"GET /v1/models HTTP/9.9\r\nHost: x\r\n\r\n",
        b"BREW /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\n\r\n",
        b"GET  /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/models HTTP/1.1\nHost: x\n\n",
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX Y: a\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -2\r\n\r\n{}",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
        b"CONNECT 127.0.0.1:9 HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_malformed_http_is_refused_in_the_gateways_own_words(
    gateway: Gateway, untouched: Untouched, data: bytes
) -> None:
    with gateway.connect() as connection:
        connection.send(data)
        answer: Response = connection.response()
    assert 400 <= answer.status < 500
    assert answer.error["type"] in ("invalid_request_error", "authentication_error")
    assert answer.header("Server") == "weir"
    assert b"aiohttp" not in answer.raw_head + answer.body
    assert gateway.get("/v1/models").status == 200
    untouched.check()


BODY = json.dumps(chat()).encode()
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.mark.parametrize(
    ("line", "headers", "body"),
    [
        ("POST /v1/chat/completions HTTP/1.1", "Transfer-Encoding: identity, chunked", CHUNKED),
        ("POST /v1/chat/completions HTTP/1.0", "Transfer-Encoding: chunked", CHUNKED),
        ("POST /v1/chat/completions HTTP/1.1", f"Content_Length: 0\r\nContent-Length: {len(BODY)}", BODY),
        (
            "POST /v1/chat/completions HTTP/1.1",
            f"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: {len(BODY)}",
            BODY,
        ),
        ("GET /v1/models HTTP/1.1", "Content-Length: 2", b"{}"),
    ],
    ids=["identity-chunked", "http-1.0-chunked", "underscore", "upgrade-with-body", "body-on-get"],
)
def test_framing_that_two_parsers_could_read_in_two_ways_is_refused(
    gateway: Gateway, untouched: Untouched, line: str, headers: str, body: bytes
) -> None:
    head = f"{line}\r\nHost: x\r\nAuthorization: Bearer {ALICE}\r\nContent-Type: application/json\r\n{headers}\r\n\r\n"
    answer = gateway.send(head.encode() + body)
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    untouched.check()


@pytest.mark.parametrize("spec", [{"vectors": [{"id": "joy"}]}, {"vectors": []}])
def test_steering_is_403_for_a_tenant_that_may_not(
    gateway: Gateway, untouched: Untouched, spec: dict[str, Any]
) -> None:
    answer = gateway.ask(key=BOB, steering=spec)
    assert answer.status == 403
    assert answer.error["code"] == "steering_not_allowed"
    assert answer.error["type"] == "permission_error"
    untouched.check()


def test_the_steering_endpoints_are_403_for_a_tenant_that_may_not(gateway: Gateway, untouched: Untouched) -> None:
    body = {"model": "m", "id": "joy", "positive": ["good"], "negative": ["bad"], "layer": 1}
    extract = gateway.send(request(path="/v1/steering/extract", body=body, key=BOB))
    # The mark in a job's id leads to its model: SHA-256 of "m".
    job = gateway.get("/v1/jobs/job-extract-62c66a7a-1", key=BOB)
    listed = gateway.get("/v1/steering/vectors", key=BOB)
    deleted = gateway.send(request("DELETE", "/v1/steering/vectors/joy", key=BOB))
    answers = [extract, job, listed, deleted]
    assert [answer.status for answer in answers] == [403] * 4
    assert {answer.error["code"] for answer in answers} == {"steering_not_allowed"}
    untouched.check()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"positive": [], "negative": []}, "invalid_request"),
        ({"positive": [""], "negative": ["x"]}, "invalid_request"),
        ({"positive": ["x" * 8193]}, "invalid_request"),
        ({"positive": ["x"] * 257, "negative": ["y"] * 257}, "invalid_request"),
        ({"layer": -1}, "invalid_request"),
        ({"layer": "3"}, "invalid_request"),
        ({"id": "No Spaces"}, "invalid_request"),
        ({"id": "../../etc/passwd"}, "invalid_request"),
        ({"method": "export"}, "invalid_request"),
        ({"job_id": "mine"}, "unsupported_parameter"),
        ({"vector": [1.0]}, "unsupported_parameter"),
    ],
)
def test_a_bad_extraction_is_400(gateway: Gateway, untouched: Untouched, change: dict[str, Any], code: str) -> None:
    body = {"model": "m", "id": "joy", "positive": ["good"], "negative": ["bad"], "layer": 1, **change}
    answer = gateway.send(request(path="/v1/steering/extract", body=body, key=gateway.key))
    assert answer.status == 400
    assert answer.error["code"] == code
    untouched.check()


def test_a_connection_goes_on_after_a_refusal(gateway: Gateway) -> None:
    with gateway.connect() as connection:
        for body in (chat(max_tokens=0), chat()):
            connection.send(request(body=body, key=gateway.key))
            answer = connection.response()
        assert answer.status == 200


def test_refusals_are_counted_by_reason(gateway: Gateway) -> None:
    before = gateway.metric("weir_refusals_total", reason="unsupported_field")
    gateway.ask(seed=1)
    assert gateway.metric("weir_refusals_total", reason="unsupported_field") == before + 1
