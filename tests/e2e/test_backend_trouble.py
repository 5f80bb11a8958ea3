"""A backend that is down, slow, broken or hostile: the client gets one canonical error, and not a byte of the backend's."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.backend import (
    DONE,
    Backend,
    Exchange,
    Script,
    event,
    finish_event,
    raw,
    response,
    say,
    stream,
    text_event,
    whole_body,
)
from tests.e2e.processes import Gateway, policy, until
from tests.e2e.wire import Response, chat, request

MARKER = "MARKER-7f3a"
CHATTY = f"X-{MARKER}: {MARKER}\r\nSet-Cookie: a={MARKER}\r\nRetry-After: 1234567\r\nServer: {MARKER}\r\nx-request-id: {MARKER}\r\n"
FAILED = {
    "error": {
        "message": "The model server failed to give a valid answer.",
        "type": "api_error",
        "param": None,
        "code": "upstream_error",
    }
}
LATE = {
    "error": {
        "message": "The model server did not answer in time.",
        "type": "api_error",
        "param": None,
        "code": "upstream_timeout",
    }
}
TIMEOUT_S = 0.4
TOTAL_S = 1.5


@pytest.fixture(scope="module")
def impatient_of_module(backend_of_module: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("impatient")
    rules = policy(backend_of_module.url, directory)
    waits = {"connect": "400ms", "first_byte": "400ms", "idle": "400ms", "total": "1500ms"}
    rules["models"]["m"]["timeouts"] = waits
    gateway = Gateway(directory, rules).start()
    yield gateway
    gateway.close()


@pytest.fixture
def impatient(impatient_of_module: Gateway, backend: Backend) -> Iterator[Gateway]:
    """A gateway that waits 0.4 s for a backend; after each test it must still serve."""
    assert impatient_of_module.alive
    yield impatient_of_module
    backend.script = raw(response(whole_body("Still here.")))
    answer = impatient_of_module.ask()
    assert (answer.status, answer.json["choices"][0]["message"]["content"]) == (200, "Still here.")
    impatient_of_module.idle()


def sse(*events: bytes) -> bytes:
    return response(b"".join(events), content_type="text/event-stream", headers=CHATTY)


def answered(document: Any) -> bytes:
    return response(json.dumps(document).encode(), headers=CHATTY)


def choice(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": "stop", **fields}]}


HELLO = {"role": "assistant", "content": f"Hello {MARKER}"}
DEEP = b'{"choices":' + b"[" * 100_000

# What breaks whatever was asked for.
BROKEN: dict[str, bytes] = {
    "nothing": b"",
    "status line is a word": f"{MARKER}\r\n\r\n".encode(),
    "status is no number": f"HTTP/1.1 banana {MARKER}\r\n\r\n".encode(),
    "status of four digits": f"HTTP/1.1 2000 OK\r\nX: {MARKER}\r\n\r\n".encode(),
    "unknown version": f"HTTP/7.3 200 {MARKER}\r\nContent-Length: 0\r\n\r\n".encode(),
    "binary": b"\x00\xff\x80" * 200,
    "tls alert": b"\x15\x03\x01\x00\x02\x02\x28",
    "bare line feeds": f"HTTP/1.1 200 OK\nContent-Type: application/json\nX: {MARKER}\n\n{{}}".encode(),
    "control bytes in a header": b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 2\r\n\r\n{}",
    "folded header": f"HTTP/1.1 200 OK\r\nX: a\r\n {MARKER}\r\nContent-Length: 2\r\n\r\n{{}}".encode(),
    "one header of 64 KiB": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 65536 + b"\r\n\r\n",
    "a thousand headers": b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(1000)) + b"\r\n",
    "reason of 64 KiB": b"HTTP/1.1 200 " + b"O" * 65536 + b"\r\n\r\n",
    "length and chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}",
    "wrong content type": response(f"<h1>{MARKER}</h1>".encode(), content_type="text/html", headers=CHATTY),
    "no content type": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "gzip": response(gzip.compress(whole_body(MARKER)), headers="Content-Encoding: gzip\r\n" + CHATTY),
    "unknown coding": response(whole_body(MARKER), headers=f"Content-Encoding: {MARKER}\r\n"),
    "redirect": response(b"", status="302 Found", headers=f"Location: /{MARKER}\r\n{CHATTY}"),
    "permanent redirect": response(b"", status="308 Permanent Redirect", headers=f"Location: /{MARKER}\r\n"),
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "switching protocols": f"HTTP/1.1 101 Switching\r\nUpgrade: {MARKER}\r\nConnection: Upgrade\r\n\r\n{MARKER}".encode(),
    "unauthorized": response(
        MARKER.encode(), status="401 Unauthorized", headers="WWW-Authenticate: Basic\r\n" + CHATTY
    ),
    "forbidden": response(MARKER.encode(), status="403 Forbidden", headers=CHATTY),
    "teapot": response(MARKER.encode(), status=f"418 {MARKER}", headers=CHATTY),
    "too many requests": response(MARKER.encode(), status="429 Too Many Requests", headers=CHATTY),
    "chatty 500": response(f"Traceback: {MARKER}".encode(), status=f"500 {MARKER}", headers=CHATTY),
    "endless 500": b"HTTP/1.1 500 Oops\r\nContent-Type: text/plain\r\n\r\n" + b"x" * 300_000,
    "chatty 503": response(answered({"error": {"code": MARKER}}), status="503 Busy", headers=CHATTY),
    "unknown 6xx": response(MARKER.encode(), status="699 Odd", headers=CHATTY),
}
# What breaks an unstreamed answer.
BROKEN_WHOLE: dict[str, bytes] = {
    "garbage JSON": response(f"{{{MARKER}".encode()),
    "not an object": answered([MARKER]),
    "empty body": response(b""),
    "deep": response(DEEP),
    "not UTF-8": response(b'{"choices":[{"index":0,"message":{"content":"\xff"},"finish_reason":"stop"}]}'),
    "lone surrogate": response(b'{"choices":[{"index":0,"message":{"content":"\\ud800"},"finish_reason":"stop"}]}'),
    "two documents": response(whole_body(MARKER) * 2),
    "no choices": answered({"choices": []}),
    "no finish": answered({"choices": [{"index": 0, "message": HELLO}]}),
    "two choices": answered({"choices": [{"index": i, "message": HELLO, "finish_reason": "stop"} for i in (0, 1)]}),
    "another index": answered(choice(index=1, message=HELLO)),
    "content is a number": answered(choice(message={"content": 7})),
    "error beside a choice": answered({**choice(message=HELLO), "error": {"message": MARKER}}),
    "undeclared tool": answered(choice(message={"tool_calls": [{"function": {"name": MARKER, "arguments": "{}"}}]})),
    "negative usage": answered({**choice(message=HELLO), "usage": {"prompt_tokens": -1, "completion_tokens": 1}}),
    "huge usage": answered({**choice(message=HELLO), "usage": {"prompt_tokens": 2**31, "completion_tokens": 1}}),
    "usage in words": answered({**choice(message=HELLO), "usage": {"prompt_tokens": MARKER, "completion_tokens": 1}}),
    "steering in words": answered({**choice(message=HELLO), "steering": MARKER}),
    "over 8 MiB": response(whole_body("x" * (8 * 1024 * 1024))),
    "cut short": response(whole_body(MARKER))[:-20],
    "an event stream": sse(text_event(MARKER), finish_event(), DONE),
}
# What breaks a stream before its first text.
BROKEN_STREAM: dict[str, bytes] = {
    "garbage event": sse(f"data: {{{MARKER}\n\n".encode()),
    "empty stream": sse(),
    "only DONE": sse(DONE),
    "finish without DONE": sse(finish_event()),
    "oversized event": sse(text_event("x" * (256 * 1024 + 1)), finish_event(), DONE),
    "oversized comment": sse(b": " + b"x" * (300 * 1024) + b"\n\n", finish_event(), DONE),
    "an event that never ends": sse(b"data: " + b"x" * (300 * 1024)),
    "deep": sse(b"data: " + DEEP + b"\n\n"),
    "not UTF-8": sse(b'data: {"choices":[{"index":0,"delta":{"content":"\xff"}}]}\n\n', finish_event(), DONE),
    "error event": sse(event({"error": {"message": MARKER}})),
    "named error event": sse(b"event: error\n" + event({"error": MARKER}), DONE),
    "undeclared tool": sse(event(choice(delta={"tool_calls": [{"function": {"name": MARKER}}]})), DONE),
    "tool call out of order": sse(event(choice(delta={"tool_calls": [{"index": 3, "function": {"name": "f"}}]})), DONE),
    "another index": sse(event({"choices": [{"index": 1, "delta": {"content": MARKER}}]}), finish_event(), DONE),
    "a whole answer": response(whole_body(MARKER)),
}
CASES = [
    *[(False, name, data) for name, data in {**BROKEN, **BROKEN_WHOLE}.items()],
    *[(True, name, data) for name, data in {**BROKEN, **BROKEN_STREAM}.items()],
]


def silent_about_the_backend(answer: Response) -> None:
    """Nothing of the backend's is in the answer, whatever was said."""
    assert MARKER.lower().encode() not in (answer.raw_head + answer.body).lower()
    assert {name.lower() for name, _ in answer.headers} <= {
        "date",
        "server",
        "x-request-id",
        "content-type",
        "content-length",
        "cache-control",
        "x-accel-buffering",
        "transfer-encoding",
    }


@pytest.mark.parametrize(
    ("streamed", "data"),
    [case[::2] for case in CASES],
    ids=[f"{name}-{'stream' if streamed else 'whole'}" for streamed, name, _ in CASES],
)
def test_every_broken_answer_is_the_same_502(impatient: Gateway, backend: Backend, streamed: bool, data: bytes) -> None:
    backend.script = raw(data)
    answer = impatient.ask(stream=streamed)
    assert answer.status == 502
    assert answer.json == FAILED
    assert answer.complete
    silent_about_the_backend(answer)
    assert len(backend.requests) == 1, "a failed request must not be repeated, a redirect not followed"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_backend_that_is_down_is_502(impatient: Gateway, backend: Backend, streamed: bool) -> None:
    backend.down()
    try:
        answer = impatient.ask(stream=streamed)
        assert impatient.admin("/readyz")[0] == 503
    finally:
        backend.start()
    assert (answer.status, answer.json) == (502, FAILED)


@pytest.mark.parametrize("streamed", [False, True])
def test_headers_without_end_are_cut_off(impatient: Gateway, backend: Backend, streamed: bool) -> None:
    sent = 0

    async def script(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.send(b"HTTP/1.1 200 OK\r\n")
        while True:
            await exchange.send(b"X: " + MARKER.encode() * 50 + b"\r\n")
            sent += 1

    backend.script = script
    answer = impatient.ask(stream=streamed)
    assert (answer.status, answer.json) in ((502, FAILED), (504, LATE))
    silent_about_the_backend(answer)
    assert sent < 20_000, "the gateway took in 10 MB of headers"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_body_without_end_is_cut_off(impatient: Gateway, backend: Backend, streamed: bool) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin("text/event-stream" if streamed else "application/json")
        while True:
            await exchange.chunk(b": comment\n" * 1000 if streamed else b" " * 10_000)

    backend.script = script
    answer = impatient.ask(stream=streamed)
    assert (answer.status, answer.json) == (502, FAILED)
    until(backend.exchanges[0].cancelled.is_set, what="the backend's connection is closed")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("after_head", [False, True])
def test_a_backend_that_never_answers_is_504(
    impatient: Gateway, backend: Backend, streamed: bool, after_head: bool
) -> None:
    async def script(exchange: Exchange) -> None:
        if after_head:
            await exchange.begin("text/event-stream" if streamed else "application/json")
        await exchange.for_ever()

    backend.script = script
    before_s = time.monotonic()
    answer = impatient.ask(stream=streamed)
    assert (answer.status, answer.json) == (504, LATE)
    assert TIMEOUT_S <= time.monotonic() - before_s < 2 * TIMEOUT_S + 1
    until(backend.exchanges[0].cancelled.is_set, what="the backend's connection is closed")


def dripping(streamed: bool, *, text: bool) -> Script:
    """Something every 0.1 s, for ever: within every deadline but the total."""

    async def script(exchange: Exchange) -> None:
        await exchange.begin("text/event-stream" if streamed else "application/json")
        while True:
            await exchange.chunk(text_event("sixteen bytes...") if text else b" " if not streamed else b":\n\n")
            await asyncio.sleep(0.1)

    return script


@pytest.mark.parametrize("streamed", [False, True])
def test_a_backend_that_only_drips_runs_into_the_total_deadline(
    impatient: Gateway, backend: Backend, streamed: bool
) -> None:
    backend.script = dripping(streamed, text=False)
    before_s = time.monotonic()
    answer = impatient.ask(stream=streamed)
    assert (answer.status, answer.json) == (504, LATE)
    assert TOTAL_S <= time.monotonic() - before_s < TOTAL_S + 2


def test_a_stream_that_runs_into_the_total_deadline_ends_with_an_error_event(
    impatient: Gateway, backend: Backend
) -> None:
    backend.script = dripping(True, text=True)
    answer = impatient.ask(stream=True)
    assert answer.status == 200
    assert not answer.complete
    assert answer.events[-1] == LATE
    assert "[DONE]" not in answer.events


DEATHS = ["abort", "end", "error event", "garbage", "stall", "oversized event", "bad chunk", "tool out of nowhere"]


@pytest.mark.parametrize("death", DEATHS)
def test_a_stream_that_dies_ends_with_an_error_event_and_an_abort_and_stays_charged(
    impatient: Gateway, backend: Backend, death: str
) -> None:
    said = "Everything up to here was honest text. " * 3
    gate = backend.gate()

    async def script(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(text_event(said))
        await gate.passed()
        match death:
            case "abort":
                exchange.abort()
            case "error event":
                await exchange.chunk(event({"error": {"message": MARKER}}))
            case "garbage":
                await exchange.chunk(f"data: {MARKER}\n\n".encode())
            case "stall":
                await exchange.for_ever()
            case "oversized event":
                await exchange.chunk(text_event(MARKER * 30_000))
            case "bad chunk":
                await exchange.send(f"{MARKER}\r\n".encode())
            case "tool out of nowhere":
                await exchange.chunk(event(choice(delta={"tool_calls": [{"function": {"name": MARKER}}]})))
        await exchange.close()

    backend.script = script
    used_bits = impatient.used_bits()
    with impatient.connect() as connection:
        connection.send(request(body=chat(stream=True), key=impatient.key))
        answer = connection.head()
        pieces = connection.pieces(answer)
        answer.body += next(pieces)
        gate.open()
        answer.body += b"".join(pieces)
    assert answer.status == 200
    assert not answer.complete, "the end must not look like the end of a whole answer"
    assert answer.events[-1] == (LATE if death == "stall" else FAILED)
    assert "[DONE]" not in answer.events
    assert all(item["choices"][0]["finish_reason"] is None for item in answer.events[:-1])
    assert said.startswith(answer.text)
    assert len(answer.text) >= len(said) - 16
    silent_about_the_backend(answer)
    closed, settled = impatient.leaf("closed", answer), impatient.leaf("settled", answer)
    assert closed["outcome"] == ("timeout" if death == "stall" else "upstream_error")
    assert closed["text_bytes"] == len(answer.text)
    assert closed["charged_bits"] >= 8 * len(answer.text)
    assert impatient.used_bits() - used_bits == settled["charged_bits"] > 0


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (MARKER, "rejected_by_model_server"),
        (None, "rejected_by_model_server"),
        (7, "rejected_by_model_server"),
        (["unknown_vector"], "rejected_by_model_server"),
        ("context_length_exceeded", "context_length_exceeded"),
        ("unknown_vector", "unknown_vector"),
    ],
)
def test_a_rejection_says_only_what_the_closed_list_says(
    impatient: Gateway, backend: Backend, streamed: bool, code: object, expected: str
) -> None:
    body = json.dumps({"error": {"message": MARKER, "code": code, "param": MARKER, "type": MARKER}}).encode()
    backend.script = raw(response(body, status=f"400 {MARKER}", headers=CHATTY))
    answer = impatient.ask(stream=streamed)
    assert answer.status == 400
    assert answer.error["code"] == expected
    assert answer.error["param"] is None
    silent_about_the_backend(answer)


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422])
def test_every_rejecting_status_looks_the_same(impatient: Gateway, backend: Backend, status: int) -> None:
    backend.script = raw(response(f"<html>{MARKER * status}".encode(), status=f"{status} {MARKER}", headers=CHATTY))
    answer = impatient.ask()
    assert (answer.status, answer.error["code"]) == (400, "rejected_by_model_server")
    silent_about_the_backend(answer)


def test_an_answer_longer_than_was_asked_for_is_cut_with_length(impatient: Gateway, backend: Backend) -> None:
    async def script(exchange: Exchange) -> None:
        await stream(exchange, ["x" * 100] * 100)

    backend.script = script
    answer = impatient.ask(stream=True, max_tokens=10)
    assert answer.complete
    assert answer.text == "x" * 160
    assert answer.events[-1] == "[DONE]"
    assert [item["choices"][0]["finish_reason"] for item in answer.events[:-1]][-1] == "length"


def test_failures_are_counted_by_kind_and_never_by_the_backends_words(impatient: Gateway, backend: Backend) -> None:
    backend.script = raw(response(MARKER.encode(), status="500 x", headers=CHATTY))
    before = impatient.metric("weir_backend_errors_total", model="m", kind="status_5xx")
    impatient.ask()
    assert impatient.metric("weir_backend_errors_total", model="m", kind="status_5xx") == before + 1
    assert MARKER.lower().encode() not in impatient.admin("/metrics")[1].lower()
    assert MARKER not in (impatient.directory / "gateway.log").read_text()
    assert MARKER not in json.dumps(impatient.audit())


@pytest.mark.parametrize(("streamed", "status"), [(False, 200), (True, 504)])
def test_only_a_stream_must_begin_soon_because_an_unstreamed_answer_comes_whole(
    impatient: Gateway, backend: Backend, streamed: bool, status: int
) -> None:
    async def script(exchange: Exchange) -> None:
        await asyncio.sleep(2 * TIMEOUT_S)
        await say("Late, but whole.")(exchange)

    backend.script = script
    assert impatient.ask(stream=streamed).status == status
