"""Ten thousand random specs, right and wrong ones: none may end the engine, or be felt by anybody else."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.config import ModelConfig
from inference.engine import Engine
from inference.kv import KvCache
from inference.model import Model, Span
from inference.request import EndReason, EngineRequest, Handle
from inference.sampling import SamplingParams
from inference.steering.building import OPERATIONS
from inference.steering.program import CompiledSteering
from inference.steering.spec import SpecError
from inference.weights import open_source
from tests.inference.steering.world import CPU, World, tiny_model

SPECS_PER_BATCH = 8
NEIGHBOUR = (5, 17, 3, 99, 42)
"""The plain request in every batch; no other prompt begins like it."""

IDS = ["a", "b", "c", "everywhere", "two", "positional", "heads", "eraser", "relu", "jump", "topk"]
FITTING = {
    "add": ["a", "b", "everywhere", "two", "positional"],
    "erase_mean": ["eraser"],
    "leace": ["eraser"],
    "sae": ["relu", "jump", "topk"],
    "head_add": ["heads"],
}
numbers = st.one_of(*[st.floats(-100, 100, width=32)] * 3, st.sampled_from([0.0, 1.0, -1.0, 1e-30, 99.0, -100.0]))
wrong_numbers = st.sampled_from([float("nan"), float("inf"), -1e300, 101.0, 10**400, True, "1", None])


def some(strategy, chance: int = 3):
    """Absent as a rule."""
    return st.one_of(*[st.none()] * chance, strategy)


def without_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def selectors(negative: bool):
    place = st.integers(-6 if negative else 0, 12)
    window = st.tuples(place, st.integers(1, 5)).map(lambda pair: (pair[0], pair[0] + pair[1]))
    lists = {
        "tokens": some(st.lists(st.integers(0, 100), min_size=1, max_size=4), 1),
        "positions": some(st.lists(place, min_size=1, max_size=4), 1),
        "windows": some(st.lists(window, min_size=1, max_size=2), 1),
    }
    return st.one_of(st.sampled_from(["all", "all", "none"]), st.fixed_dictionaries(lists).map(without_none))


def stretches():
    return {"prompt": some(selectors(negative=True), 1), "generation": some(selectors(negative=False), 1)}


applies = st.fixed_dictionaries(
    {**stretches(), "exclude": some(st.fixed_dictionaries(stretches()).map(without_none), 1)}
).map(without_none)
gates = st.builds(
    lambda side, threshold, **fields: without_none(fields) | {side: threshold},
    st.sampled_from(["above", "below"]),
    st.floats(-1, 1),
    id=st.sampled_from(["a", "b", "everywhere"]),
    layer=st.integers(0, 2),
    token=some(st.sampled_from(["mean", "last"]), 1),
)
PARAMS = {
    "add": {"normalize": some(st.booleans(), 1)},
    "ablate": {"also": some(st.lists(st.sampled_from(["b", "c"]), unique=True, max_size=2), 1)},
    "set_projection": {"value": numbers},
    "cap": {"low": st.floats(-50, 0), "high": some(st.floats(0, 50), 1)},
    "replace": {"to": st.sampled_from(["a", "b", "everywhere"])},
    "rotate": {"with": st.sampled_from(["b", "c"]), "degrees": st.floats(-360, 360)},
    "sae": {"feature": st.integers(0, 95), "mode": st.sampled_from(["add", "pin", "scale"])},
}
NEEDS_SCALE = ("scale_projection", "sae")
LAYERS = {"two": [0, 2], "heads": [1, 2], "eraser": [1, 2]}
JUNK = st.one_of(wrong_numbers, st.sampled_from(IDS), st.just({"x": 1}), st.just([-1]), st.just([]))


@st.composite
def uses(draw) -> dict[str, Any]:
    """Mostly right, so that most of them run; some have something wrong put somewhere."""
    op = draw(st.sampled_from(list(OPERATIONS)))
    vector_id = draw(st.sampled_from(FITTING.get(op, ["a", "everywhere"])))
    layers = st.lists(st.sampled_from(LAYERS.get(vector_id, [0, 1, 2])), min_size=1, unique=True)
    has_scale = op in ("add", "ablate", "head_add")
    use = {
        "id": vector_id,
        "op": op,
        "scale": draw(numbers if op in NEEDS_SCALE else some(numbers, 1) if has_scale else st.none()),
        "layers": draw(some(layers)),
        "point": draw(some(st.sampled_from(sorted(p.value for p in OPERATIONS[op].points)))),
        "apply": draw(some(applies, 1)),
        "when": draw(some(gates)),
        "params": draw(st.fixed_dictionaries(PARAMS.get(op, {})).map(without_none)) or None,
    }
    use = without_none(use)
    if draw(st.integers(0, 19)) == 13:
        fields = ["id", "op", "scale", "layers", "point", "apply", "when", "params", "sclae"]
        use[draw(st.sampled_from(fields))] = draw(JUNK)
    if draw(st.integers(0, 19)) == 13 and isinstance(use.get("params"), dict):
        use["params"][draw(st.sampled_from([*use["params"], "position"]))] = draw(JUNK)
    return use


specs = st.fixed_dictionaries(
    {
        "vectors": st.lists(uses(), min_size=1, max_size=4),
        "conflict": some(st.sampled_from(["sequential", "sum", "priority", "priority", "sum", "error"]), 1),
    }
).map(without_none)


class WatchedModel(Model):
    """Remembers hidden states and logits of every row of sequences whose prompt is the neighbour's."""

    def watch(self) -> None:
        self.seen: dict[int, tuple[KvCache, list[torch.Tensor]]] = {}

    def hidden(self, token_ids: torch.Tensor, spans: Sequence[Span], **options: Any) -> torch.Tensor:
        hidden = super().hidden(token_ids, spans, **options)
        if tuple(token_ids.tolist()) == NEIGHBOUR:
            self.seen[id(spans[0].cache)] = (spans[0].cache, [hidden.clone()])
        return hidden

    def logits(self, token_ids: torch.Tensor, spans: Sequence[Span], **options: Any) -> torch.Tensor:
        logits = super().logits(token_ids, spans, **options)
        for span, row in zip(spans, logits, strict=True):
            if id(span.cache) in self.seen:
                self.seen[id(span.cache)][1].append(row.clone())
        return logits

    def neighbour(self) -> list[torch.Tensor]:
        """What was seen of the one neighbour since `watch`."""
        [(_, rows)] = self.seen.values()
        return rows


class Outcome:
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.reason: EndReason | None = None
        self.applied = None
        self.over = threading.Event()

    def take(self, token_id: int) -> bool:
        self.ids.append(token_id)
        return False

    def end(self, reason: EndReason, applied: Any) -> None:
        self.reason, self.applied = reason, applied
        self.over.set()


def submit(engine: Engine, prompt: tuple[int, ...], steering: CompiledSteering | None) -> Outcome:
    outcome = Outcome()
    request = EngineRequest(
        prompt_ids=prompt,
        max_tokens=4,
        sampling=SamplingParams(seed=len(prompt)),
        steering=steering,
        on_token=outcome.take,
        on_end=outcome.end,
    )
    assert isinstance(engine.submit(request), Handle)
    return outcome


@pytest.fixture(scope="module")
def world(tiny: World, tiny_config: ModelConfig) -> World:
    return World(tiny_model(tiny_config, kind=WatchedModel), tiny.shelf)


def compiled_or_none(world: World, spec: dict[str, Any]) -> CompiledSteering | None:
    """None for what the wire's types or the compiler refuse; anything else that is raised is a bug."""
    with contextlib.suppress(SpecError, msgspec.ValidationError):
        return world.compiled(*spec["vectors"], **{key: spec[key] for key in spec if key != "vectors"})
    return None


class Crowd:
    """An engine that runs batches of random specs beside one plain request, and what came of them."""

    def __init__(self, world: World) -> None:
        assert isinstance(world.model, WatchedModel)
        self.world, self.model = world, world.model
        self.engine = Engine(world.model, batch_rows_max=SPECS_PER_BATCH + 1, kv_tokens_max=4096, prefix_tokens_max=0)
        self.tally = {"run": 0, "refused": 0, "diverged": 0, "applied": 0}

    def __enter__(self) -> Crowd:
        self.engine.start()
        self.model.watch()
        self.plain = submit(self.engine, NEIGHBOUR, None)
        assert self.plain.over.wait(60)
        self.expected = self.model.neighbour()
        assert len(self.expected) == len(self.plain.ids)
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.stop()
        assert self.engine.kv_tokens_reserved == 0
        print(self.tally)  # noqa: T201 - shown with -s

    def run(self, wanted: list[dict[str, Any]], length: int) -> None:
        self.model.watch()
        programs = [compiled_or_none(self.world, spec) for spec in wanted]
        self.tally["refused"] += programs.count(None)
        steered = [
            (submit(self.engine, (9, *range(50, 49 + length + i)), program), program)
            for i, program in enumerate(programs)
            if program is not None
        ]
        neighbour = submit(self.engine, NEIGHBOUR, None)
        for outcome, program in steered:
            assert outcome.over.wait(60)
            assert outcome.reason in (EndReason.LENGTH, EndReason.DIVERGED), outcome.reason
            self.tally["run"] += 1
            self.tally["diverged"] += outcome.reason is EndReason.DIVERGED
            self.tally["applied"] += bool(outcome.applied.sites)
            assert len(outcome.applied.gates) == len(program.gates)
            assert 0 <= outcome.applied.relative_dose() <= 1e9
        assert neighbour.over.wait(60)
        assert neighbour.ids == self.plain.ids
        rows = self.model.neighbour()
        assert all(torch.equal(row, expected) for row, expected in zip(rows, self.expected, strict=True))


def many(examples: int):
    return settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))


batches = st.lists(specs, min_size=SPECS_PER_BATCH, max_size=SPECS_PER_BATCH)


@pytest.mark.timeout(1800)  # two minutes of one core; other work may have the others
def test_ten_thousand_random_specs_neither_end_the_engine_nor_reach_a_neighbours_row(world: World):
    with Crowd(world) as crowd:
        many(10_000 // SPECS_PER_BATCH)(given(batches, st.integers(1, 40))(crowd.run))()
    assert crowd.tally["run"] + crowd.tally["refused"] >= 10_000
    assert crowd.tally["applied"] > 4_000  # most of it must not be refused, or nothing was shown


def at_real_layers(spec: dict[str, Any]) -> dict[str, Any]:
    """Layers of the tiny model as those at which the real one's objects are."""
    real = {0: 3, 1: 10, 2: 20}

    def moved(use: dict[str, Any]) -> dict[str, Any]:
        layers, when = use.get("layers"), use.get("when")
        if isinstance(layers, list):
            use = use | {"layers": [real.get(layer, layer) for layer in layers]}
        if isinstance(when, dict) and when.get("layer") in real:
            use = use | {"when": when | {"layer": real[when["layer"]]}}
        return use

    return spec | {"vectors": [moved(use) for use in spec["vectors"]]}


@pytest.mark.timeout(1800)  # two minutes of one core; other work may have the others
def test_random_specs_on_the_real_weights_do_no_harm_either(smol: World, model_directory: Path):
    source = open_source(model_directory)
    model = WatchedModel(source.config, source.tensors, dtype=torch.float32, device=CPU)
    with Crowd(World(model, smol.shelf)) as crowd:
        wanted = batches.map(lambda several: [at_real_layers(spec) for spec in several])
        many(30)(given(wanted, st.integers(1, 40))(crowd.run))()
    assert crowd.tally["applied"] > 60
