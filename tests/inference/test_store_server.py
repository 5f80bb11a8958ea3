"""Vectors, files, jobs and datasets over real sockets."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import aiohttp
import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save

from inference.datasets import NAMES, load
from inference.jobs.chore import JobChore, Work
from inference.jobs.job import JobKind
from inference.jobs.table import JobTable
from inference.limits import IMPORT_BYTES_MAX, JOB_WATCHERS_MAX
from inference.server import jobs
from inference.steering import gguf_vectors
from inference.steering.store import VectorStore
from inference.steering.vector import Kind
from tests.inference.stored import D_MODEL, example, numbers

VECTORS = "/v1/steering/vectors"


async def post_file(client, query: str, content: bytes) -> tuple[int, Any]:
    return await client.call("POST", f"{VECTORS}/import?{query}", raw=content)


async def fetch(client, path: str) -> tuple[int, bytes]:
    async with client._session.get(client.base + path) as response:
        return response.status, await response.read()


async def test_a_control_vector_is_imported_steers_and_is_exported_byte_for_byte(client, tmp_path):
    content = gguf_vectors.write({5: numbers(D_MODEL), 20: numbers(D_MODEL, seed=1)}, model_hint="llama")
    status, shown = await post_file(client, "id=happy&format=gguf", content)
    assert status == 201
    assert (shown["kind"], shown["layers"], shown["method"]) == ("direction", [5, 20], "import")
    spec = {"vectors": [{"id": "happy", "op": "add", "scale": 1.0}]}
    status, body = await client.chat(temperature=0, max_tokens=3, steering=spec)
    assert (status, body["steering"]["applied"]["layers"]) == (200, [5, 20])
    status, exported = await fetch(client, f"{VECTORS}/happy/file?format=gguf")
    assert (status, exported) == (200, content)
    (tmp_path / "v.gguf").write_bytes(exported)
    assert {tensor.name for tensor in gguf.GGUFReader(tmp_path / "v.gguf").tensors} == {"direction.5", "direction.20"}
    status, other = await fetch(client, f"{VECTORS}/happy/file?format=safetensors")
    status, shown = await post_file(client, "id=again&format=safetensors", other)
    assert (status, shown["layers"], shown["model_hint"]) == (201, [5, 20], "llama")
    assert (await fetch(client, f"{VECTORS}/again/file?format=safetensors"))[1] == other


@pytest.mark.parametrize(
    ("query", "content", "status", "code"),
    [
        ("id=v&format=gguf", b"", 400, "bad_file"),
        ("id=v&format=gguf", b"PK\x03\x04 zip", 400, "bad_file"),
        ("id=v&format=safetensors", b"\x80\x04\x95", 400, "bad_file"),
        ("id=v&format=pickle", b"", 400, "invalid_value"),
        ("id=v", b"", 400, "invalid_value"),
        ("format=gguf", b"", 400, "invalid_value"),
        ("id=Bad&format=gguf", b"", 400, "invalid_value"),
        ("id=..&format=gguf", b"", 400, "invalid_value"),
        ("id=v&id=w&format=gguf", b"", 400, "unknown_field"),
        ("id=v&format=gguf&scale=2", b"", 400, "unknown_field"),
        ("id=taken&format=gguf", b"", 409, "vector_exists"),
        ("id=v&format=safetensors", save({"direction.3": torch.full((D_MODEL,), float("nan"))}), 400, "bad_vector"),
        ("id=v&format=safetensors", save({"direction.3": torch.zeros(D_MODEL)}), 400, "bad_vector"),
        ("id=v&format=safetensors", save({"direction.3": numbers(64)}), 400, "wrong_dimension"),
        ("id=v&format=safetensors", save({"direction.30": numbers(D_MODEL)}), 400, "bad_layer"),
        ("id=v&format=safetensors", save({"direction.3": numbers(D_MODEL).half()}), 400, "bad_file"),
    ],
)
async def test_a_file_that_cannot_be_right_is_refused_and_nothing_is_stored(client, query, content, status, code):
    client.service.store.add(example(Kind.DIRECTION, id="taken"))
    got, body = await post_file(client, query, content)
    assert (got, body["error"]["code"]) == (status, code)
    assert [vector.id for vector in client.service.store.all()] == ["taken"]
    assert client.service.imports._value == 2  # every place is free again


async def test_a_list_can_be_asked_for_by_the_beginning_of_its_ids(client):
    for vector_id in ("ab-x", "ab-y", "abc"):
        client.service.store.add(example(Kind.DIRECTION, id=vector_id))
    _, listed = await client.call("GET", f"{VECTORS}?prefix=ab-")
    assert [one["id"] for one in listed["data"]] == ["ab-x", "ab-y"]
    assert len((await client.call("GET", VECTORS))[1]["data"]) == 3
    status, error = await client.call("GET", f"{VECTORS}?prefixes=ab-")
    assert (status, error["error"]["param"]) == (400, "prefixes")


async def test_a_file_above_the_cap_is_refused_announced_or_not(client):
    async def endless():
        for _ in range(IMPORT_BYTES_MAX // (1 << 20) + 2):
            yield bytes(1 << 20)

    for body in (bytes(IMPORT_BYTES_MAX + 1), endless()):
        url = f"{client.base}{VECTORS}/import?id=v&format=gguf"
        try:
            async with client._session.post(url, data=body) as response:
                assert (response.status, (await response.json())["error"]["code"]) == (413, "body_too_large")
        except aiohttp.ClientConnectionError:  # it may hang up on the rest of the body
            pass
    assert client.service.store.all() == []
    assert client.service.imports._value == 2


async def test_a_large_dictionary_goes_in_although_json_bodies_are_smaller(client):
    d = D_MODEL
    tensors = {
        "encoder": numbers(2500, d),
        "encoder_bias": torch.zeros(2500),
        "decoder": numbers(2500, d),
        "decoder_bias": torch.zeros(d),
    }
    header = {"kind": "sae", "layers": [3], "metadata": {"model_digest": None, "activation": "relu"}}
    content = save(tensors, metadata={"weir.steering_vector": json.dumps(header)})
    assert len(content) > 11_000_000
    status, shown = await post_file(client, "id=sae&format=safetensors", content)
    assert (status, shown["kind"], shown["activation"]) == (201, "sae", "relu")


async def test_what_gguf_cannot_express_is_said(client):
    client.service.store.add(example(Kind.ERASER, id="e"))
    status, body = await client.call("GET", f"{VECTORS}/e/file?format=gguf")
    assert (status, body["error"]["code"], body["error"]["param"]) == (400, "not_expressible", "format")
    assert (await client.call("GET", f"{VECTORS}/none/file?format=gguf"))[0] == 404
    assert (await client.call("GET", f"{VECTORS}/e/file"))[0] == 400


async def test_vectors_are_combined_orthogonalised_and_normalised(client):
    for number in range(3):
        client.service.store.add(
            example(
                Kind.DIRECTION, id=f"v{number}", layers=(3,), tensors={"direction.3": numbers(D_MODEL, seed=number)}
            )
        )
    terms = [{"id": "v0", "weight": 2.0}, {"id": "v1"}]
    body = {"id": "mix", "terms": terms, "orthogonal_to": ["v2"], "normalize": True}
    status, shown = await client.call("POST", f"{VECTORS}/combine", body)
    assert (status, shown["method"], shown["norms"]) == (201, "combine", [pytest.approx(1.0)])
    made = client.service.store.get("mix").tensors["direction.3"]
    assert abs(float(made @ numbers(D_MODEL, seed=2))) < 1e-4
    status, answer = await client.call("POST", f"{VECTORS}/combine", body)
    assert (status, answer["error"]["code"]) == (409, "vector_exists")


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"terms": []}, "terms", "invalid_value"),
        ({"terms": [{"id": "none"}]}, "terms[0].id", "unknown_vector"),
        ({"terms": [{"id": "v", "weight": 1e9}]}, "terms[0].weight", "invalid_value"),
        ({"terms": [{"id": "v", "weight": 0}]}, "terms", "degenerate"),
        ({"terms": [{"id": "v"}, {"id": "deep"}]}, "terms", "layers_differ"),
        ({"terms": [{"id": "eraser"}]}, "terms", "wrong_kind"),
        ({"terms": [{"id": "v", "scale": 1}]}, "scale", "unknown_field"),
        ({"orthogonal_to": ["none"]}, "orthogonal_to[0]", "unknown_vector"),
        ({"orthogonal_to": ["v"]}, "terms", "degenerate"),
        ({"normalize": "yes"}, "normalize", "invalid_value"),
        ({"id": "No"}, "id", "invalid_value"),
    ],
)
async def test_a_bad_combination_is_refused_naming_the_field(client, change, param, code):
    one = {"layers": (3,), "tensors": {"direction.3": numbers(D_MODEL)}}
    client.service.store.add(example(Kind.DIRECTION, id="v", **one))
    client.service.store.add(example(Kind.DIRECTION, id="deep"))
    client.service.store.add(example(Kind.ERASER, id="eraser"))
    status, body = await client.call("POST", f"{VECTORS}/combine", {"id": "mix", "terms": [{"id": "v"}], **change})
    assert (status, body["error"]["code"]) == (400, code)
    assert param in body["error"]["param"]
    assert client.service.store.get("mix") is None


async def test_a_vector_is_described_and_the_description_taken_away(client, tmp_path):
    client.service.store.add(example(Kind.DIRECTION, id="v"))
    status, shown = await client.call("PATCH", f"{VECTORS}/v", {"description": "calm", "scale_default": 1.5})
    assert (status, shown["description"], shown["scale_default"]) == (200, "calm", 1.5)
    _, shown = await client.call("PATCH", f"{VECTORS}/v", {"description": None})
    assert ("description" in shown, shown["scale_default"]) == (False, 1.5)
    assert (await client.call("GET", f"{VECTORS}/v"))[1] == shown
    assert VectorStore(tmp_path / "vectors").get("v").metadata["scale_default"] == 1.5
    for bad in ({"kind": "sae"}, {"scale_default": 1e6}, {"description": "x" * 2000}, {"metadata": {}}):
        assert (await client.call("PATCH", f"{VECTORS}/v", bad))[0] == 400
    assert (await client.call("PATCH", f"{VECTORS}/none", {}))[0] == 404


async def test_a_full_store_is_507(client, monkeypatch):
    monkeypatch.setattr("inference.steering.store.VECTORS_STORED_MAX", 0)
    body = {"id": "v", "layer": 1, "vector": [1.0] * D_MODEL}
    status, answer = await client.call("POST", VECTORS, body)
    assert (status, answer["error"]["code"]) == (507, "store_full")


async def test_metadata_of_a_file_cannot_pretend_to_be_another_vector(client):
    metadata = {"model_digest": None, "id": "admin", "object": "model", "kind": "sae", "layers": [0]}
    header = {"kind": "direction", "layers": [3], "metadata": metadata}
    content = save({"direction.3": numbers(D_MODEL)}, metadata={"weir.steering_vector": json.dumps(header)})
    _, shown = await post_file(client, "id=v&format=safetensors", content)
    assert (shown["id"], shown["object"], shown["kind"], shown["layers"]) == ("v", "steering.vector", "direction", [3])


async def test_datasets_are_listed_without_their_texts(client):
    _, listed = await client.call("GET", "/v1/steering/datasets")
    assert [one["id"] for one in listed["data"]] == list(NAMES)
    harmfulness = next(one for one in listed["data"] if one["id"] == "harmfulness")
    assert harmfulness == {
        "id": "harmfulness",
        "object": "steering.dataset",
        "sides": ["harmful", "harmless"],
        "is_paired": False,
        "train": 64,
        "test": 64,
        "digest": load("harmfulness").digest_sha256,
    }


class Gate:
    """Work that waits to be let through, one piece at a time."""

    def __init__(self, pieces: int) -> None:
        self._pieces, self._may_go, self.is_closed = pieces, threading.Semaphore(0), False

    def go(self, pieces: int = 1) -> None:
        self._may_go.release(pieces)

    def work(self) -> Work:
        try:
            for done in range(1, self._pieces + 1):
                while not self._may_go.acquire(timeout=0.01):
                    yield (done - 1) / self._pieces  # the engine does not stand still
                yield done / self._pieces
            return {"scale": 1.5}
        finally:
            self.is_closed = True


def start_gate(client, job_id: str = "j", pieces: int = 4) -> Gate:
    gate = Gate(pieces)
    client.service.jobs.open(job_id, kind=JobKind.CALIBRATE)
    client.service.engine.add_chore(JobChore(gate.work(), jobs=client.service.jobs, job_id=job_id))
    return gate


async def next_event(response) -> Any:
    async with asyncio.timeout(10):
        line = await response.content.readline()
        assert await response.content.readline() == b"\n"
    return json.loads(line.removeprefix(b"data: "))


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - other threads change it
            await asyncio.sleep(0.01)


async def test_a_job_is_followed_to_its_last_state(client):
    gate = start_gate(client)
    async with client._session.get(f"{client.base}/v1/jobs/j/events") as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        seen = [await next_event(response)]
        for quarter in (0.25, 0.5, 0.75, 1.0):
            gate.go()
            while seen[-1]["progress"] < quarter:
                seen.append(await next_event(response))
        while seen[-1]["status"] != "succeeded":
            seen.append(await next_event(response))
        assert await response.content.read() == b""
    progress = [one["progress"] for one in seen]
    assert progress == sorted(progress)
    assert {0.25, 0.5, 0.75, 1.0} <= set(progress)
    assert seen[-1] == (await client.call("GET", "/v1/jobs/j"))[1]
    assert (seen[-1]["kind"], seen[-1]["result"]) == ("calibrate", {"scale": 1.5})
    async with client._session.get(f"{client.base}/v1/jobs/j/events") as response:  # and again, when it is over
        assert await next_event(response) == seen[-1]
        assert await response.content.read() == b""
    await until(lambda: client.service.jobs.watchers == 0)


async def test_the_stream_of_a_job_in_which_nothing_happens_is_not_silent(client, monkeypatch):
    monkeypatch.setattr(jobs, "JOB_SILENCE_S_MAX", 0.05)
    gate = start_gate(client)
    async with client._session.get(f"{client.base}/v1/jobs/j/events") as response:
        before = await next_event(response)
        async with asyncio.timeout(10):
            assert before["status"] in ("queued", "running")
            lines = [await response.content.readline() for _ in range(6)]
        assert b":\n" in lines
        gate.go(4)
        rest = await response.content.read()
    events = [block[6:] for block in rest.split(b"\n\n") if block.startswith(b"data: ")]
    assert json.loads(events[-1])["status"] == "succeeded"


async def test_deleting_a_job_cancels_it_and_ends_its_stream(client):
    gate = start_gate(client)
    waiting = start_gate(client, "waiting")
    async with client._session.get(f"{client.base}/v1/jobs/j/events") as response:
        gate.go()
        event = await next_event(response)
        while event["progress"] < 0.25:
            event = await next_event(response)
        status, _ = await client.call("DELETE", "/v1/jobs/waiting")
        assert status == 200
        assert (await client.call("GET", "/v1/jobs/waiting"))[1]["status"] == "cancelled"
        assert (await client.call("DELETE", "/v1/jobs/j"))[0] == 200
        while event["status"] == "running":
            event = await next_event(response)
        assert (event["status"], event["result"], event["error"]) == ("cancelled", None, None)
        assert await response.content.read() == b""
    assert gate.is_closed
    assert (await client.call("DELETE", "/v1/jobs/j"))[1]["status"] == "cancelled"
    assert (await client.call("DELETE", "/v1/jobs/none"))[0] == 404
    assert not waiting.is_closed  # it never began, so there was nothing to close
    assert (await client.chat(max_tokens=1))[0] == 200


async def test_followers_who_leave_or_never_read_cost_nothing_and_their_number_is_bounded(client):
    gate = start_gate(client, pieces=3000)
    url = f"{client.base}/v1/jobs/j/events"
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        streams = [await session.get(url) for _ in range(JOB_WATCHERS_MAX)]
        assert {stream.status for stream in streams} == {200}
        async with session.get(url) as refused:
            assert (refused.status, (await refused.json())["error"]["code"]) == (503, "job_watchers_full")
        streams[0].close()
        await until(lambda: client.service.jobs.watchers == JOB_WATCHERS_MAX - 1)
        async with session.get(url) as response:  # the place is free again
            assert response.status == 200
            gate.go(3000)  # nobody reads what comes now
            await until(lambda: client.service.jobs.get("j").is_over)
        assert (await client.chat(max_tokens=1))[0] == 200
        last = [json.loads(line[6:]) for line in (await streams[1].content.read()).splitlines() if line][-1]
        assert last["status"] == "succeeded"  # a slow reader still gets the end
        for stream in streams:
            stream.close()
    await until(lambda: client.service.jobs.watchers == 0)
    assert client.service.jobs._watchers == {}


async def test_a_client_that_hangs_up_while_its_job_is_being_entered_leaves_none_that_waits_for_ever(
    client, monkeypatch
):
    body = {"id": "v", "method": "mean_difference", "layer": 3, "positive": ["yes"], "negative": ["no"], "job_id": "j"}
    table, entered = client.service.jobs, threading.Event()
    real = table.open

    def slow(job_id: str, *, kind: JobKind):
        entered.set()
        time.sleep(0.2)  # the disk takes its time, and meanwhile the client is gone
        return real(job_id, kind=kind)

    monkeypatch.setattr(table, "open", slow)
    asking = asyncio.create_task(client.call("POST", "/v1/steering/extract", body))
    await until(entered.is_set)
    asking.cancel()
    await until(lambda: (job := table.get("j")) is not None and job.is_over)
    assert table.get("j").status == "succeeded"


async def test_jobs_are_listed_and_outlive_the_server(client, tmp_path):
    start_gate(client, "first", pieces=1).go()
    start_gate(client, "second", pieces=1)
    await until(lambda: client.service.jobs.get("first").is_over)
    _, listed = await client.call("GET", "/v1/jobs")
    assert [(job["id"], job["object"]) for job in listed["data"]] == [("first", "job"), ("second", "job")]
    client.service.stop()
    after = {job.id: job for job in JobTable(tmp_path / "jobs").all()}
    assert after["first"].result == {"scale": 1.5}
    assert after["second"].error["code"] == "interrupted"
    client.service.engine = type(client.service.engine)(client.service.loaded.model, batch_rows_max=1, kv_tokens_max=64)
    client.service.engine.start()  # for the end of the test, which stops it


async def test_what_is_drawn_from_numpy_is_what_is_stored(client):
    values = np.random.default_rng(3).standard_normal(D_MODEL)
    body = {"id": "v", "layer": 3, "vector": values.tolist()}
    assert (await client.call("POST", VECTORS, body))[0] == 201
    _, content = await fetch(client, f"{VECTORS}/v/file?format=gguf")
    directions, _ = gguf_vectors.read(content)
    assert np.array_equal(directions[3].numpy(), values.astype(np.float32))


async def test_everything_that_exists_is_in_the_capabilities(client):
    _, capabilities = await client.call("GET", "/v1/capabilities")
    assert capabilities["store"]["kinds"] == ["direction", "positional", "heads", "eraser", "sae"]
    assert capabilities["store"]["formats"] == ["gguf", "safetensors"]
    assert capabilities["datasets"] == list(NAMES)
