from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

MODEL_ID = "smollm2-135m-instruct"
SECRET = "xylophone"


@contextlib.asynccontextmanager
async def served(
    model: Path, directory: Path
) -> AsyncIterator[tuple[asyncio.subprocess.Process, aiohttp.ClientSession]]:
    """A server process on a Unix socket, ready to answer; killed at the end if it still lives."""
    path = directory / "s.sock"
    command = [sys.executable, "-m", "inference", "serve", "--model", str(model), "--state", str(directory / "state")]
    process = await asyncio.create_subprocess_exec(
        *command, "--listen", f"unix:{path}", "--max-batch", "4", stderr=asyncio.subprocess.PIPE
    )
    try:
        async with aiohttp.ClientSession("http://server", connector=aiohttp.UnixConnector(str(path))) as session:
            async with asyncio.timeout(60):
                while True:
                    with contextlib.suppress(aiohttp.ClientError):
                        async with session.get("/readyz") as response:
                            assert response.status == 200
                            break
                    await asyncio.sleep(0.05)
            yield process, session
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_server_starts_on_a_unix_socket_keeps_vectors_over_a_restart_and_ends_with_status_0_when_idle(
    model_directory: Path, tmp_path: Path
):
    async with served(model_directory, tmp_path) as (process, session):
        vector = {"id": "kept", "layer": 3, "vector": [0.5] * 576}
        async with session.post("/v1/steering/vectors", json=vector) as response:
            assert response.status == 201
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, log = await process.communicate()
        assert process.returncode == 0
        assert time.monotonic() - began < 2
        assert [json.loads(line)["event"] for line in log.splitlines()] == ["ready", "draining", "stopped"]
    async with (
        served(model_directory, tmp_path) as (process, session),
        session.get("/v1/steering/vectors/kept") as response,
    ):
        assert (await response.json())["norm"] == 12.0


async def test_vectors_jobs_and_derived_models_survive_a_kill(model_directory: Path, tmp_path: Path):
    asked = {"model": "without", "prompt": "The sea", "max_tokens": 8, "temperature": 0}
    async with served(model_directory, tmp_path) as (process, session):
        vector = {"id": "v", "layer": 12, "vector": [(-1.0) ** i * (i % 7) for i in range(576)]}
        async with session.post("/v1/steering/vectors", json=vector) as response:
            assert response.status == 201
        job = {"model": "without", "vectors": ["v"], "job_id": "made"}
        async with session.post("/v1/steering/orthogonalize", json=job) as response:
            assert response.status == 202
        async with session.get("/v1/jobs/made/events") as response:
            *_, last = [json.loads(line[6:]) async for line in response.content if line.startswith(b"data: ")]
        assert last["status"] == "succeeded"
        async with session.post("/v1/completions", json=asked) as response:
            before = (await response.json())["choices"]
        job = {"model": "never", "vectors": ["v"], "job_id": "cut"}
        async with session.post("/v1/steering/orthogonalize", json=job) as response:
            assert response.status == 202
        process.kill()
        await process.wait()
    (tmp_path / "state" / "vectors" / "bad.safetensors").write_bytes(b"torn")
    async with served(model_directory, tmp_path) as (process, session):
        async with session.get("/v1/jobs") as response:
            jobs = {job["id"]: job for job in (await response.json())["data"]}
        assert jobs["made"] == last
        assert jobs["cut"]["error"]["code"] == "interrupted"
        async with session.get("/v1/models") as response:
            assert [model["id"] for model in (await response.json())["data"]] == [MODEL_ID, "without"]
        async with session.post("/v1/completions", json=asked) as response:
            assert (await response.json())["choices"] == before
        process.send_signal(signal.SIGTERM)
        _, log = await process.communicate()
        (complaint,) = [line for line in map(json.loads, log.splitlines()) if line["level"] == "error"]
        assert complaint["file"].endswith("bad.safetensors")


async def test_an_answer_in_flight_is_finished_after_sigterm_and_the_log_holds_no_text(
    model_directory: Path, tmp_path: Path
):
    async with served(model_directory, tmp_path) as (process, session):
        body = {"model": MODEL_ID, "prompt": f"{SECRET} {SECRET}", "max_tokens": 40, "stream": True, "temperature": 0}
        async with session.post("/v1/completions", json=body) as response:
            first = await response.content.readline()
            process.send_signal(signal.SIGTERM)
            rest = await response.content.read()
        assert first.startswith(b"data: ")
        assert rest.endswith(b"data: [DONE]\n\n")
        _, log = await process.communicate()
        assert process.returncode == 0
        assert SECRET.encode() not in log
        answered = next(line for line in map(json.loads, log.splitlines()) if line["event"] == "answered")
        assert answered["completion_tokens"] == 40


async def test_a_model_that_is_not_there_is_a_sentence_and_status_1(tmp_path: Path):
    command = [sys.executable, "-m", "inference", "serve", "--model", str(tmp_path / "none"), "--state", str(tmp_path)]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    _, log = await process.communicate()
    assert process.returncode == 1
    assert "neither a model directory" in json.loads(log)["reason"]


async def test_a_device_that_is_not_there_is_a_sentence_and_status_1(model_directory: Path, tmp_path: Path):
    command = [sys.executable, "-m", "inference", "serve", "--model", str(model_directory), "--state", str(tmp_path)]
    process = await asyncio.create_subprocess_exec(
        *command, "--device", "cuda", stderr=asyncio.subprocess.PIPE, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    )
    _, log = await process.communicate()
    assert process.returncode == 1
    assert "no CUDA device" in json.loads(log)["reason"]
