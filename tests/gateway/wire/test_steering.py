"""Requests that start a job: allow-listed, bounded, and with every handle in the tenant's own name space."""

import json

import msgspec
import pytest

from gateway.wire import steering
from gateway.wire.dialect import Identity, ModelRules
from gateway.wire.handles import model_mark, upstream_handle
from gateway.wire.steering import (
    CalibrateRequest,
    EvaluateRequest,
    ExtractRequest,
    OrthogonalizeRequest,
    SelectRequest,
    calibrate_call,
    evaluate_call,
    extract_call,
    orthogonalize_call,
    parse_calibrate,
    parse_evaluate,
    parse_extract,
    parse_orthogonalize,
    parse_select,
    select_call,
)
from gateway.wire.steering_spec import Steering
from policy.refusal import Reason, Refused

RULES = ModelRules(name="m", usage=True, token_ids=False, tokens_max=4096, tokens_default=512)
IDENTITY = Identity(id="abc", created_s=1, seed=2)
SPEC = {"vectors": [{"id": "calm", "op": "ablate", "params": {"also": ["rude"]}}]}
MOVED = {
    "vectors": [
        {
            "id": upstream_handle("acme", "calm"),
            "op": "ablate",
            "params": {"also": [upstream_handle("acme", "rude")]},
        }
    ]
}
EXTRACT = {"model": "m", "id": "calm", "positive": ["a", "b"], "negative": ["c", "d"], "layer": 3}
SELECT = {"model": "m", "id": "calm", "dataset": "harmfulness", "tokens": [-1, -2, "mean"], "by": "refusal"}
CALIBRATE = {"model": "m", "steering": SPEC, "prompts": ["x", "y"]}
EVALUATE = {"model": "m", "steering": SPEC, "scales": [-1, 0, 1.5], "dataset": "sentiment", "metrics": ["kl"]}
ORTHOGONALIZE = {"model": "m", "id": "free", "vectors": ["calm", "rude"]}
STARTS = {
    "extract": (parse_extract, extract_call, EXTRACT),
    "select": (parse_select, select_call, SELECT),
    "calibrate": (parse_calibrate, calibrate_call, CALIBRATE),
    "evaluate": (parse_evaluate, evaluate_call, EVALUATE),
    "orthogonalize": (parse_orthogonalize, orthogonalize_call, ORTHOGONALIZE),
}
SENT = {
    "extract": {
        "id": upstream_handle("acme", "calm"),
        "method": "mean_difference",
        "positive": ["a", "b"],
        "negative": ["c", "d"],
        "layer": 3,
        "chat": False,
    },
    "select": {
        "id": upstream_handle("acme", "calm"),
        "method": "mean_difference",
        "dataset": "harmfulness",
        "tokens": [-1, -2, "mean"],
        "by": "refusal",
        "chat": False,
    },
    "calibrate": {"steering": MOVED, "prompts": ["x", "y"], "chat": False},
    "evaluate": {
        "steering": MOVED,
        "scales": [-1.0, 0.0, 1.5],
        "dataset": "sentiment",
        "metrics": ["kl"],
        "chat": False,
    },
    "orthogonalize": {
        "model": upstream_handle("acme", "free"),
        "vectors": [upstream_handle("acme", "calm"), upstream_handle("acme", "rude")],
    },
}


@pytest.mark.parametrize("kind", STARTS)
def test_a_job_is_started_field_by_field_with_ids_from_this_side(kind):
    parse, call, body = STARTS[kind]
    started = call(parse(json.dumps(body).encode()), RULES, IDENTITY, tenant="acme")
    job_id = f"job-{kind}-{model_mark('m')}-abc"
    assert json.loads(started.upstream_body) == SENT[kind] | {"job_id": upstream_handle("acme", job_id)}
    assert (started.status, started.upstream_method) == (202, "POST")
    assert started.upstream_path == f"/v1/steering/{kind}"
    assert started.stateful


@pytest.mark.parametrize("kind", STARTS)
def test_only_tenants_that_may_steer_may_start_a_job(kind):
    parse, _, body = STARTS[kind]
    assert parse(json.dumps(body).encode()).steers


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("extract", {"positive": []}, Reason.INVALID_REQUEST),
        ("extract", {"positive": None}, Reason.INVALID_REQUEST),
        ("extract", {"dataset": "sentiment"}, Reason.INVALID_REQUEST),
        ("extract", {"positive": None, "negative": None, "dataset": "weights"}, Reason.INVALID_REQUEST),
        ("extract", {"positive": [""], "negative": ["x"]}, Reason.INVALID_REQUEST),
        ("extract", {"positive": ["x"] * 257, "negative": ["y"] * 257}, Reason.INVALID_REQUEST),
        ("extract", {"positive": ["x" * 8193]}, Reason.INVALID_REQUEST),
        ("extract", {"id": "../up"}, Reason.INVALID_REQUEST),
        ("extract", {"id": "Upper"}, Reason.INVALID_REQUEST),
        ("extract", {"id": "a\n"}, Reason.INVALID_REQUEST),
        ("extract", {"layer": -1}, Reason.INVALID_REQUEST),
        ("extract", {"layer": 1024}, Reason.INVALID_REQUEST),
        ("extract", {"layer": None}, Reason.INVALID_REQUEST),
        ("extract", {"layers": "all"}, Reason.INVALID_REQUEST),
        ("extract", {"method": "export"}, Reason.INVALID_REQUEST),
        ("extract", {"token": "first"}, Reason.INVALID_REQUEST),
        ("extract", {"params": {"seed": -1}}, Reason.INVALID_REQUEST),
        ("extract", {"params": {"path": "/etc"}}, Reason.UNSUPPORTED_FIELD),
        ("extract", {"tensor": [1.0]}, Reason.UNSUPPORTED_FIELD),
        ("extract", {"job_id": "x"}, Reason.UNSUPPORTED_FIELD),
        ("select", {"by": "covert"}, Reason.INVALID_REQUEST),
        ("select", {"tokens": []}, Reason.INVALID_REQUEST),
        ("select", {"positive": ["x"]}, Reason.INVALID_REQUEST),
        ("calibrate", {"steering": {"vectors": []}}, Reason.INVALID_REQUEST),
        ("calibrate", {"steering": {"vectors": [{"id": "x", "op": "replace"}]}}, Reason.INVALID_REQUEST),
        ("calibrate", {"steering": SPEC | {"model": "free"}}, Reason.INVALID_REQUEST),
        ("calibrate", {"prompts": None}, Reason.INVALID_REQUEST),
        ("calibrate", {"prompts": ["x"] * 257}, Reason.INVALID_REQUEST),
        ("calibrate", {"quantile": 1.5}, Reason.INVALID_REQUEST),
        ("evaluate", {"scales": []}, Reason.INVALID_REQUEST),
        ("evaluate", {"scales": [0] * 34}, Reason.INVALID_REQUEST),
        ("evaluate", {"scales": [1e9]}, Reason.INVALID_REQUEST),
        ("evaluate", {"metrics": ["activations"]}, Reason.INVALID_REQUEST),
        ("evaluate", {"return": "activations"}, Reason.UNSUPPORTED_FIELD),
        ("evaluate", {"side": "left"}, Reason.INVALID_REQUEST),
        ("evaluate", {"answer_tokens": 257}, Reason.INVALID_REQUEST),
        ("orthogonalize", {"vectors": []}, Reason.INVALID_REQUEST),
        ("orthogonalize", {"vectors": ["A"]}, Reason.INVALID_REQUEST),
        ("orthogonalize", {"export": True}, Reason.UNSUPPORTED_FIELD),
    ],
)
def test_what_is_out_of_bounds_or_on_no_list_is_refused(kind, changes, reason):
    parse, _, body = STARTS[kind]
    refused = parse(json.dumps(body | changes).encode())
    assert isinstance(refused, Refused)
    assert refused.reason is reason


@pytest.mark.parametrize("kind", STARTS)
def test_nothing_that_was_not_given_is_sent_and_all_that_was_given_is(kind):
    """Every field of every request, at once: what is on the list reaches the backend, and names only in the tenant's space."""
    parse, call, body = STARTS[kind]
    more = {
        "extract": {
            "token": -2,
            "chat": True,
            "paired": False,
            "params": {"c": 0.5, "labels": [True, False], "first_words": ["I"]},
        },
        "select": {
            "layers": "all",
            "chat": True,
            "paired": True,
            "params": {"seed": 1, "kl_nats_max": 0.2, "depth_max": 0.5},
        },
        "calibrate": {"chat": True, "answer_tokens": 8, "target_kl_nats": 2.0, "quantile": 0.5, "tolerance": 0.1},
        "evaluate": {
            "side": "positive",
            "paired": True,
            "answer_prefix": " ",
            "answer_tokens": 8,
            "rope_nats": 0.5,
            "seed": 3,
        },
        "orthogonalize": {},
    }[kind]
    sent = json.loads(call(parse(json.dumps(body | more).encode()), RULES, IDENTITY, tenant="acme").upstream_body)
    assert {name: sent[name] for name in more} == more
    assert sent.keys() == SENT[kind].keys() | more.keys() | {"job_id"}


def test_every_field_that_can_hold_a_handle_is_moved_and_never_copied():
    """All other fields are sent as they were given, so a new one with a handle in it must be put among those that are not."""
    kinds = (ExtractRequest, SelectRequest, CalibrateRequest, EvaluateRequest, OrthogonalizeRequest)
    fields = [field for kind in kinds for field in msgspec.structs.fields(kind)]
    naming = {field.name for field in fields if "[a-z0-9][a-z0-9._-]" in str(field.type) or field.type is Steering}
    assert naming == {"id", "vectors", "steering"} == steering._NAMING - {"model"}


@pytest.mark.parametrize("body", [b"", b"\xff", b'{"model": ', b'{"layer": NaN}'])
def test_what_is_not_json_is_refused_as_such(body):
    assert all(parse(body).reason is Reason.INVALID_JSON for parse, _, _ in STARTS.values())
