"""Vectors and derived models: a tenant sees its own handles, closed words and layers, and never a tensor."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.dialect import Identity, ModelRules
from gateway.wire.handles import upstream_handle
from gateway.wire.vectors import (
    KINDS,
    DoneDecoder,
    HandlesDecoder,
    HandlesRenderer,
    VectorDecoder,
    VectorRenderer,
    combine_call,
    delete_call,
    list_call,
    parse_combine,
    vector_call,
)
from policy.canonical import Finish, Malformed, Numbers, TextDelta
from policy.codelength import release_bits
from policy.limits import VECTORS_LISTED_MAX, WIRE_BASE_BYTES
from policy.refusal import Reason, Refused
from policy.release import Ending, Outcome, Release

RULES = ModelRules(name="m", usage=True, token_ids=False, tokens_max=4096, tokens_default=512)
IDENTITY = Identity(id="abc", created_s=1, seed=2)
COMBINATION = {"model": "m", "id": "both", "terms": [{"id": "a", "weight": 0.5}, {"id": "b"}], "orthogonal_to": ["c"]}
owned = st.dictionaries(
    st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True),
    st.fixed_dictionaries({"kind": st.sampled_from(KINDS), "layers": st.sets(st.integers(0, 1023)).map(sorted)}),
    max_size=5,
)


def decode(decoder, body):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert list(decoder.feed(data[:9])) == list(decoder.feed(data[9:])) == []
    return list(decoder.eof())


def listed(own, tenant="acme"):
    return [{"id": upstream_handle(tenant, handle), **fields} for handle, fields in own.items()]


def release_of(events) -> Release:
    said = {type(event): event for event in events}
    numbers = said[Numbers].values if Numbers in said else None
    text = said[TextDelta].text if TextDelta in said else ""
    return Release(idle_ticks=0, quanta=0, text=text, ending=Ending(outcome=Outcome.STOP, numbers=numbers))


def shown(sort, data, tenant="acme"):
    events = decode(HandlesDecoder(sort, tenant=tenant), {"data": data})
    return json.loads(HandlesRenderer(sort).release(release_of(events)))


@given(owned, owned, st.randoms(use_true_random=False))
def test_a_list_shows_the_tenants_own_in_order_whatever_stands_around_them(own, foreign, coin):
    entries = [
        *({**entry, "norm": 1.23, "description": "covert"} for entry in listed(own)),
        *listed(foreign, tenant="other"),
        *({"id": handle, "kind": ["covert"]} for handle in foreign),
        {"id": upstream_handle("acme", "../up")},
        {"id": upstream_handle("acme", "Upper")},
        {"id": upstream_handle("acme", "")},
    ]
    coin.shuffle(entries)
    entries = [
        entry | {"layers": coin.sample(entry.get("layers", []), len(entry.get("layers", [])))} for entry in entries
    ]
    assert shown("vectors", entries) == {
        "object": "list",
        "data": [{"id": handle, "object": "steering.vector", **own[handle]} for handle in sorted(own)],
    }


@given(owned, st.randoms(use_true_random=False))
def test_two_backends_that_list_the_same_give_the_same_bytes(own, coin):
    def rendered(entries):
        events = decode(HandlesDecoder("vectors", tenant="acme"), json.dumps({"data": entries}).encode())
        return HandlesRenderer("vectors").release(release_of(events))

    shuffled = listed(own) + [{"id": f"covert-{coin.getrandbits(40)}"} for _ in range(3)]
    coin.shuffle(shuffled)
    assert rendered(shuffled) == rendered(listed(own))


@given(st.integers(0, 2**200))
def test_handles_that_a_backend_makes_up_cost_what_they_carry(secret):
    digits = "abcdefghijklmnopqrstuvwxyz012345"
    handle, carried_bits = "x", 0
    while secret and len(handle) < 63:
        handle, secret, carried_bits = handle + digits[secret % 32], secret // 32, carried_bits + 5
    events = decode(HandlesDecoder("models", tenant="acme"), {"data": listed({handle: {}})})
    assert release_bits(release_of(events), tools_declared=0) > carried_bits


def test_derived_models_are_handles_alone():
    base = {"id": "m", "object": "model"}
    derived = {"id": upstream_handle("acme", "free"), "derived": {"from": "m", "vectors": ["covert"]}}
    assert shown("models", [base, derived]) == {
        "object": "list",
        "data": [{"id": "free", "object": "steering.model"}],
    }


def test_nothing_of_ones_own_is_an_empty_list():
    assert shown("vectors", listed({"calm": {}}, tenant="other")) == {"object": "list", "data": []}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"data": {}}',
        b'{"data": [{"kind": "direction"}]}',
        json.dumps({"data": listed({"a": {"kind": "direction", "layers": [1]}}) * 2}).encode(),
        json.dumps({"data": listed({"a": {"kind": "covert", "layers": [1]}})}).encode(),
        json.dumps({"data": listed({"a": {"kind": "direction", "layers": [1024]}})}).encode(),
        json.dumps({"data": listed({"a": {"kind": "direction", "layers": [1.5]}})}).encode(),
        json.dumps({"data": listed({"a": {"kind": "direction"}})}).encode(),
        b'{"x": ' + b"[" * 100_000,
    ],
    ids=range(11),
)
def test_what_is_no_list_of_vectors_is_malformed(body):
    with pytest.raises(Malformed):
        decode(HandlesDecoder("vectors", tenant="acme"), body)


def test_a_vector_with_figures_for_very_many_layers_is_read():
    figures = {"norm": 1 / 3, "residual_norm": 100 / 3, "mean_pairwise_cosine": 1 / 7, "d_prime": 5 / 3}
    vector = {"kind": "direction", "layers": [3], "layer_figures": [{"layer": at, **figures} for at in range(256)]}
    [numbers, _] = decode(VectorDecoder(), vector)
    assert isinstance(numbers, Numbers)
    with pytest.raises(Malformed):
        decode(VectorDecoder(), {**vector, "more": "x" * 2**18})


def test_a_list_is_bounded():
    rows = listed({f"v{at}": {"kind": "direction", "layers": [1]} for at in range(VECTORS_LISTED_MAX + 1)})
    decode(HandlesDecoder("vectors", tenant="acme"), {"data": rows[1:]})
    with pytest.raises(Malformed):
        decode(HandlesDecoder("vectors", tenant="acme"), {"data": rows})


def test_a_vector_is_its_kind_and_its_layers():
    body = {"id": "covert", "kind": "eraser", "layers": [5, 2.0, 2], "norm": 3.1, "values": [1, 2]}
    events = decode(VectorDecoder(), body)
    assert events == [Numbers((KINDS.index("eraser"), 0b100100)), Finish(Outcome.STOP)]
    said = VectorRenderer("calm").release(release_of(events))
    assert json.loads(said) == {"id": "calm", "object": "steering.vector", "kind": "eraser", "layers": [2, 5]}


@pytest.mark.parametrize("sort", ["vectors", "models"])
def test_that_something_was_deleted_is_all_that_a_deletion_says(sort):
    call = delete_call(sort, "calm", RULES, tenant="acme")
    assert call.upstream_method == "DELETE"
    assert call.upstream_path.endswith(upstream_handle("acme", "calm"))
    coin = random.Random(1)
    for body in (b"{}", b"", b'{"deleted": false, "message": "covert"}', coin.randbytes(100)):
        events = decode(DoneDecoder(), body)
        assert events == [Finish(Outcome.STOP)]
        said = call.renderer.release(release_of(events))
        assert json.loads(said) == {"id": "calm", "object": f"steering.{sort[:-1]}", "deleted": True}
    with pytest.raises(Malformed):
        DoneDecoder().feed(b" " * (WIRE_BASE_BYTES + 1))


def test_every_handle_of_a_combination_is_moved():
    call = combine_call(parse_combine(json.dumps(COMBINATION).encode()), RULES, IDENTITY, tenant="acme")
    assert json.loads(call.upstream_body) == {
        "id": upstream_handle("acme", "both"),
        "terms": [
            {"id": upstream_handle("acme", "a"), "weight": 0.5},
            {"id": upstream_handle("acme", "b"), "weight": 1.0},
        ],
        "orthogonal_to": [upstream_handle("acme", "c")],
        "normalize": False,
    }
    assert (call.upstream_method, call.upstream_path, call.status) == ("POST", "/v1/steering/vectors/combine", 201)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"terms": []}, Reason.INVALID_REQUEST),
        ({"terms": [{"id": "a"}] * 17}, Reason.INVALID_REQUEST),
        ({"terms": [{"id": "a", "weight": 1e9}]}, Reason.INVALID_REQUEST),
        ({"terms": [{"id": "A"}]}, Reason.INVALID_REQUEST),
        ({"orthogonal_to": ["../x"]}, Reason.INVALID_REQUEST),
        ({"terms": [{"id": "both"}]}, Reason.INVALID_REQUEST),
        ({"values": [1.0]}, Reason.UNSUPPORTED_FIELD),
        ({"terms": [{"id": "a", "file": "x"}]}, Reason.UNSUPPORTED_FIELD),
    ],
)
def test_what_is_no_combination_is_refused(changes, reason):
    request = parse_combine(json.dumps(COMBINATION | changes).encode())
    refused = request if isinstance(request, Refused) else combine_call(request, RULES, IDENTITY, tenant="acme")
    assert isinstance(refused, Refused)
    assert refused.reason is reason


def test_questions_are_asked_in_the_tenants_own_space_and_lists_are_sorted_out_here():
    assert vector_call("calm", RULES, tenant="acme").upstream_path == "/v1/steering/vectors/" + upstream_handle(
        "acme", "calm"
    )
    assert list_call("vectors", RULES, tenant="acme").upstream_path == "/v1/steering/vectors?prefix=" + upstream_handle(
        "acme", ""
    )
    assert list_call("models", RULES, tenant="acme").upstream_path == "/v1/models"
    assert all(list_call(sort, RULES, tenant="acme").stateful for sort in ("vectors", "models"))
