"""The steering server behind the gateway, from extraction to deletion, with two tenants who know nothing of each other's vectors."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.model_server import MODEL, model_policy, model_server
from tests.e2e.processes import Gateway, digest, until
from tests.e2e.wire import Response, request

CAROL = "carol-key"
LAYER = 18
PROMPT = "How do you feel right now?"


@pytest.fixture(scope="module")
def real(prepared_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Alice and Carol may both steer."""
    directory = tmp_path_factory.mktemp("steering")
    with model_server(prepared_model, directory) as address:
        rules = model_policy(address, prepared_model, directory)
        rules["tenants"]["carol"] = copy.deepcopy(rules["tenants"]["alice"]) | {"keys": [digest(CAROL)]}
        gateway = Gateway(directory, rules).start()
        yield gateway
        gateway.close()


def post(real: Gateway, path: str, body: dict[str, Any], key: str | None = None) -> Response:
    return real.send(request(path=f"/v1/steering/{path}", body={"model": MODEL, **body}, key=key or real.key))


def delete(real: Gateway, path: str, key: str | None = None) -> Response:
    return real.send(request("DELETE", path, key=key or real.key))


def ask(real: Gateway, key: str | None = None, **fields: Any) -> Response:
    return real.ask(PROMPT, key=key, model=MODEL, max_tokens=12, temperature=0, **fields)


def done(real: Gateway, started: Response, key: str | None = None) -> dict[str, Any]:
    """The last state of a job that was started."""
    assert started.status == 202, started.body

    def over() -> dict[str, Any] | None:
        job = real.get(f"/v1/jobs/{started.json['id']}", key=key).json
        return job if job["status"] not in ("queued", "running") else None

    return until(over, what="the job is over", seconds=90)


def result(real: Gateway, started: Response) -> dict[str, Any]:
    job = done(real, started)
    assert job["status"] == "succeeded", job
    return job["result"]


@pytest.fixture(scope="module")
def mood(real: Gateway) -> str:
    """Alice's vector."""
    body = {"id": "mood", "dataset": "sentiment", "layer": LAYER, "token": "mean"}
    found = result(real, post(real, "extract", body))
    assert found["selected_layer"] == LAYER
    return "mood"


def test_a_jobs_events_end_with_what_the_job_says(real: Gateway) -> None:
    started = post(real, "extract", {"id": "manners", "dataset": "formality", "layers": [6, 12, 18, 24]})
    job = started.json["id"]
    events = real.get(f"/v1/jobs/{job}/events")
    states = [state for state in events.events if isinstance(state, dict)]
    assert all(state["id"] == job and state["kind"] == "extract" for state in states)
    assert [state["status"] for state in states[:-1]] == sorted(state["status"] for state in states[:-1])
    assert all(before["progress"] <= after["progress"] for before, after in pairwise(states))
    assert states[-1]["status"] == "succeeded"
    assert states[-1] == real.get(f"/v1/jobs/{job}").json
    assert [row["layer"] for row in states[-1]["result"]["layers"]] == [6, 12, 18, 24]
    again = real.get(f"/v1/jobs/{job}/events")
    assert again.events == [states[-1]], "what is over says so at once"


def test_a_tenants_vectors_are_its_own(real: Gateway, mood: str) -> None:
    assert {"id": mood, "object": "steering.vector", "kind": "direction", "layers": [LAYER]} in real.get(
        "/v1/steering/vectors"
    ).json["data"]
    assert real.get(f"/v1/steering/vectors/{mood}").json["layers"] == [LAYER]
    # Carol has none, cannot see this one, use it, combine it, or delete it.
    assert real.get("/v1/steering/vectors", key=CAROL).json["data"] == []
    assert real.get(f"/v1/steering/vectors/{mood}", key=CAROL).status == 404
    used = ask(real, CAROL, steering={"vectors": [{"id": mood}]})
    assert (used.status, used.error["code"]) == (400, "unknown_vector")
    gate = {"id": mood, "layer": LAYER, "above": 0}
    gated = ask(real, CAROL, steering={"vectors": [{"id": "hers", "when": gate}]})
    assert (gated.status, gated.error["code"]) == (400, "unknown_vector")
    combined = post(real, "vectors/combine", {"id": "stolen", "terms": [{"id": mood}]}, CAROL)
    assert (combined.status, combined.error["code"]) == (400, "unknown_vector")
    assert delete(real, f"/v1/steering/vectors/{mood}", CAROL).status == 404
    job = post(real, "extract", {"id": "mine", "dataset": "language", "layer": 4}).json["id"]
    for theirs in (real.get(f"/v1/jobs/{job}", key=CAROL), delete(real, f"/v1/jobs/{job}", CAROL)):
        assert (theirs.status, theirs.error["code"]) == (404, "not_found")
    # The same handle may be hers as well: it is another vector.
    hers = post(real, "extract", {"id": mood, "dataset": "language", "layer": 5}, CAROL)
    assert done(real, hers, CAROL)["status"] == "succeeded"
    assert real.get(f"/v1/steering/vectors/{mood}", key=CAROL).json["layers"] == [5]
    assert real.get(f"/v1/steering/vectors/{mood}").json["layers"] == [LAYER]


@pytest.mark.parametrize("streamed", [False, True])
def test_every_operation_on_a_direction_passes_and_is_reported(real: Gateway, mood: str, streamed: bool) -> None:
    uses: list[dict[str, Any]] = [
        {"id": mood, "op": "add", "scale": 0.5, "params": {"normalize": True}},
        {"id": mood, "op": "ablate", "apply": {"generation": "all"}},
        {"id": mood, "op": "set_projection", "params": {"value": "mean:positive"}},
        {"id": mood, "op": "scale_projection", "scale": 1.5, "layers": [LAYER, LAYER + 1]},
        {"id": mood, "op": "cap", "params": {"low": -1, "high": 1}, "point": "mlp_output"},
        {"id": mood, "op": "add", "when": {"id": mood, "layer": 3, "above": -1}},
        {"id": mood, "op": "add", "when": {"id": mood, "layer": 3, "below": -1, "token": "last"}},
        {"id": mood, "apply": {"prompt": {"positions": [-1], "windows": [[0, 2]]}, "exclude": {"prompt": "none"}}},
    ]
    answer = ask(real, stream=streamed, steering={"vectors": uses, "conflict": "sequential"})
    assert answer.status == 200, answer.body
    bodies = answer.events if streamed else [answer.json]
    (report,) = [body["steering"] for body in bodies if isinstance(body, dict) and "steering" in body]
    assert report["gates"] == [True, False], "above -1 always, and below it never: a cosine"
    assert report["applied"]["generated_tokens"] in (11, 12)
    assert LAYER in report["applied"]["layers"]
    assert report["relative_dose"] > 0


def test_easysteers_spelling_is_answered_like_our_own(real: Gateway, mood: str) -> None:
    every = {"prefill_trigger_tokens": [-1], "generate_trigger_tokens": [-1]}
    theirs = ask(real, steer_vector_request={"steer_vector_local_path": mood, "scale": 0.5, **every})
    use = {"id": mood, "scale": 0.5, "apply": {"prompt": "all", "generation": "all"}}
    ours = ask(real, steering={"vectors": [use], "conflict": "priority"})
    assert theirs.status == 200, theirs.body
    assert theirs.json["steering"] == ours.json["steering"]
    assert theirs.json["choices"] == ours.json["choices"]
    foreign = ask(real, CAROL, steer_vector_request={"steer_vector_local_path": "manners", **every})
    assert (foreign.status, foreign.error["code"]) == (400, "unknown_vector")


def test_vectors_are_combined_calibrated_and_evaluated(real: Gateway, mood: str) -> None:
    made = post(real, "vectors/combine", {"id": "half", "terms": [{"id": mood, "weight": 0.5}]})
    assert (made.status, made.json["kind"], made.json["layers"]) == (201, "direction", [LAYER])
    spec = {"vectors": [{"id": "half"}]}
    prompts = ["Tell me about your day.", "Write about a letter."]
    measures = {"steering": spec, "prompts": prompts, "answer_tokens": 8}
    found = result(real, post(real, "calibrate", {**measures, "tolerance": 0.2}))
    assert found.keys() == {"scale", "kl_nats", "kl_mean_nats", "relative_dose", "evaluations"}
    assert found["scale"] > 0
    assert 0.7 <= found["kl_nats"] <= 1.3, "the target is one nat"
    curve = result(real, post(real, "evaluate", {**measures, "scales": [0, 1], "metrics": ["kl", "refusal"]}))
    plain, steered = curve["points"]
    assert (plain["scale"], plain["kl_mean_nats"], plain["prompts"]) == (0.0, 0.0, 2)
    assert steered["kl_mean_nats"] > 0
    assert steered["propensity"] is None


def test_a_selection_says_what_each_candidate_was_worth(real: Gateway) -> None:
    found = result(
        real, post(real, "select", {"id": "best", "dataset": "sentiment", "layers": [6, 12], "tokens": [-1]})
    )
    assert [(row["layer"], row["position"]) for row in found["candidates"]] == [(6, -1), (12, -1)]
    assert found["score"] == max(row["score"] for row in found["candidates"])
    assert real.get("/v1/steering/vectors/best").json["layers"] == [found["layer"]]


def test_why_a_job_failed_comes_in_the_gateways_words(real: Gateway) -> None:
    same = ["The same words on both sides."] * 2
    job = done(real, post(real, "extract", {"id": "nothing", "positive": same, "negative": same, "layer": 3}))
    assert job["status"] == "failed"
    assert job["error"]["code"] == "degenerate"
    assert job["error"]["message"].startswith("The two sides have the same activations")


def test_a_derived_model_is_its_makers_alone(real: Gateway, mood: str) -> None:
    found = result(real, post(real, "orthogonalize", {"id": "even", "vectors": [mood]}))
    assert found["matrices_changed"] > 30
    assert found["logit_difference_max"] < 0.01
    assert real.get("/v1/steering/models").json["data"] == [{"id": "even", "object": "steering.model"}]
    assert real.get("/v1/steering/models", key=CAROL).json["data"] == []
    plain, derived = ask(real), ask(real, steering={"model": "even"})
    assert derived.status == 200
    assert derived.json["model"] == MODEL
    assert derived.json["choices"] != plain.json["choices"]
    foreign = ask(real, CAROL, steering={"model": "even"})
    assert (foreign.status, foreign.error["code"]) == (400, "model_not_found")
    assert delete(real, "/v1/steering/models/even", CAROL).status == 404
    assert delete(real, "/v1/steering/models/even").json["deleted"]
    assert ask(real, steering={"model": "even"}).error["code"] == "model_not_found"


def test_a_deleted_vector_is_gone(real: Gateway) -> None:
    assert done(real, post(real, "extract", {"id": "brief", "dataset": "formality", "layer": 2}))["result"]
    assert ask(real, steering={"vectors": [{"id": "brief"}]}).status == 200
    assert delete(real, "/v1/steering/vectors/brief").json == {
        "id": "brief",
        "object": "steering.vector",
        "deleted": True,
    }
    assert ask(real, steering={"vectors": [{"id": "brief"}]}).error["code"] == "unknown_vector"
    assert delete(real, "/v1/steering/vectors/brief").status == 404
    assert "brief" not in {vector["id"] for vector in real.get("/v1/steering/vectors").json["data"]}


def test_a_job_is_cancelled_by_the_tenant_that_started_it(real: Gateway) -> None:
    body = {"id": "never", "dataset": "harmfulness", "layers": "all", "chat": True, "token": "post_instruction"}
    started = post(real, "extract", body)
    assert delete(real, f"/v1/jobs/{started.json['id']}").status == 200
    assert done(real, started)["status"] == "cancelled"
    assert real.get("/v1/steering/vectors/never").status == 404
