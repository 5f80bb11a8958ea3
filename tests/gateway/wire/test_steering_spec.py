"""The steering object: a closed type, all of whose handles are the tenant's own."""

import json
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire import chat, completions
from gateway.wire.dialect import Identity, ModelRules
from gateway.wire.handles import own_handle, upstream_handle
from gateway.wire.steering_spec import PARAMS, Gate, Params, Steering, Use, contradiction, fingerprint_of, in_space
from policy.refusal import Reason, Refused

RULES = ModelRules(name="m", usage=True, token_ids=False, tokens_max=4096, tokens_default=512)
IDENTITY = Identity(id="abc", created_s=1, seed=2)
# Nothing else in a spec looks like one of these.
handles = st.integers(0, 99).map(lambda number: f"handle{number:02}")
places = st.sampled_from(["all", "none"]) | st.fixed_dictionaries(
    {},
    optional={
        "tokens": st.lists(st.integers(0, 50_000), max_size=3),
        "positions": st.lists(st.integers(-9, 9), max_size=3),
        "windows": st.lists(st.lists(st.integers(-9, 9), min_size=2, max_size=2), max_size=3),
    },
)
PARAM = {
    "normalize": st.booleans(),
    "position": st.integers(-9, 9),
    "also": st.lists(handles, max_size=3),
    "value": st.floats(-9, 9) | st.just("mean:harmless"),
    "low": st.floats(-9, 9),
    "high": st.floats(-9, 9),
    "to": handles,
    "with": handles,
    "degrees": st.floats(-180, 180),
    "feature": st.integers(0, 9),
    "mode": st.sampled_from(["add", "pin", "scale"]),
}


@st.composite
def uses(draw):
    op = draw(st.sampled_from(sorted(PARAMS)))
    use = {"id": draw(handles), "op": op, "params": {name: draw(PARAM[name]) for name in sorted(PARAMS[op])}}
    if draw(st.booleans()):
        gate = {"id": draw(handles), "layer": draw(st.integers(0, 9)), draw(st.sampled_from(["above", "below"])): 0.5}
        use["when"] = gate
    if draw(st.booleans()):
        use["layers"] = draw(st.just("all") | st.lists(st.integers(0, 30), min_size=1, max_size=3))
    if draw(st.booleans()):
        use["apply"] = {"prompt": draw(places), "exclude": {"generation": draw(places)}}
    if draw(st.booleans()):
        use |= {"scale": draw(st.floats(-9, 9)), "point": draw(st.sampled_from(["block_input", "all_writes"]))}
    return use


specs = st.fixed_dictionaries(
    {"vectors": st.lists(uses(), min_size=1, max_size=3)},
    optional={"conflict": st.sampled_from(["sequential", "sum", "priority", "error"]), "model": handles},
)


def read(spec) -> Steering:
    return msgspec.convert(spec, Steering)


def moved(value, tenant):
    """A spec with every handle in it moved, found by its looks."""
    if isinstance(value, dict):
        return {name: moved(member, tenant) for name, member in value.items()}
    if isinstance(value, list):
        return [moved(member, tenant) for member in value]
    is_handle = isinstance(value, str) and re.fullmatch(r"handle\d\d", value)
    return upstream_handle(tenant, value) if is_handle else value


def without_defaults(value):
    """As a client might have left it out: lists and objects without anything in them."""
    if isinstance(value, dict):
        members = {name: without_defaults(member) for name, member in value.items()}
        return {name: member for name, member in members.items() if member not in ([], {})}
    return [without_defaults(member) for member in value] if isinstance(value, list) else value


@given(specs)
def test_what_reaches_a_backend_is_the_clients_spec_with_every_handle_moved(spec):
    assert contradiction(read(spec)) is None
    sent = json.loads(msgspec.json.encode(in_space(read(spec), tenant="acme")))
    wanted = {name: value for name, value in spec.items() if name != "model"}
    assert without_defaults(sent) == without_defaults(json.loads(json.dumps(moved(wanted, "acme"))))


@given(specs)
def test_no_handle_of_one_tenant_is_one_of_another(spec):
    def named(tenant):
        return set(re.findall(r"[0-9a-f]{16}-handle\d\d", json.dumps(in_space(read(spec), tenant=tenant))))

    assert named("acme")
    assert not named("acme") & named("other")
    assert not re.search(r'"handle\d\d"', json.dumps(in_space(read(spec), tenant="acme")))


def test_every_field_that_can_hold_a_handle_is_known_to_these_tests():
    """A new one must be moved, and be added to the strategies above."""
    held = {
        (kind.__name__, name.encode_name)
        for kind in (Steering, Use, Gate, Params)
        for name in msgspec.structs.fields(kind)
        if "A-Za-z" not in str(name.type) and "[a-z0-9][a-z0-9._-]" in str(name.type)
    }
    assert held == {
        ("Use", "id"),
        ("Gate", "id"),
        ("Params", "also"),
        ("Params", "to"),
        ("Params", "with"),
        ("Steering", "model"),
    }


@given(st.text(max_size=70), st.sampled_from(["acme", "other"]))
def test_a_name_is_a_tenants_own_only_if_it_is_a_handle_in_its_space(text, tenant):
    handle = re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", text)
    assert own_handle("acme", upstream_handle(tenant, text)) == (text if handle and tenant == "acme" else None)
    assert own_handle("acme", text) is None


@pytest.mark.parametrize(
    ("use", "param"),
    [
        ({"op": "cap"}, "steering.vectors[0].params"),
        ({"op": "cap", "params": {}}, "steering.vectors[0].params"),
        ({"op": "set_projection"}, "steering.vectors[0].params.value"),
        ({"op": "replace"}, "steering.vectors[0].params.to"),
        ({"op": "rotate", "params": {"degrees": 1}}, "steering.vectors[0].params.with"),
        ({"op": "sae", "params": {"mode": "add"}}, "steering.vectors[0].params.feature"),
        ({"when": {"id": "g", "layer": 1}}, "steering.vectors[0].when"),
        ({"when": {"id": "g", "layer": 1, "above": 0, "below": 1}}, "steering.vectors[0].when"),
        ({"when": {"id": "../g", "layer": 1, "above": 0}}, "steering.vectors[0].when.id"),
        ({"when": {"id": "g", "layer": 2000, "above": 0}}, "steering.vectors[0].when.layer"),
        ({"when": {"id": "g", "layer": 1, "above": 1e9}}, "steering.vectors[0].when.above"),
        ({"op": "replace", "params": {"to": "A"}}, "steering.vectors[0].params.to"),
        ({"op": "ablate", "params": {"also": ["a\n"]}}, "steering.vectors[0].params.also[0]"),
        ({"op": "set_projection", "params": {"value": "mean:../x"}}, "steering.vectors[0].params.value"),
        ({"op": "set_projection", "params": {"value": 1e9}}, "steering.vectors[0].params.value"),
        ({"apply": {"prompt": "some"}}, "steering.vectors[0].apply.prompt"),
        ({"apply": {"prompt": {"windows": [[1, 2, 3]]}}}, "steering.vectors[0].apply.prompt.windows[0]"),
        ({"layers": "none"}, "steering.vectors[0].layers"),
        ({"point": "logits"}, "steering.vectors[0].point"),
        ({"scale": True}, "steering.vectors[0].scale"),
    ],
)
def test_what_is_out_of_bounds_or_contradicts_itself_is_refused_with_its_place(use, param):
    for dialect, body in ((chat, {"messages": [{"role": "user", "content": "x"}]}), (completions, {"prompt": "x"})):
        spec = {"vectors": [{"id": "v"} | use]}
        refused = dialect.parse_request(json.dumps({"model": "m", "steering": spec} | body).encode())
        assert isinstance(refused, Refused), use
        assert (refused.reason, refused.param) == (Reason.INVALID_REQUEST, param)


@pytest.mark.parametrize(
    ("spec", "param"),
    [
        ({"vectors": [], "tensor": [1.0]}, "steering.tensor"),
        ({"vectors": [{"id": "v", "file": "x"}]}, "steering.vectors[0].file"),
        ({"vectors": [{"id": "v", "params": {"low": 1}}]}, "steering.vectors[0].params.low"),
        ({"vectors": [{"id": "v", "op": "leace", "params": {"to": "w"}}]}, "steering.vectors[0].params.to"),
        ({"vectors": [{"id": "v", "params": {"secret": 1}}]}, "steering.vectors[0].params.secret"),
        ({"vectors": [{"id": "v", "when": {"id": "g", "layer": 1, "above": 0, "x": 1}}]}, "steering.vectors[0].when.x"),
        ({"vectors": [{"id": "v", "apply": {"prompt": {"x": []}}}]}, "steering.vectors[0].apply.prompt.x"),
    ],
)
def test_what_is_on_no_list_is_refused_by_name(spec, param):
    body = {"model": "m", "prompt": "x", "steering": spec}
    refused = completions.parse_request(json.dumps(body).encode())
    assert isinstance(refused, Refused), spec
    assert (refused.reason, refused.param) == (Reason.UNSUPPORTED_FIELD, param)


def test_a_derived_model_answers_in_the_place_of_its_base_but_the_base_bears_the_charge():
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "steering": {"model": "free"}}
    request = chat.parse_request(json.dumps(body).encode())
    assert request.steers
    call = chat.sanitise(request, RULES, IDENTITY, tenant="acme")
    sent = json.loads(call.upstream_body)
    assert call.model == "m"
    assert sent["model"] == upstream_handle("acme", "free")
    assert "steering" not in sent


def test_a_fingerprint_names_the_spec_as_sent_and_the_derived_model():
    spec = in_space(read({"vectors": [{"id": "v"}]}), tenant="acme")
    other = in_space(read({"vectors": [{"id": "v", "scale": 2}]}), tenant="acme")
    prints = {fingerprint_of(spec), fingerprint_of(other), fingerprint_of(spec, derived="x")}
    assert len(prints) == 3
    assert fingerprint_of(None, derived="x") is None
