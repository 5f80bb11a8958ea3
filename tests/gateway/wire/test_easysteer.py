"""EasySteer's spelling reaches a backend as our own, every handle in the tenant's name space, or is refused by name."""

import json

import pytest

from gateway.wire import chat, completions
from gateway.wire.dialect import Call, Identity, ModelRules
from gateway.wire.handles import upstream_handle
from policy.refusal import Reason, Refused

RULES = ModelRules(name="m", usage=True, token_ids=False, tokens_max=4096, tokens_default=512)
IDENTITY = Identity(id="abc", created_s=1, seed=2)
BODY = {chat: {"messages": [{"role": "user", "content": "hi"}]}, completions: {"prompt": "hi"}}
EVERYWHERE = {"prefill_trigger_tokens": [-1], "generate_trigger_tokens": [-1]}
CALM = {"steer_vector_local_path": "calm"}
both = pytest.mark.parametrize("dialect", [chat, completions], ids=["chat", "completions"])


def call(dialect, **fields) -> Call | Refused:
    request = dialect.parse_request(json.dumps({"model": "m", **BODY[dialect], **fields}).encode())
    return request if isinstance(request, Refused) else dialect.sanitise(request, RULES, IDENTITY, tenant="acme")


def sent(dialect, **fields):
    made = call(dialect, **fields)
    assert isinstance(made, Call), made
    return json.loads(made.upstream_body)


def handle(name):
    return upstream_handle("acme", name)


SAME = [
    (
        {**CALM, **EVERYWHERE, "scale": 2, "target_layers": [3], "steer_vector_name": "x", "steer_vector_int_id": 1},
        {
            "vectors": [{"id": "calm", "scale": 2, "layers": [3], "apply": {"prompt": "all", "generation": "all"}}],
            "conflict": "priority",
        },
    ),
    (
        {
            "conflict_resolution": "error",
            "vector_configs": [
                {
                    "path": "calm",
                    "normalize": True,
                    "prefill_trigger_tokens": [5],
                    "prefill_trigger_positions": [-1],
                    "prefill_exclude_tokens": [6],
                    "prefill_exclude_positions": [0],
                },
                {"path": "rude", "algorithm": "erase", "generate_trigger_tokens": [7], "generate_first_k_tokens": 4},
                {"path": "loud", "generate_after_k_tokens": 4},
                {"path": "late", "generate_after_k_tokens": 0},
            ],
        },
        {
            "conflict": "error",
            "vectors": [
                {
                    "id": "calm",
                    "params": {"normalize": True},
                    "apply": {
                        "prompt": {"tokens": [5], "positions": [-1]},
                        "generation": "none",
                        "exclude": {"prompt": {"tokens": [6], "positions": [0]}},
                    },
                },
                {
                    "id": "rude",
                    "op": "ablate",
                    "point": "block_output",
                    "apply": {
                        "prompt": "none",
                        "generation": {"tokens": [7]},
                        "exclude": {"generation": {"windows": [[4, 131_072]]}},
                    },
                },
                {
                    "id": "loud",
                    "apply": {
                        "prompt": "none",
                        "generation": "all",
                        "exclude": {"generation": {"windows": [[0, 4]]}},
                    },
                },
                {"id": "late", "apply": {"prompt": "none", "generation": "all"}},
            ],
        },
    ),
]


@both
@pytest.mark.parametrize(("theirs", "ours"), SAME)
def test_the_same_wish_is_the_same_request_to_the_backend(dialect, theirs, ours):
    got = sent(dialect, steer_vector_request=theirs)
    assert got == sent(dialect, steering=ours)
    assert "steer_vector_request" not in got
    assert [use["id"] for use in got["steering"]["vectors"]] == [handle(use["id"]) for use in ours["vectors"]]


@both
def test_it_needs_the_right_to_steer(dialect):
    body = {"model": "m", **BODY[dialect], "steer_vector_request": {**CALM, **EVERYWHERE}}
    assert dialect.parse_request(json.dumps(body).encode()).steers
    assert "steering" not in sent(dialect, steer_vector_request=None)


WRONG = [
    ({"moe_mode": "soft"}, "moe_mode", Reason.UNSUPPORTED_FIELD),
    ({"colour": 1}, "colour", Reason.UNSUPPORTED_FIELD),
    ({"debug": True}, "debug", Reason.INVALID_REQUEST),
    ({"algorithm": "loreft"}, "algorithm", Reason.INVALID_REQUEST),
    ({"algorithm": "erase", "scale": 2}, "scale", Reason.INVALID_REQUEST),
    ({"algorithm": "erase", "normalize": True}, "normalize", Reason.INVALID_REQUEST),
    ({"steer_vector_local_path": "./calm.gguf"}, "steer_vector_local_path", Reason.INVALID_REQUEST),
    ({"steer_vector_local_path": None}, "steer_vector_local_path", Reason.INVALID_REQUEST),
    ({"vector_configs": [{"path": "calm", **EVERYWHERE}]}, "prefill_trigger_tokens", Reason.INVALID_REQUEST),
    ({"vector_configs": []}, "vector_configs", Reason.INVALID_REQUEST),
    ({"prefill_trigger_tokens": [-2]}, "prefill_trigger_tokens[0]", Reason.INVALID_REQUEST),
    ({"prefill_exclude_tokens": [-1]}, "prefill_exclude_tokens[0]", Reason.INVALID_REQUEST),
    ({"generate_first_k_tokens": -1}, "generate_first_k_tokens", Reason.INVALID_REQUEST),
    ({"generate_first_k_tokens": 1, "generate_after_k_tokens": 1}, "generate_after_k_tokens", Reason.INVALID_REQUEST),
    ({"prefill_trigger_tokens": None, "generate_trigger_tokens": []}, "prefill_trigger_tokens", Reason.INVALID_REQUEST),
    ({"conflict_resolution": "sum"}, "conflict_resolution", Reason.INVALID_REQUEST),
]


@both
@pytest.mark.parametrize(("change", "param", "reason"), WRONG)
def test_what_cannot_be_translated_is_refused_by_name(dialect, change, param, reason):
    refused = call(dialect, steer_vector_request={**CALM, **EVERYWHERE, **change})
    assert isinstance(refused, Refused)
    assert (refused.param, refused.reason) == (f"steer_vector_request.{param}", reason)


@both
def test_one_of_many_is_named_by_its_place(dialect):
    listed = {"vector_configs": [{"path": "calm", **EVERYWHERE}, {"path": "rude"}]}
    refused = call(dialect, steer_vector_request=listed)
    assert refused.param == "steer_vector_request.vector_configs[1].prefill_trigger_tokens"
    refused = call(dialect, steer_vector_request={**CALM, **EVERYWHERE}, steering={"vectors": []})
    assert refused.param == "steer_vector_request"
