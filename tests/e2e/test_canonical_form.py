"""Two backends that say the same thing in different bytes give byte-identical answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.backend import DONE, Backend, Exchange, Script, event, raw, response
from tests.e2e.processes import Gateway, policy
from tests.e2e.wire import Response, chat, request

TEXT = "Grüße aus Bern — “quoted”, \\ and /slashes/,\nnew lines\tand 🦫 beavers. " * 6
ARGUMENTS = {"city": "Zürich", "days": 3, "nested": {"a": [1, 2.5, None, True], "b": ""}}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def other_of_module() -> Iterator[Backend]:
    other = Backend()
    yield other
    other.close()


@pytest.fixture(scope="module")
def pair_of_module(
    backend_of_module: Backend, other_of_module: Backend, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("pair")
    rules = policy(backend_of_module.url, directory)
    rules["models"]["n"] = {
        **rules["models"]["m"],
        "upstream": other_of_module.url,
        "budgets": [{"window": "lifetime", "fraction": "50%"}],
    }
    rules["models"]["n"]["weights"] = {"parameters": 1_000_000_000}
    rules["models"]["n"]["timeouts"] = dict(rules["models"]["m"]["timeouts"])
    rules["tenants"]["alice"]["models"] = ["m", "n"]
    gateway = Gateway(directory, rules).start()
    yield gateway
    gateway.close()


@pytest.fixture
def pair(
    pair_of_module: Gateway, backend: Backend, other_of_module: Backend
) -> Callable[..., tuple[Response, Response]]:
    """Ask the terse backend and the talkative one the same; their answers with the gateway's own values levelled."""

    def ask(terse: Script, talkative: Script, **fields: Any) -> tuple[Response, Response]:
        backend.script, other_of_module.script = terse, talkative
        answers = []
        for model in ("m", "n"):
            answer = pair_of_module.send(request(body={**chat(**fields), "model": model}, key=pair_of_module.key))
            answers.append(levelled(answer, model))
        return answers[0], answers[1]

    return ask


def levelled(answer: Response, model: str) -> Response:
    """Replace what the gateway itself chooses anew each time: the answer's id, the date, and here the model's name."""
    identity = answer.header("X-Request-Id")
    assert identity is not None
    date = answer.header("Date")
    assert date is not None
    answer.raw_head = answer.raw_head.replace(identity.encode(), b"ID").replace(date.encode(), b"DATE")
    body = answer.body.replace(identity.encode(), b"ID").replace(f'"model":"{model}"'.encode(), b'"model":"M"')
    answer.body = re.sub(rb'"created":\d+', b'"created":0', body)
    return answer


def whole(document: dict[str, Any], **dumps: Any) -> bytes:
    return json.dumps(document, **dumps).encode()


TERSE_WHOLE = {
    "choices": [{"index": 0, "message": {"content": TEXT}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 9},
}
TALKATIVE_WHOLE = {
    "system_fingerprint": "fp_covert",
    "usage": {"completion_tokens": 9, "total_tokens": 777, "prompt_tokens": 3, "prompt_tokens_details": {"cached": 1}},
    "id": "covert",
    "object": "covert",
    "created": 123456,
    "model": "covert",
    "choices": [
        {
            "finish_reason": "eos_token",
            "logprobs": {"content": [{"token": "covert", "logprob": -0.125}]},
            "message": {"role": "covert", "annotations": ["covert"], "content": TEXT, "reasoning_content": "covert"},
            "stop_reason": "covert",
            "index": 0,
        }
    ],
    "kv_transfer_params": {"covert": 1},
}
TALKATIVE_HEADERS = (
    "Server: covert\r\nDate: Mon, 01 Jan 2001 00:00:00 GMT\r\nx-request-id: covert\r\nSet-Cookie: c=overt\r\n"
    "traceparent: 00-c0ffee-1-01\r\nRetry-After: 77\r\nCache-Control: max-age=77\r\nopenai-processing-ms: 77\r\n"
)


def test_unstreamed_answers_are_identical_to_the_byte(pair: Callable[..., tuple[Response, Response]]) -> None:
    async def talkative(exchange: Exchange) -> None:
        await exchange.begin("Application/JSON; charset=covert", status="202 Covert", headers=TALKATIVE_HEADERS)
        body = b" \r\n\t" + whole(TALKATIVE_WHOLE, ensure_ascii=True, indent=3) + b"\n\n"
        for start in range(0, len(body), 17):
            await exchange.send(b"%X;covert=1\r\n%s\r\n" % (len(body[start : start + 17]), body[start : start + 17]))
        await exchange.send(b"0\r\nX-Trailer: covert\r\n\r\n")

    one, two = pair(raw(response(whole(TERSE_WHOLE, ensure_ascii=False))), talkative)
    assert one.status == 200
    assert one.json["choices"][0]["message"]["content"] == TEXT
    assert one.raw_head == two.raw_head
    assert one.body == two.body
    assert b"overt" not in two.raw_head + two.body


def test_tool_calls_are_identical_to_the_byte(pair: Callable[..., tuple[Response, Response]]) -> None:
    def answer(arguments: str, **extra: Any) -> bytes:
        call = {"function": {"name": "look_up", "arguments": arguments}, **extra}
        choice = {"index": 0, "message": {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}
        return whole({"choices": [choice]})

    turned = json.dumps(dict(reversed(ARGUMENTS.items())), indent=2, ensure_ascii=True)
    talkative = answer(turned.replace("2.5", "2.50"), id="call_covert", type="function", index=0)
    one, two = pair(raw(response(answer(json.dumps(ARGUMENTS)))), raw(response(talkative)), tools=[TOOL])
    (call,) = one.json["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == ARGUMENTS
    assert one.raw_head == two.raw_head
    assert one.body == two.body


def test_errors_are_identical_to_the_byte(pair: Callable[..., tuple[Response, Response]]) -> None:
    terse = raw(response(b"", status="500 No"))
    talkative = raw(
        response(b"covert" * 999, status="418 covert", content_type="text/covert", headers=TALKATIVE_HEADERS)
    )
    one, two = pair(terse, talkative)
    assert (one.status, one.raw_head, one.body) == (502, two.raw_head, two.body)


def sse(text: str, size: int) -> list[bytes]:
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    return [event({"choices": [{"index": 0, "delta": {"content": part}}]}) for part in parts]


def test_streams_give_the_same_text_and_the_same_ending(pair: Callable[..., tuple[Response, Response]]) -> None:
    end = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    count = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 9}})

    async def terse(exchange: Exchange) -> None:
        await exchange.send(response(b"".join([*sse(TEXT, 10**6), end, count, DONE]), content_type="text/event-stream"))

    async def talkative(exchange: Exchange) -> None:
        await exchange.begin("text/event-stream; charset=covert", headers=TALKATIVE_HEADERS)
        usage = event({"id": "covert", "choices": [], "usage": {"completion_tokens": 9, "prompt_tokens": 3, "x": 1}})
        first = (
            b": covert comment\r\n\r\nevent: covert\r\nid: covert\r\nretry: 777\r\ndata: " + b'{"choices":[]}\r\n\r\n'
        )
        role = event({"choices": [{"index": 0, "delta": {"role": "covert", "content": None}, "covert": 1}]})
        stream = b"".join(
            [first, role, *sse(TEXT, 1), end.replace(b'"stop"', b'"eos"'), usage, DONE, b"data: covert\n\n"]
        )
        for start in range(0, len(stream), 4099):
            await exchange.chunk(stream[start : start + 4099])
        await exchange.finish()

    one, two = pair(terse, talkative, stream=True, stream_options={"include_usage": True})
    assert one.text == two.text == TEXT
    assert one.raw_head == two.raw_head
    endings = [[item for item in answer.events if not has_content(item)] for answer in (one, two)]
    assert endings[0] == endings[1]
    assert endings[0][-1] == "[DONE]"
    assert b"overt" not in two.raw_head + two.body
    assert one.complete
    assert two.complete


def has_content(item: dict[str, Any] | str) -> bool:
    return isinstance(item, dict) and any(choice["delta"].get("content") for choice in item["choices"])
