from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from inference.limits import SCORE_BODY_BYTES_MAX, SCORE_TEXT_BYTES_MAX
from inference.score.app import ScoreService, make_app
from inference.score.digest import digest

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
SECRET = "xylophone"


@pytest.fixture
async def post(score_service: ScoreService) -> AsyncIterator[Any]:
    runner = web.AppRunner(make_app(score_service), handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    async with aiohttp.ClientSession(f"http://{host}:{port}") as session:

        async def post(body: Any = None, *, raw: bytes | None = None, path: str = "/score") -> tuple[int, Any]:
            data = raw if raw is not None else json.dumps(body).encode()
            async with session.post(path, data=data) as response:
                return response.status, await response.json()

        post.session = session
        yield post
    score_service.is_draining = False
    await runner.cleanup()


async def test_items_come_back_in_order_with_bits_and_the_code_they_were_scored_under(post, score_service):
    items = [
        {"messages": FRANCE, "text": "The capital of France is Paris."},
        {"messages": FRANCE, "text": "Bananas, naturally, are the capital."},
        {"prompt": "One, two, three,", "text": " four"},
        {"prompt": "", "text": ""},
    ]
    status, body = await post({"items": items})
    assert status == 200
    assert body["code"] == score_service.code
    likely, odd, four, nothing = body["items"]
    assert [item["tokens"] for item in body["items"]] == [7, 9, 1, 0]
    assert likely["bits"] < 15 < 40 < odd["bits"]
    assert 0 < four["bits"] < 20
    assert 0 < nothing["bits"] <= 11
    assert all(type(item["bits"]) is int for item in body["items"])


async def test_the_code_can_be_recomputed_from_what_it_says_it_is_taken_of(post, score_service):
    async with post.session.get("/code") as response:
        body = await response.json()
    assert body["code"] == score_service.code == digest(body["measure"])
    assert body["measure"]["end_ids"] == [0, 2]
    assert len(body["code"]) == 64


async def test_texts_too_long_or_with_messages_the_template_refuses_have_an_error_and_the_others_bits(post):
    items = [
        {"prompt": "", "text": "a" * (SCORE_TEXT_BYTES_MAX + 1)},
        {"prompt": "", "text": "fine"},
    ]
    status, body = await post({"items": items})
    assert status == 200
    assert "longer than 1048576 bytes" in body["items"][0]["error"]
    assert body["items"][1]["bits"] > 0


async def test_content_parts_tool_calls_and_the_newer_role_name_are_understood(post):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "7", "tool_call_id": "c"},
    ]
    status, body = await post({"items": [{"messages": messages, "text": "Seven."}]})
    assert status == 200
    assert body["items"][0]["bits"] > 0


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, None),
        ({"items": []}, 400, "items"),
        ({"items": [{"text": "a", "prompt": ""}] * 65}, 400, "items"),
        ({"items": [{"text": "a"}]}, 400, "items[0]"),
        ({"items": [{"text": "a", "prompt": "", "messages": FRANCE}]}, 400, "items[0]"),
        ({"items": [{"text": "a", "messages": []}]}, 400, "items[0].messages"),
        (
            {"items": [{"text": "a", "messages": [{"role": "king", "content": ""}]}]},
            400,
            "items[0].messages[0].role",
        ),
        ({"items": [{"prompt": "a"}]}, 400, "items[0]"),
        ({"items": [{"text": 5, "prompt": "a"}]}, 400, "items[0].text"),
        ({"items": [{"text": "a", "prompt": "", "logits": []}]}, 400, "items[0].logits"),
        ({"items": [{"text": "a", "prompt": ""}], "model": "x"}, 400, "model"),
    ],
)
async def test_bad_input_is_refused_in_openais_shape_with_the_field_at_fault(post, body, status, param):
    found, answer = await post(body)
    assert (found, answer["error"]["param"]) == (status, param)
    assert answer["error"]["type"] == "invalid_request_error"


async def test_bodies_that_are_no_json_and_too_large_and_wrong_paths_are_refused(post):
    for raw in (
        b"",
        b"{",
        b'{"items": [{"prompt": "", "text": "\xff"}]}',
        b'{"items": [{"prompt":"","text":"\\ud800"}]}',
    ):
        status, answer = await post(raw=raw)
        assert (status, answer["error"]["code"]) == (400, "invalid_json")
    status, answer = await post(raw=b" " * (SCORE_BODY_BYTES_MAX + 1))
    assert (status, answer["error"]["code"]) == (413, "body_too_large")
    assert (await post({}, path="/v1/score"))[0] == 404
    async with post.session.get("/score") as response:
        assert response.status == 405


async def test_a_client_that_hangs_up_takes_its_texts_with_it(post, score_service):
    item = {"prompt": "", "text": "word " * 900}
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await post({"items": [item] * 64})
    async with asyncio.timeout(30):
        while score_service.scorer.active_requests:  # noqa: ASYNC110 - the scorer is a thread
            await asyncio.sleep(0.05)


async def test_a_draining_server_is_alive_but_not_ready_and_takes_nothing_new(post, score_service):
    score_service.is_draining = True
    status, answer = await post({"items": [{"prompt": "", "text": "a"}]})
    assert (status, answer["error"]["code"]) == (503, "stopping")
    for path, expected in (("/livez", 200), ("/readyz", 503)):
        async with post.session.get(path) as response:
            assert response.status == expected


@contextlib.asynccontextmanager
async def scoring(model: Path, directory: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, Path]]:
    """The command on a Unix socket, ready; killed at the end if it still lives."""
    path = directory / "s.sock"
    command = [sys.executable, "-m", "inference", "score", "--model", str(model), "--listen", f"unix:{path}"]
    process = await asyncio.create_subprocess_exec(
        *command, "--threads", "1", "--batch-tokens-max", "512", stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(60):
            while not path.exists():
                assert process.returncode is None
                await asyncio.sleep(0.05)
        yield process, path
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_eight_clients_at_once_over_a_unix_socket_get_what_each_would_get_alone(
    model_directory: Path, tmp_path: Path, post, score_service
):
    requests = [{"items": [{"messages": FRANCE, "text": f"{SECRET} {i} " * n} for n in (1, i + 1)]} for i in range(8)]
    expected = [(await post(request))[1] for request in requests]
    async with scoring(model_directory, tmp_path) as (process, path):

        async def client(request: Any) -> Any:
            async with (
                aiohttp.ClientSession("http://score", connector=aiohttp.UnixConnector(str(path))) as session,
                session.get("/readyz") as ready,
                session.post("/score", json=request) as response,
            ):
                assert ready.status == response.status == 200
                return await response.json()

        found = await asyncio.gather(*map(client, requests))
        for ours, theirs in zip(found, expected, strict=True):
            assert ours["code"] == theirs["code"] == score_service.code
            for a, b in zip(ours["items"], theirs["items"], strict=True):
                assert a["tokens"] == b["tokens"]
                assert abs(a["bits"] - b["bits"]) <= 1
        process.send_signal(signal.SIGTERM)
        _, log = await process.communicate()
    assert process.returncode == 0
    lines = [json.loads(line)["event"] for line in log.splitlines()]
    assert lines == ["ready", *["scored"] * 8, "draining", "stopped"]
    assert SECRET.encode() not in log


async def test_a_model_that_is_not_there_is_a_sentence_and_status_1(tmp_path: Path):
    command = [sys.executable, "-m", "inference", "score", "--model", str(tmp_path / "none")]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    _, log = await process.communicate()
    assert process.returncode == 1
    assert "neither a model directory" in json.loads(log)["reason"]
