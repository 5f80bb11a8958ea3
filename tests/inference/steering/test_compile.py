"""Each way in which a spec can be wrong is refused with its place and a stable code, before anything runs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from inference.steering.kernels import Affine
from inference.steering.points import Point, Site
from inference.steering.spec import SpecError
from tests.inference.steering.world import Shelf, World

ADD: dict[str, Any] = {"id": "a", "op": "add"}
WHEN: dict[str, Any] = {"id": "b", "layer": 1, "above": 0.1}
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"id": "none"}, "unknown_vector", "id"),
    ({"id": "short"}, "wrong_dimension", "id"),
    ({"id": "foreign"}, "wrong_model", "id"),
    ({"id": "relu"}, "wrong_kind", "id"),
    ({"op": "sae"}, "wrong_kind", "id"),
    ({"op": "ablate", "id": "positional"}, "wrong_kind", "id"),
    ({"op": "leace"}, "wrong_kind", "id"),
    ({"op": "head_add"}, "wrong_kind", "id"),
    ({"op": "subtract"}, "unknown_op", "op"),
    ({"op": ""}, "unknown_op", "op"),
    ({"scale": math.nan}, "bad_scale", "scale"),
    ({"scale": math.inf}, "bad_scale", "scale"),
    ({"scale": -100.5}, "bad_scale", "scale"),
    ({"op": "cap", "scale": 2.0, "params": {"low": 0.0}}, "bad_scale", "scale"),
    ({"op": "scale_projection"}, "bad_scale", "scale"),
    ({"op": "sae", "id": "relu", "params": {"feature": 1, "mode": "scale"}}, "bad_scale", "scale"),
    ({"op": "sae", "id": "relu", "scale": 2e6, "params": {"feature": 1, "mode": "pin"}}, "bad_scale", "scale"),
    ({"op": "sae", "id": "relu", "scale": 101.0, "params": {"feature": 1, "mode": "scale"}}, "bad_scale", "scale"),
    ({"layers": []}, "bad_layers", "layers"),
    ({"layers": [3]}, "bad_layers", "layers"),
    ({"layers": [-1]}, "bad_layers", "layers"),
    ({"layers": [1, 1]}, "bad_layers", "layers"),
    ({"layers": [10**30]}, "bad_layers", "layers"),
    ({"id": "two", "layers": [1]}, "bad_layers", "layers"),
    ({"id": "two", "layers": "all"}, "bad_layers", "layers"),
    ({"op": "head_add", "id": "heads", "layers": [0]}, "bad_layers", "layers"),
    ({"op": "leace", "id": "eraser", "layers": [0]}, "bad_layers", "layers"),
    ({"point": "somewhere"}, "unknown_point", "point"),
    ({"point": "head_output"}, "bad_point", "point"),
    ({"op": "head_add", "id": "heads", "point": "block_output"}, "bad_point", "point"),
    ({"op": "head_add", "id": "heads", "point": "all_writes"}, "bad_point", "point"),
    ({"params": {"normalise": True}}, "unknown_field", "params.normalise"),
    ({"params": {"normalize": 1}}, "bad_params", "params.normalize"),
    ({"params": {"position": 2}}, "bad_params", "params.position"),
    ({"id": "positional", "params": {"position": -1}}, "bad_params", "params.position"),
    ({"id": "positional", "params": {"position": 512}}, "bad_params", "params.position"),
    ({"op": "scale_projection", "scale": 2.0, "params": {"low": 1}}, "unknown_field", "params.low"),
    ({"op": "ablate", "params": {"also": ["none"]}}, "unknown_vector", "params.also[0]"),
    ({"op": "ablate", "params": {"also": ["b", "relu"]}}, "wrong_kind", "params.also[1]"),
    ({"op": "ablate", "params": {"also": ["b", "short"]}}, "wrong_dimension", "params.also[1]"),
    ({"op": "ablate", "params": {"also": ["b", "a"]}}, "dependent_directions", "params.also[1]"),
    ({"op": "ablate", "params": {"also": ["b"] * 16}}, "too_many_operations", "params.also"),
    ({"op": "ablate", "params": {"also": "b"}}, "bad_params", "params.also"),
    ({"op": "ablate", "params": {"also": ["two"]}}, "bad_layers", "layers"),
    ({"op": "set_projection"}, "bad_params", "params"),
    ({"op": "set_projection", "params": {"value": math.nan}}, "bad_params", "params.value"),
    ({"op": "set_projection", "params": {"value": 2e6}}, "bad_params", "params.value"),
    ({"op": "set_projection", "params": {"value": "mean:harmless"}}, "unknown_mean", "params.value"),
    ({"op": "set_projection", "params": {"value": "positive"}}, "unknown_mean", "params.value"),
    ({"op": "set_projection", "id": "b", "params": {"value": "mean:positive"}}, "unknown_mean", "params.value"),
    ({"op": "set_projection", "layers": [0], "params": {"value": "mean:positive"}}, "unknown_mean", "params.value"),
    ({"op": "set_projection", "layers": "all", "params": {"value": "mean:positive"}}, "unknown_mean", "params.value"),
    ({"op": "set_projection", "id": "averaged", "params": {"value": "mean:all"}}, "unknown_mean", "params.value"),
    (
        {"op": "set_projection", "point": "mlp_output", "params": {"value": "mean:positive"}},
        "unknown_mean",
        "params.value",
    ),
    ({"op": "set_projection", "id": "odd", "params": {"value": "mean:yes"}}, "unknown_mean", "params.value"),
    ({"op": "set_projection", "id": "odd", "params": {"value": "mean:huge"}}, "bad_params", "params.value"),
    ({"op": "cap"}, "bad_params", "params"),
    ({"op": "cap", "params": {"low": 1.0, "high": 0.5}}, "bad_params", "params.low"),
    ({"op": "cap", "params": {"low": -math.inf}}, "bad_params", "params.low"),
    ({"op": "replace"}, "bad_params", "params"),
    ({"op": "replace", "params": {"to": "none"}}, "unknown_vector", "params.to"),
    ({"op": "rotate", "params": {"with": "b"}}, "bad_params", "params"),
    ({"op": "rotate", "params": {"with": "b", "degrees": 361.0}}, "bad_params", "params.degrees"),
    ({"op": "rotate", "params": {"with": "a", "degrees": 10.0}}, "dependent_directions", "params.with"),
    ({"op": "rotate", "params": {"with": "relu", "degrees": 10.0}}, "wrong_kind", "params.with"),
    ({"op": "sae", "id": "relu", "params": {"feature": 96, "mode": "add"}}, "bad_feature", "params.feature"),
    ({"op": "sae", "id": "relu", "params": {"feature": -1, "mode": "add"}}, "bad_feature", "params.feature"),
    ({"op": "sae", "id": "relu", "params": {"feature": 1, "mode": "mute"}}, "bad_params", "params.mode"),
    ({"op": "sae", "id": "dead", "params": {"feature": 5, "mode": "add"}}, "bad_feature", "params.feature"),
    (
        {"op": "sae", "id": "dead", "scale": 2.0, "params": {"feature": 5, "mode": "pin"}},
        "bad_feature",
        "params.feature",
    ),
    ({"op": "sae", "id": "relu"}, "bad_params", "params"),
    ({"apply": {"prompt": {}}}, "bad_selector", "apply.prompt"),
    ({"apply": {"prompt": {"tokens": []}}}, "bad_selector", "apply.prompt"),
    ({"apply": {"prompt": {"tokens": [1, 101]}}}, "bad_selector", "apply.prompt.tokens[1]"),
    ({"apply": {"generation": {"tokens": [-1]}}}, "bad_selector", "apply.generation.tokens[0]"),
    ({"apply": {"generation": {"positions": [0, -1]}}}, "bad_selector", "apply.generation.positions[1]"),
    ({"apply": {"generation": {"windows": [[-3, -1]]}}}, "bad_selector", "apply.generation.windows[0]"),
    ({"apply": {"prompt": {"windows": [[-3, 0]]}}}, "bad_selector", "apply.prompt.windows[0]"),
    ({"apply": {"prompt": {"windows": [[4, 4]]}}}, "bad_selector", "apply.prompt.windows[0]"),
    ({"apply": {"prompt": {"windows": [[0, 1], [-2, -3]]}}}, "bad_selector", "apply.prompt.windows[1]"),
    ({"apply": {"prompt": {"positions": [10**9]}}}, "bad_selector", "apply.prompt.positions[0]"),
    ({"apply": {"prompt": {"positions": list(range(1025))}}}, "bad_selector", "apply.prompt"),
    ({"apply": {"exclude": {"prompt": {"windows": [[9, 8]]}}}}, "bad_selector", "apply.exclude.prompt.windows[0]"),
    ({"when": WHEN | {"id": "none"}}, "unknown_vector", "when.id"),
    ({"when": WHEN | {"id": "relu"}}, "wrong_kind", "when.id"),
    ({"when": WHEN | {"id": "short"}}, "wrong_dimension", "when.id"),
    ({"when": WHEN | {"layer": 3}}, "bad_layers", "when.layer"),
    ({"when": WHEN | {"id": "two"}}, "bad_layers", "when.layer"),
    ({"when": WHEN | {"below": 0.2}}, "bad_gate", "when.below"),
    ({"when": {"id": "b", "layer": 1}}, "bad_gate", "when"),
    ({"when": WHEN | {"above": math.nan}}, "bad_gate", "when.above"),
    ({"when": {"id": "b", "layer": 1, "below": 1.5}}, "bad_gate", "when.below"),
]


@pytest.fixture
def tiny(tiny: World) -> World:
    """With objects that are stored rightly and can be asked for wrongly."""
    shelf = Shelf(tiny.shelf)
    means = {"positive": 3.0, "negative": -2.0, "all": 0.5}
    shelf["averaged"] = dataclasses.replace(
        shelf["everywhere"], metadata={"model_digest": None, "projection_means": means, "selected_layer": 1}
    )
    shelf["odd"] = dataclasses.replace(
        shelf["a"], metadata={"model_digest": None, "projection_means": {"yes": True, "huge": 1e300}}
    )
    decoder = shelf["relu"].tensors["decoder"].clone()
    decoder[5] = 0
    shelf["dead"] = dataclasses.replace(shelf["relu"], tensors={**shelf["relu"].tensors, "decoder": decoder})
    return dataclasses.replace(tiny, shelf=shelf)


@pytest.mark.parametrize(("change", "code", "param"), WRONG)
def test_a_wrong_spec_is_refused_with_its_place_and_code(tiny: World, change, code: str, param: str):
    before = tiny.model.forward_passes
    with pytest.raises(SpecError) as refused:
        tiny.compiled({"id": "b", "op": "add"}, ADD | change)
    assert (refused.value.code, refused.value.param) == (code, f"steering.vectors[1].{param}")
    assert tiny.model.forward_passes == before


def test_a_mean_is_set_where_it_was_measured(tiny: World):
    use = {"id": "averaged", "op": "set_projection", "params": {"value": "mean:positive"}}
    [(site, [step])] = tiny.compiled(use | {"layers": [1]}).steps.items()
    assert (site, step.kernels[0].offset) == (Site(1, Point.BLOCK_OUTPUT), 3.0)


def test_whole_specs_are_bounded(tiny: World):
    with pytest.raises(SpecError) as refused:
        tiny.compiled(*[ADD] * 17)
    assert (refused.value.code, refused.value.param) == ("too_many_vectors", "steering.vectors")
    with pytest.raises(SpecError) as refused:
        tiny.compiled(*[{"id": "a", "op": "ablate", "params": {"also": ["b", "c"]}}] * 11)
    assert (refused.value.code, refused.value.param) == ("too_many_operations", "steering.vectors")
    with pytest.raises(SpecError) as refused:
        tiny.compiled(ADD, conflict="random")
    assert (refused.value.code, refused.value.param) == ("unknown_conflict", "steering.conflict")


NOTHING: list[dict[str, Any]] = [
    ADD | {"scale": 0.0},
    ADD | {"scale": -0.0},
    {"id": "a", "op": "ablate", "scale": 0.0},
    {"id": "a", "op": "scale_projection", "scale": 1.0},
    {"id": "a", "op": "replace", "params": {"to": "a"}},
    {"id": "relu", "op": "sae", "scale": 0.0, "params": {"feature": 1, "mode": "add"}},
    {"id": "relu", "op": "sae", "scale": 1.0, "params": {"feature": 1, "mode": "scale"}},
    {"id": "heads", "op": "head_add", "scale": 0.0},
    ADD | {"apply": {"prompt": "none"}},
    ADD | {"apply": {"exclude": {"prompt": "all", "generation": "all"}}},
    {"id": "positional", "op": "add", "apply": {"generation": "all"}},
]


@pytest.mark.parametrize("use", NOTHING)
def test_an_operation_that_does_nothing_is_left_out_and_still_named_in_the_fingerprint(tiny: World, use):
    program = tiny.compiled(use)
    assert not program.steps
    assert program.prefix_key(prompt_tokens=9, gates=()) == ""
    assert program.fingerprint != tiny.compiled().fingerprint
    gated = tiny.compiled(use | {"when": WHEN})
    assert len(gated.gates) == 1  # its decision is reported all the same
    assert not gated.steps


def test_a_pinned_feature_may_be_pinned_to_zero(tiny: World):
    program = tiny.compiled({"id": "relu", "op": "sae", "scale": 0.0, "params": {"feature": 1, "mode": "pin"}})
    [step] = program.steps[Site(1, Point.BLOCK_OUTPUT)]
    assert isinstance(step.kernels[0], Affine)


SAME: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = [
    ([ADD], [ADD | {"scale": 1.0, "layers": [1], "point": "block_output", "params": {}}]),
    ([ADD | {"layers": [0, 2]}], [ADD | {"layers": [2, 0]}]),
    ([ADD], [ADD | {"apply": {"prompt": "all", "generation": "all"}}]),
    (
        [ADD | {"apply": {"prompt": {"tokens": [3, 2]}}}],
        [ADD | {"apply": {"prompt": {"tokens": [2, 3, 3]}, "generation": "none"}}],
    ),
    (
        [{"id": "a", "op": "set_projection", "params": {"value": "mean:all"}}],
        [{"id": "a", "op": "set_projection", "params": {"value": 0.5}}],
    ),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_fingerprint_is_the_same_for_two_ways_to_say_the_same(tiny: World, one, other):
    assert tiny.compiled(*one).fingerprint == tiny.compiled(*other).fingerprint


DIFFERENT: list[dict[str, Any]] = [
    ADD,
    ADD | {"id": "b"},
    ADD | {"scale": 1.0000001},
    ADD | {"layers": [0]},
    ADD | {"point": "block_input"},
    ADD | {"apply": {"generation": "all"}},
    ADD | {"apply": {"prompt": "all"}},
    ADD | {"apply": {"exclude": {"prompt": {"positions": [0]}}}},
    ADD | {"params": {"normalize": True}},
    ADD | {"when": WHEN},
    ADD | {"when": WHEN | {"token": "last"}},
    ADD | {"when": {"id": "b", "layer": 1, "below": 0.1}},
    {"id": "a", "op": "ablate", "point": "block_output"},
    {"id": "a", "op": "ablate", "point": "block_output", "params": {"also": ["b"]}},
    {"id": "a", "op": "ablate", "point": "block_output", "params": {"also": ["c"]}},
    {"id": "a", "op": "rotate", "params": {"with": "b", "degrees": 1.0}},
    {"id": "a", "op": "rotate", "params": {"with": "c", "degrees": 1.0}},
]


def test_the_fingerprint_differs_whenever_anything_else_would_be_done(tiny: World):
    programs = [tiny.compiled(use) for use in DIFFERENT]
    programs += [tiny.compiled(*DIFFERENT[:2]), tiny.compiled(*DIFFERENT[1::-1])]
    programs += [tiny.compiled(*DIFFERENT[:2], conflict="priority")]
    assert len({program.fingerprint for program in programs}) == len(programs)


def test_the_prefix_key_names_what_a_prompts_keys_and_values_depend_on_and_nothing_else(tiny: World):
    def key(*uses: dict[str, Any], prompt_tokens: int = 9, gates: tuple[bool, ...] = (), **fields: Any) -> str:
        return tiny.compiled(*uses, **fields).prefix_key(prompt_tokens=prompt_tokens, gates=gates)

    everywhere, answers = key(ADD), ADD | {"apply": {"generation": "all"}}
    assert everywhere != ""
    assert key(answers) == ""
    assert key(ADD, answers) == everywhere
    assert key(ADD | {"apply": {"prompt": "all"}}) == everywhere
    assert key(ADD | {"scale": 2.0}) != everywhere
    gated = ADD | {"when": WHEN}
    assert (key(gated, gates=(False,)), key(gated, gates=(True,))) == ("", everywhere)
    assert key(ADD, prompt_tokens=10) == everywhere
    from_end = ADD | {"apply": {"prompt": {"positions": [-2]}}}
    assert key(from_end) == key(from_end)
    assert key(from_end, prompt_tokens=10) != key(from_end)
    two = (ADD, {"id": "b", "op": "ablate"})
    assert len({key(*two), key(*reversed(two)), key(*two, conflict="sum"), everywhere}) == 4
