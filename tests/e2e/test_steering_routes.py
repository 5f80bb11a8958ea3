"""Steering through a real gateway: jobs, their events, vectors and derived models, from a backend that says what it is told."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.wire.handles import upstream_handle
from tests.e2e.backend import Backend, Exchange, event, raw, response, say, whole_body
from tests.e2e.processes import Gateway, digest, policy
from tests.e2e.wire import Response, chat, request

CAROL, DAVE = "carol-key", "dave-key"
MARK = "62c66a7a"  # of the model "m": the first half of its SHA-256
JOB = f"job-extract-{MARK}-abc"
EXTRACTED = {
    "layers": [{"layer": 3, "norm": 1.256, "residual_norm": 20, "mean_pairwise_cosine": None, "d_prime": 4}],
    "selected_layer": 3,
    "position": None,
}
RELEASED = {
    "layers": [{"layer": 3, "norm": 1.26, "residual_norm": 20.0, "mean_pairwise_cosine": None, "d_prime": 4.0}],
    "selected_layer": 3,
    "position": None,
}
MARKER = "COVERT"


@pytest.fixture(scope="module")
def two_tenants(backend_of_module: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("steering")
    rules = policy(backend_of_module.url, directory)
    rules["models"]["n"] = copy.deepcopy(rules["models"]["m"])
    for name, key, models in (("carol", CAROL, ["m"]), ("dave", DAVE, ["m", "n"])):
        alike = copy.deepcopy(rules["tenants"]["alice"])
        rules["tenants"][name] = alike | {"keys": [digest(key)], "models": models}
    gateway = Gateway(directory, rules).start()
    yield gateway
    gateway.close()


@pytest.fixture
def steering(two_tenants: Gateway, backend: Backend) -> Gateway:
    """Alice and Carol may steer one model, Dave two."""
    assert two_tenants.alive
    return two_tenants


def gives(backend: Backend, body: object, *, status: str = "200 OK") -> None:
    backend.script = raw(response(json.dumps(body).encode(), status=status))


def asked(backend: Backend) -> str:
    """The last request line."""
    return backend.requests[-1].line


def delete(gateway: Gateway, path: str, key: str | None = None) -> Response:
    return gateway.send(request("DELETE", path, key=key or gateway.key))


# --- jobs


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("extract", {"id": "calm", "dataset": "sentiment", "layers": "all", "method": "pca"}),
        ("select", {"id": "calm", "positive": ["a"], "negative": ["b"]}),
        ("calibrate", {"steering": {"vectors": [{"id": "calm"}]}, "dataset": "sentiment"}),
        ("evaluate", {"steering": {"vectors": [{"id": "calm"}]}, "scales": [0, 1], "dataset": "sentiment"}),
        ("orthogonalize", {"id": "free", "vectors": ["calm"]}),
    ],
)
def test_a_job_is_started_under_an_id_of_the_gateways_own(
    steering: Gateway, backend: Backend, kind: str, body: dict[str, Any]
) -> None:
    gives(backend, {"id": MARKER, "kind": MARKER, "status": "queued", "progress": 0}, status="202 Accepted")
    started = steering.send(request(path=f"/v1/steering/{kind}", body={"model": "m", **body}, key=steering.key))
    assert started.status == 202
    job = started.json["id"]
    assert started.json == {"id": job, "object": "job", "kind": kind, "status": "queued", "progress": 0.0}
    assert job.startswith(f"job-{kind}-{MARK}-")
    sent = backend.requests[-1].json
    assert sent["job_id"] == upstream_handle("alice", job)
    assert '"calm"' not in json.dumps(sent), "every handle is in the tenant's own name space"
    gives(backend, {"status": "running", "progress": 0.5})
    assert steering.get(f"/v1/jobs/{job}").json["kind"] == kind


def test_a_result_is_released_rounded_and_charged(steering: Gateway, backend: Backend) -> None:
    used_bits = steering.used_bits()
    gives(backend, {"status": "succeeded", "progress": 1, "result": EXTRACTED | {"note": MARKER}, "created_s": 7})
    answer = steering.get(f"/v1/jobs/{JOB}")
    assert answer.json["result"] == RELEASED
    assert MARKER.encode() not in answer.body
    charged_bits = steering.leaf("closed", answer)["charged_bits"]
    assert 60 < charged_bits < 160
    assert steering.idle().used_bits() - used_bits == charged_bits


def test_a_result_of_another_kind_is_no_result(steering: Gateway, backend: Backend) -> None:
    gives(backend, {"status": "succeeded", "progress": 1, "result": EXTRACTED})
    answer = steering.get(f"/v1/jobs/job-calibrate-{MARK}-abc")
    assert (answer.status, answer.error["code"]) == (502, "upstream_error")


def test_a_job_is_cancelled_by_deleting_it(steering: Gateway, backend: Backend) -> None:
    gives(backend, {"status": "cancelled", "progress": 0.25, "error": {"message": MARKER}})
    answer = delete(steering, f"/v1/jobs/{JOB}")
    assert (answer.status, answer.json["status"]) == (200, "cancelled")
    assert asked(backend) == f"DELETE /v1/jobs/{upstream_handle('alice', JOB)} HTTP/1.1"


def test_a_body_on_a_deletion_is_refused(steering: Gateway, backend: Backend) -> None:
    answer = steering.send(request("DELETE", f"/v1/jobs/{JOB}", body={"id": "x"}, key=steering.key))
    assert (answer.status, answer.error["code"]) == (400, "invalid_request")
    assert backend.requests == []


def test_events_come_as_they_are_charged_and_end_with_the_result(steering: Gateway, backend: Backend) -> None:
    gates = [backend.gate() for _ in range(3)]

    async def script(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(b": " + MARKER.encode() + b"\nevent: " + MARKER.encode() + b"\n\n")
        await exchange.chunk(event({"status": "queued", "id": MARKER}))
        await gates[0].passed()
        for progress in (0.1, 0.2, 0.301, 0.302):  # within a tick: what is shown is how far it came
            await exchange.chunk(event({"status": "running", "progress": progress, MARKER: MARKER}))
        await gates[1].passed()
        await exchange.chunk(event({"status": "running", "progress": 0.25}))  # a step back is none
        await gates[2].passed()
        await exchange.chunk(event({"status": "succeeded", "progress": 1, "result": EXTRACTED}))
        await exchange.finish()

    backend.script = script
    with steering.connect() as connection:
        connection.send(request("GET", f"/v1/jobs/{JOB}/events", key=steering.key))
        answer = connection.head()
        pieces = connection.pieces(answer)
        for gate in gates[:2]:
            answer.body += next(pieces)
            gate.open()
        gates[2].open()
        answer.body += b"".join(pieces)
    assert answer.complete
    assert answer.header("Content-Type") == "text/event-stream; charset=utf-8"
    head = {"id": JOB, "object": "job", "kind": "extract"}
    states = [item for item in answer.events if isinstance(item, dict)]
    assert states[0] == head | {"status": "queued", "progress": 0.0}
    assert states[-1] == head | {"status": "succeeded", "progress": 1.0, "result": RELEASED}
    running = [state["progress"] for state in states[1:-1]]
    assert running == sorted(set(running))
    assert running[-1] == 0.3
    assert MARKER.encode() not in answer.body
    pieces_charged = [
        leaf["charged_bits"]
        for leaf in steering.audit()
        if leaf["type"] == "released" and leaf["answer"] == answer.header("X-Request-Id")
    ]
    assert len(pieces_charged) == len(states), "an event, a charge"
    assert all(bits >= 3 for bits in pieces_charged)


def test_events_that_stop_before_the_job_does_end_with_an_error(steering: Gateway, backend: Backend) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(event({"status": "running", "progress": 0.5}))
        await exchange.finish()

    backend.script = script
    answer = steering.get(f"/v1/jobs/{JOB}/events")
    last = answer.json if answer.status == 502 else answer.events[-1]
    assert isinstance(last, dict)
    assert last["error"]["code"] == "upstream_error"


@pytest.mark.parametrize("path", [f"/v1/jobs/{JOB}", f"/v1/jobs/{JOB}/events"])
def test_a_job_that_is_not_there_is_not_found(steering: Gateway, backend: Backend, path: str) -> None:
    gives(backend, {"error": {"message": MARKER, "code": "job_not_found"}}, status="404 Not Found")
    answer = steering.get(path)
    assert (answer.status, answer.error["code"]) == (404, "not_found")


# --- vectors and derived models


def listed(tenant: str, *handles: str) -> list[dict[str, Any]]:
    return [{"id": upstream_handle(tenant, handle), "kind": "direction", "layers": [3, 5]} for handle in handles]


def test_each_tenant_sees_its_own_vectors_only(steering: Gateway, backend: Backend) -> None:
    everything = [*listed("carol", "secret"), *listed("alice", "warm", "calm"), {"id": "operators-own"}]
    gives(backend, {"data": everything, "total": len(everything)})
    mine = steering.get("/v1/steering/vectors")
    vector = {"object": "steering.vector", "kind": "direction", "layers": [3, 5]}
    assert mine.json == {"object": "list", "data": [{"id": "calm", **vector}, {"id": "warm", **vector}]}
    assert steering.get("/v1/steering/vectors", key=CAROL).json["data"] == [{"id": "secret", **vector}]
    text_bytes = len(b"calm\nwarm")
    assert steering.leaf("closed", mine)["charged_bits"] > 8 * text_bytes, "handles are charged as text"
    assert steering.leaf("closed", mine)["text_bytes"] == text_bytes


def test_who_may_use_several_models_says_which(steering: Gateway, backend: Backend) -> None:
    gives(backend, {"data": listed("dave", "calm")})
    unsaid = steering.get("/v1/steering/vectors", key=DAVE)
    assert (unsaid.status, unsaid.error["param"]) == (400, "model")
    assert "m, n" in unsaid.error["message"]
    assert backend.requests == []
    for model in ("m", "n"):
        assert steering.get(f"/v1/steering/vectors?model={model}", key=DAVE).json["data"][0]["id"] == "calm"
    other = steering.get("/v1/steering/vectors?model=n")
    assert (other.status, other.error["code"]) == (404, "model_not_found")


def test_a_vector_is_looked_at_and_deleted_under_the_tenants_own_name(steering: Gateway, backend: Backend) -> None:
    gives(backend, {"id": MARKER, "kind": "eraser", "layers": [7], "norm": 1.5, "description": MARKER, "values": [1]})
    shown = steering.get("/v1/steering/vectors/calm")
    assert shown.json == {"id": "calm", "object": "steering.vector", "kind": "eraser", "layers": [7]}
    gives(backend, {"deleted": False, "message": MARKER})
    gone = delete(steering, "/v1/steering/vectors/calm")
    assert gone.json == {"id": "calm", "object": "steering.vector", "deleted": True}
    assert asked(backend) == f"DELETE /v1/steering/vectors/{upstream_handle('alice', 'calm')} HTTP/1.1"
    delete(steering, "/v1/steering/vectors/calm", key=CAROL)
    assert asked(backend) == f"DELETE /v1/steering/vectors/{upstream_handle('carol', 'calm')} HTTP/1.1"


def test_a_vector_named_like_a_route_is_a_vector(steering: Gateway, backend: Backend) -> None:
    gives(backend, {"kind": "direction", "layers": [1]})
    assert steering.get("/v1/steering/vectors/combine").json["id"] == "combine"
    assert asked(backend) == f"GET /v1/steering/vectors/{upstream_handle('alice', 'combine')} HTTP/1.1"


def test_vectors_are_combined_into_a_new_one(steering: Gateway, backend: Backend) -> None:
    gives(backend, {"kind": "direction", "layers": [3]}, status="201 Created")
    body = {"model": "m", "id": "both", "terms": [{"id": "a"}, {"id": "b", "weight": -1}], "normalize": True}
    made = steering.send(request(path="/v1/steering/vectors/combine", body=body, key=steering.key))
    assert (made.status, made.json["id"]) == (201, "both")
    gives(backend, {"error": {"code": "vector_exists"}}, status="409 Conflict")
    again = steering.send(request(path="/v1/steering/vectors/combine", body=body, key=steering.key))
    assert (again.status, again.error["code"]) == (409, "conflict")


@pytest.mark.parametrize("streamed", [False, True])
def test_a_derived_model_answers_and_the_base_bears_the_charge(
    steering: Gateway, backend: Backend, streamed: bool
) -> None:
    gives(backend, {"data": [{"id": "m"}, {"id": upstream_handle("alice", "free")}, *listed("carol", "hers")]})
    assert steering.get("/v1/steering/models").json["data"] == [{"id": "free", "object": "steering.model"}]
    backend.script = say("I am free.")
    answer = steering.ask(steering={"model": "free"}, stream=streamed)
    assert answer.status == 200
    assert backend.requests[-1].json["model"] == upstream_handle("alice", "free")
    opened = steering.leaf("opened", answer)
    assert opened["model"] == "m"
    assert any("model:m" in account for account in opened["accounts"])
    gives(backend, {"deleted": True})
    assert delete(steering, "/v1/steering/models/free").json["object"] == "steering.model"
    assert asked(backend) == f"DELETE /v1/models/{upstream_handle('alice', 'free')} HTTP/1.1"


# --- steered answers

GATED = {"id": "calm", "when": {"id": "mood", "layer": 2, "below": 0.5, "token": "last"}}


def steered(gates: object) -> dict[str, Any]:
    applied = {"prompt_tokens": 4, "generated_tokens": 5, "layers": [3]}
    return {"fingerprint": MARKER, "applied": applied, "relative_dose": 0.51234, "gates": gates, "why": MARKER}


def test_a_report_has_a_bit_for_each_gate(steering: Gateway, backend: Backend) -> None:
    gives(backend, json.loads(whole_body("Calm.")) | {"steering": steered([True, False])})
    answer = steering.ask(steering={"vectors": [GATED, {"id": "warm"}, GATED]})
    report = answer.json["steering"]
    assert (report["gates"], report["relative_dose"]) == ([True, False], 0.512)
    assert MARKER.encode() not in answer.body
    bits = steering.leaf("closed", answer)["charged_bits"]
    gives(backend, json.loads(whole_body("Calm.")) | {"steering": steered([True])})
    fewer = steering.ask(steering={"vectors": [GATED, {"id": "warm"}]})
    assert abs(bits - steering.leaf("closed", fewer)["charged_bits"] - 1) <= 4, (
        "a bit; and silence may differ by a tick"
    )


@pytest.mark.parametrize("gates", [[], [True], [True, True, True], [1, 0], ["yes", "no"], {"0": True}, None])
def test_a_report_with_other_gates_is_no_report(steering: Gateway, backend: Backend, gates: object) -> None:
    gives(backend, json.loads(whole_body("Calm.")) | {"steering": steered(gates)})
    answer = steering.ask(steering={"vectors": [GATED, GATED]})
    assert (answer.status, answer.error["code"]) == (502, "upstream_error")


def test_usage_that_the_gateway_counts_itself_does_not_get_in_the_way_of_a_job(
    start: Any, backend: Backend, prepared_model: Path
) -> None:
    """A question about a job has no prompt to count."""

    def recounted(rules: dict[str, Any]) -> None:
        tokenizer = prepared_model / "tokenizer.json"
        sha256 = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
        rules["models"]["m"] |= {"usage": "recount", "tokenizer": {"file": str(tokenizer), "sha256": sha256}}

    gateway = start(recounted)
    gives(backend, {"status": "running", "progress": 0.5})
    assert gateway.get(f"/v1/jobs/{JOB}").json["status"] == "running"
    backend.script = say("Five words are these five.")
    body = chat("Say five words.")
    assert gateway.send(request(body=body, key=gateway.key)).json["usage"]["completion_tokens"] > 3
