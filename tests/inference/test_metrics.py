"""What the inference server counts about itself, seen over HTTP."""

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from inference.limits import STOP_BYTES_MAX

D_MODEL = 576


@pytest.fixture
def metric(client):
    """The sum of all samples of this name that have these labels."""

    async def metric(name, **labels):
        async with client._session.get(f"{client.base}/metrics") as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"].startswith("text/plain")
            families = text_string_to_metric_families(await answer.text())
            samples = [sample for family in families for sample in family.samples]
        found = [s.value for s in samples if s.name == f"weir_inference_{name}" and labels.items() <= s.labels.items()]
        return sum(found) if found else None

    return metric


async def becomes(metric, name, value, **labels):
    """Wait for it; the test's own time limit ends it."""
    while await metric(name, **labels) != value:  # noqa: ASYNC110  seen over HTTP
        await asyncio.sleep(0.01)


async def test_tokens_are_counted_as_the_answers_usage_says(client, metric):
    _, whole = await client.chat(max_tokens=5)
    async with client.post(
        "/v1/completions", {"model": whole["model"], "prompt": "One", "max_tokens": 4, "stream": True}
    ) as s:
        await s.read()
    assert await metric("prompt_tokens_total") > whole["usage"]["prompt_tokens"]
    assert await metric("generated_tokens_total") == whole["usage"]["completion_tokens"] + 4
    assert await metric("steered_tokens_total") == 0
    assert await metric("requests_total", route="/v1/chat/completions", status="200") == 1
    assert await metric("request_duration_seconds_count", route="/v1/completions") == 1


async def test_steered_tokens_are_counted_as_the_answer_reports_them(client, metric):
    status, _ = await client.call("POST", "/v1/steering/vectors", {"id": "up", "layer": 5, "vector": [1.0] * D_MODEL})
    assert status == 201
    assert await metric("vectors_stored") == 1
    _, answer = await client.chat(max_tokens=6, steering={"vectors": [{"id": "up", "op": "add", "scale": 2.0}]})
    applied = answer["steering"]["applied"]
    assert applied["generated_tokens"] > 0
    for part in ("prompt", "generated"):
        assert await metric("steered_tokens_total", part=part) == applied[f"{part}_tokens"]


async def test_refusals_are_counted_by_route_and_status_and_no_path_of_a_client_becomes_a_label(client, metric):
    await client.chat(stop="x" * (STOP_BYTES_MAX + 1))
    await client.call("GET", "/secret/words")
    await client.call("GET", "/v1/jobs/my-secret-job")
    assert await metric("requests_total", route="/v1/chat/completions", status="400") == 1
    assert await metric("requests_total", route="other", status="404") == 1
    assert await metric("requests_total", route="/v1/jobs/{id}", status="404") == 1
    async with client._session.get(f"{client.base}/metrics") as page:
        assert "secret" not in await page.text()


async def test_the_batch_and_its_memory_are_shown_while_a_request_runs_and_are_free_after_it(client, metric):
    asking = asyncio.create_task(client.chat(max_tokens=200))
    await becomes(metric, "batch_rows", 1)
    assert await metric("kv_tokens_reserved") > 200
    assert await metric("requests_waiting") == 0
    await asking
    await becomes(metric, "batch_rows", 0)
    assert await metric("kv_tokens_reserved") == 0
    assert await metric("kv_tokens_max") == 8192
    assert await metric("batch_rows_max") == 8


async def test_a_client_that_goes_away_is_counted_as_such(client, metric):
    async with client.post(
        "/v1/completions", {"model": client.service.model_id, "prompt": "One", "stream": True}
    ) as stream:
        await stream.content.readany()
    await becomes(metric, "requests_total", 1, route="/v1/completions", status="499")


async def test_the_model_is_named_with_its_digest(client, metric):
    loaded = client.service.loaded
    assert await metric("model_info", id=loaded.id, digest=loaded.digest_sha256, dtype="float32") == 1
