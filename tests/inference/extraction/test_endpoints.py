"""Extract, select, calibrate and evaluate over HTTP: what is refused before anything runs, and whole jobs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

GLAD = [
    f"I am so happy and full of joy about {thing}."
    for thing in ("it", "you", "today", "work", "home", "her", "us", "him")
]
SOUR = [
    f"I am so sad and full of grief about {thing}."
    for thing in ("it", "you", "today", "work", "home", "her", "us", "him")
]


async def finished(client: Any, job: dict[str, Any]) -> dict[str, Any]:
    async with asyncio.timeout(120):
        while job["status"] not in ("succeeded", "failed", "cancelled"):
            _, job = await client.call("GET", f"/v1/jobs/{job['id']}")
            await asyncio.sleep(0.05)
    return job


async def done(client: Any, path: str, body: dict[str, Any]) -> dict[str, Any]:
    status, job = await client.call("POST", f"/v1/steering/{path}", body)
    assert (status, job["object"], job["kind"]) == (202, "job", path), job
    job = await finished(client, job)
    assert job["status"] == "succeeded", job
    return job["result"]


def extraction(**changes: Any) -> dict[str, Any]:
    body = {"id": "mood", "method": "mean_difference", "positive": GLAD, "negative": SOUR, "layer": 16, "chat": True}
    return {key: value for key, value in {**body, **changes}.items() if value is not None}


def calibration(**changes: Any) -> dict[str, Any]:
    body = {
        "steering": {"vectors": [{"id": "mood", "op": "add"}]},
        "prompts": ["How was your day?", "Tell me about your family."],
        "chat": True,
        "answer_tokens": 6,
    }
    return {key: value for key, value in {**body, **changes}.items() if value is not None}


def evaluation(**changes: Any) -> dict[str, Any]:
    return calibration(
        **{"scales": [-1, 0, 1], "positive": [" happy", " great"], "negative": [" sad", " bad"], **changes}
    )


BAD_EXTRACTIONS = [
    ({"layer": None}, "layer", "invalid_value"),
    ({"layers": [3]}, "layers", "invalid_value"),
    ({"layer": 30}, "layer", "bad_layer"),
    ({"layer": None, "layers": [3, 30]}, "layers", "bad_layers"),
    ({"layer": None, "layers": [3, 3]}, "layers", "bad_layers"),
    ({"layer": None, "layers": []}, "layers", "invalid_value"),
    ({"method": "magic"}, "method", "invalid_value"),
    ({"positive": None}, "positive", "invalid_value"),
    ({"dataset": "sentiment"}, "dataset", "invalid_value"),
    ({"positive": None, "negative": None, "dataset": "none"}, "dataset", "unknown_dataset"),
    ({"negative": SOUR[:3]}, "negative", "invalid_value"),
    ({"negative": SOUR[:3], "paired": False, "method": "pca"}, "negative", "not_paired"),
    ({"positive": None, "negative": None, "dataset": "harmfulness", "method": "logistic"}, "dataset", "not_paired"),
    ({"token": "first"}, "token", "invalid_value"),
    ({"token": "all"}, "token", "invalid_value"),
    ({"token": 9_000_000}, "token", "invalid_value"),
    ({"token": 500}, "token", "no_such_token"),
    ({"token": -500}, "token", "no_such_token"),
    ({"token": "post_instruction", "chat": False}, "token", "invalid_value"),
    ({"params": {"c": 1.0}}, "params.c", "unknown_field"),
    ({"params": {"speed": 1}}, "params.speed", "unknown_field"),
    ({"method": "logistic", "params": {"c": 0}}, "params.c", "invalid_value"),
    ({"method": "logistic", "params": {"seed": 1}}, "params.seed", "unknown_field"),
    ({"method": "ccs", "params": {"labels": [True]}}, "params.labels", "invalid_value"),
    ({"method": "ccs", "positive": GLAD[:1], "negative": SOUR[:1]}, "negative", "not_enough_texts"),
    ({"method": "pca_centred", "positive": GLAD[:1], "negative": SOUR[:1]}, "negative", "not_enough_texts"),
    ({"method": "actadd"}, "positive", "invalid_value"),
    ({"method": "actadd", "positive": GLAD[:1], "negative": SOUR[:1], "token": "mean"}, "token", "invalid_value"),
    ({"method": "refusal", "chat": False, "token": "last"}, "chat", "invalid_value"),
    ({"method": "refusal", "positive": GLAD[:3], "negative": SOUR}, "positive", "not_enough_texts"),
    ({"method": "refusal", "params": {"rounds": 2}}, "params.rounds", "unknown_field"),
    ({"positive": ["x" * 20_000] * 8}, "positive", "text_too_long"),
    ({"id": "Bad Id"}, "id", "invalid_value"),
    ({"unknown": 1}, "unknown", "unknown_field"),
]
BAD_SELECTIONS = [
    ({"method": "leace"}, "method", "invalid_value"),
    ({"method": "actadd"}, "method", "invalid_value"),
    ({"method": "ccs"}, "method", "invalid_value"),
    ({"method": "logistic", "by": "refusal", "negative": SOUR[:7]}, "negative", "invalid_value"),
    ({"tokens": ["last", "last"]}, "tokens", "invalid_value"),
    ({"tokens": ["all"]}, "tokens", "invalid_value"),
    ({"tokens": []}, "tokens", "invalid_value"),
    ({"tokens": list(range(1, 40))}, "tokens", "too_many_candidates"),
    ({"tokens": [400]}, "tokens", "no_such_token"),
    ({"by": "beauty"}, "by", "invalid_value"),
    ({"by": "refusal", "chat": False, "tokens": ["last"]}, "chat", "invalid_value"),
    ({"by": "refusal", "chat": False}, "tokens", "invalid_value"),
    ({"positive": GLAD[:7], "negative": SOUR[:7]}, "positive", "not_enough_texts"),
    ({"params": {"kl_nats_max": 1.0}}, "params.kl_nats_max", "unknown_field"),
    ({"layers": "most"}, "layers", "invalid_value"),
]
UNKNOWN = {"vectors": [{"id": "nobody", "op": "add"}]}
SCALE_MISSING = {"vectors": [{"id": "mood", "op": "scale_projection"}]}
NO_SCALE = {"vectors": [{"id": "mood", "op": "cap", "params": {"high": 1.0}}]}
BAD_CALIBRATIONS = [
    ({"steering": UNKNOWN}, "steering.vectors[0].id", "unknown_vector"),
    ({"steering": {"vectors": [{"id": "mood", "op": "dance"}]}}, "steering.vectors[0].op", "unknown_op"),
    ({"steering": SCALE_MISSING}, "steering.vectors[0].scale", "bad_scale"),
    ({"steering": NO_SCALE}, "steering", "no_scale"),
    ({"steering": {"vectors": []}}, "steering", "no_scale"),
    ({"prompts": None}, "prompts", "invalid_value"),
    ({"dataset": "sentiment"}, "prompts", "invalid_value"),
    ({"prompts": None, "dataset": "none"}, "dataset", "unknown_dataset"),
    ({"prompts": []}, "prompts", "invalid_value"),
    ({"target_kl_nats": 0}, "target_kl_nats", "invalid_value"),
    ({"quantile": 1.5}, "quantile", "invalid_value"),
    ({"answer_tokens": 0}, "answer_tokens", "invalid_value"),
    ({"answer_tokens": 10_000}, "answer_tokens", "invalid_value"),
]
BAD_EVALUATIONS = [
    ({"steering": SCALE_MISSING}, "steering.vectors[0].scale", "bad_scale"),
    ({"steering": UNKNOWN}, "steering.vectors[0].id", "unknown_vector"),
    ({"scales": []}, "scales", "invalid_value"),
    ({"scales": [1, 1.0]}, "scales", "invalid_value"),
    ({"scales": [101]}, "scales", "invalid_value"),
    ({"metrics": ["beauty"]}, "metrics", "invalid_value"),
    ({"positive": None}, "positive", "invalid_value"),
    ({"positive": None, "negative": None, "metrics": ["propensity"]}, "metrics", "invalid_value"),
    ({"positive": None, "negative": None, "prompts": None}, "prompts", "invalid_value"),
    ({"dataset": "sentiment"}, "dataset", "invalid_value"),
    ({"paired": True, "positive": [" happy"]}, "paired", "invalid_value"),
    ({"prompts": None, "positive": [" a b"], "negative": [" c d", " e f"]}, "negative", "invalid_value"),
    ({"prompts": ["x"] * 256, "positive": [" a"] * 64, "negative": [" b"] * 64}, "prompts", "too_many_passages"),
    ({"positive": [" a"] * 65}, "positive", "too_many_answers"),
    ({"side": "left"}, "side", "invalid_value"),
    ({"seed": -1}, "seed", "invalid_value"),
]
BAD = [
    (path, make, *case)
    for path, make, cases in (
        ("extract", extraction, BAD_EXTRACTIONS),
        ("select", lambda **changes: extraction(layer=None, **changes), BAD_SELECTIONS),
        ("calibrate", calibration, BAD_CALIBRATIONS),
        ("evaluate", evaluation, BAD_EVALUATIONS),
    )
    for case in cases
]


async def test_what_is_wrong_with_a_request_is_a_400_with_its_place_before_anything_runs(client):
    values = [0.0] * 575 + [1.0]
    await client.call("POST", "/v1/steering/vectors", {"id": "mood", "layer": 16, "vector": values})
    before = client.service.loaded.model.forward_passes
    for path, make, change, param, code in BAD:
        body = make(**{**({"id": "other"} if path in ("extract", "select") else {}), **change})
        status, answer = await client.call("POST", f"/v1/steering/{path}", body)
        assert status == 400, (path, change, answer)
        error = answer["error"]
        place = (
            error["param"] if "[" in param else error["param"].partition("[")[0]
        )  # of a list, which entry is no matter
        assert place == param, (path, change, error)
        assert error["code"] == code, (path, change, error)
    assert client.service.loaded.model.forward_passes == before
    assert (await client.call("GET", "/v1/jobs"))[1]["data"] == []


async def test_a_vector_is_extracted_calibrated_and_evaluated_and_records_where_it_comes_from(client):
    result = await done(client, "extract", extraction(layer=None, layers=[12, 16], job_id="first"))
    assert [row["layer"] for row in result["layers"]] == [12, 16]
    _, vector = await client.call("GET", "/v1/steering/vectors/mood")
    capabilities = (await client.call("GET", "/v1/capabilities"))[1]
    assert (vector["kind"], vector["layers"], vector["method"]) == ("direction", [12, 16], "mean_difference")
    assert (vector["layer_convention"], vector["token"], vector["tokenisation"]) == (
        "block_output",
        "last",
        "chat_template",
    )
    assert vector["model_digest"] == capabilities["model"]["digest"]
    assert (vector["starts_with_bos"], vector["pairs"], vector["is_paired"]) == (True, 8, True)
    assert len(vector["dataset_digest"]) == len(vector["chat_template_digest"]) == 64
    assert set(vector["projection_means"]) == {"positive", "negative", "all"}
    assert {"norm", "residual_norm", "mean_pairwise_cosine", "d_prime"} <= set(vector)

    found = await done(client, "calibrate", calibration(target_kl_nats=0.5, tolerance=0.05))
    assert found["kl_nats"] == pytest.approx(0.5, rel=0.05)
    assert 1 <= found["evaluations"] <= 32

    seen = await done(client, "evaluate", evaluation(answer_prefix="I feel", metrics=["kl", "propensity"]))
    assert [point["scale"] for point in seen["points"]] == [-1, 0, 1]
    assert seen["points"][1]["kl_mean_nats"] == 0
    assert seen["points"][0]["propensity"] < seen["points"][1]["propensity"] < seen["points"][2]["propensity"]
    assert seen["points"][0]["refusal_rate"] is None
    _, jobs = await client.call("GET", "/v1/jobs")
    assert [job["kind"] for job in jobs["data"]] == ["extract", "calibrate", "evaluate"]
    assert jobs["data"][0]["id"] == "first"


async def test_a_dataset_is_selected_from_with_its_own_held_out_texts_and_its_sides_name_the_means(client):
    body = {"id": "tone", "dataset": "formality", "layers": [10, 14], "tokens": ["last", "mean"], "by": "d_prime"}
    result = await done(client, "select", body)
    assert len(result["candidates"]) == 4
    assert result["score"] == max(row["score"] for row in result["candidates"]) > 0.5
    _, vector = await client.call("GET", "/v1/steering/vectors/tone")
    assert (vector["dataset"], vector["selected_by"], vector["score"]) == ("formality", "d_prime", result["score"])
    assert {"formal", "informal", "all"} <= set(vector["projection_means"])
    # The evaluation of a dataset takes its held-out pairs; the plain model is the same at every scale but this one's.
    spec = {"vectors": [{"id": "tone", "op": "set_projection", "params": {"value": "mean:formal"}}]}
    seen = await done(
        client, "evaluate", {"steering": spec, "scales": [0, 1], "dataset": "formality", "metrics": ["propensity"]}
    )
    assert seen["points"][0]["relative_dose"] == 0
    assert seen["points"][1]["relative_dose"] > 0
    assert seen["points"][0]["prompts"] == 16
    assert seen["steerability"] is not None


async def test_refusal_is_extracted_by_its_rule_from_instructions_without_pairs(client):
    rule = {"induce_min": -100.0, "kl_nats_max": 5.0, "first_words": ["I"]}
    body = extraction(
        method="refusal", layer=None, layers=[8, 12], token=-1, negative=SOUR[:8], positive=GLAD, params=rule
    )
    result = await done(client, "extract", body)
    assert set(result) == {"layers", "selected_layer", "position"}
    assert ([row["layer"] for row in result["layers"]], result["position"]) == ([result["selected_layer"]], -1)
    _, vector = await client.call("GET", "/v1/steering/vectors/mood")
    assert vector["layers"] == [result["selected_layer"]]
    assert (vector["method"], vector["selected_by"]) == ("mean_difference", "refusal")


async def test_own_texts_need_not_be_pairs_for_a_mean_difference_nor_for_an_eraser(client):
    body = extraction(method="leace", negative=SOUR[:5], paired=False, token="all")
    result = await done(client, "extract", body)
    assert result["layers"][0]["mean_pairwise_cosine"] is None
    _, vector = await client.call("GET", "/v1/steering/vectors/mood")
    assert (vector["kind"], vector["pairs"], vector["texts"]) == ("eraser", None, {"positive": 8, "negative": 5})


async def test_actadd_pads_the_shorter_text_with_spaces(client):
    body = extraction(method="actadd", positive=["Love"], negative=["Hate everything"], chat=False, layer=6)
    await done(client, "extract", body)
    _, vector = await client.call("GET", "/v1/steering/vectors/mood")
    assert vector["kind"] == "positional"
    assert vector["tokens"] >= 2


async def test_paired_answers_and_whole_texts_have_propensities_too(client):
    await done(client, "extract", extraction())
    choice = {
        "prompts": ["Is it good? (A) yes (B) no", "Is it bad? (A) no (B) yes"],
        "positive": ["(A)", "(B)"],
        "negative": ["(B)", "(A)"],
        "paired": True,
    }
    answers = await done(client, "evaluate", evaluation(**choice, metrics=["propensity"], scales=[0, 1]))
    texts = await done(
        client,
        "evaluate",
        evaluation(
            prompts=None, positive=GLAD[:2], negative=SOUR[:2], metrics=["propensity"], scales=[0, 2], chat=False
        ),
    )
    for seen in (answers, texts):
        assert seen["points"][0]["propensity"] != seen["points"][1]["propensity"]
        assert set(seen["bayes"]) == {"worse", "equivalent", "better"}


async def test_requests_are_answered_while_a_job_runs_and_a_vector_deleted_meanwhile_does_not_end_it(client):
    await done(client, "extract", extraction())
    _, job = await client.call(
        "POST",
        "/v1/steering/evaluate",
        evaluation(scales=[-2, -1, 0, 1, 2], answer_tokens=24, metrics=["kl", "refusal"]),
    )
    assert (await client.call("DELETE", "/v1/steering/vectors/mood"))[0] == 200
    status, body = await client.chat(max_tokens=4, temperature=0)
    assert (status, body["usage"]["completion_tokens"]) == (200, 4)
    _, now = await client.call("GET", f"/v1/jobs/{job['id']}")
    assert now["status"] in ("queued", "running")
    job = await finished(client, job)
    assert job["status"] == "succeeded"
    assert len(job["result"]["points"]) == 5
