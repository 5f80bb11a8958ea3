"""Several operations at one site: in order, summed, by priority, or refused."""

from __future__ import annotations

import pytest
import torch

from inference.limits import TREATMENTS_KEPT_MAX
from inference.model import Span
from inference.steering import operations as o
from inference.steering.applied import Applied
from inference.steering.points import Point, Site
from inference.steering.spec import SpecError
from inference.steering.table import SteeredSpan, SteeringTable
from tests.inference.steering.world import CPU, World, random_tensor, tiny_model

ADD = {"id": "b", "op": "add", "scale": 2.0}
ABLATE = {"id": "a", "op": "ablate", "point": "block_output", "layers": [1]}
CAP = {"id": "c", "op": "cap", "params": {"low": -0.1, "high": 0.1}}


@pytest.fixture
def hidden(tiny: World) -> torch.Tensor:
    return random_tensor(10, tiny.config.d_model, seed=8)


def changed(hidden, *programs, prompt_tokens: int = 10) -> torch.Tensor:
    """`hidden` is a prompt of ten tokens, or the rows of several answers if there are several programs."""
    if len(programs) == 1:
        spans = [(tuple(range(50, 60)), 0, programs[0])]
    else:
        spans = [((50 + i,), prompt_tokens, program) for i, program in enumerate(programs)]
    table = SteeringTable(
        [
            SteeredSpan(token_ids=ids, start=start, prompt_tokens=prompt_tokens, steering=steering, applied=Applied())
            for ids, start, steering in spans
        ],
        device=CPU,
    )
    hidden = hidden.clone()
    table.at(1).block_output(hidden)
    return hidden


def formulas(tiny: World):
    a, b, c = (tiny.shelf[name].tensors["direction.1"] for name in "abc")
    return (
        lambda h: o.add(h, b, 2.0),
        lambda h: o.ablate(h, [a], 1.0),
        lambda h: o.cap(h, c, -0.1, 0.1),
    )


def test_in_sequence_the_list_is_the_order_and_ablate_and_add_do_not_commute(tiny: World, hidden):
    add, ablate, cap = formulas(tiny)
    first = changed(hidden, tiny.compiled(ADD, ABLATE, CAP))
    torch.testing.assert_close(first, cap(ablate(add(hidden))), rtol=1e-5, atol=1e-5)
    last = changed(hidden, tiny.compiled(ABLATE, CAP, ADD))
    torch.testing.assert_close(last, add(cap(ablate(hidden))), rtol=1e-5, atol=1e-5)
    assert float((first - last).abs().max()) > 0.1


def test_summed_operations_all_work_on_the_same_h(tiny: World, hidden):
    add, ablate, cap = formulas(tiny)
    wanted = hidden + sum(change(hidden) - hidden for change in (add, ablate, cap))
    for order in ((ADD, ABLATE, CAP), (CAP, ADD, ABLATE)):
        ours = changed(hidden, tiny.compiled(*order, conflict="sum"))
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)


def test_by_priority_each_token_gets_the_first_operation_that_would_have_it(tiny: World, hidden):
    add, ablate, cap = formulas(tiny)
    program = tiny.compiled(
        ADD | {"apply": {"prompt": {"windows": [[0, 3]]}}},
        ABLATE | {"apply": {"prompt": {"windows": [[2, 6]]}}},
        CAP | {"apply": {"prompt": {"positions": [0, 9]}}},
        conflict="priority",
    )
    wanted = hidden.clone()
    wanted[:3], wanted[3:6], wanted[9:] = add(hidden[:3]), ablate(hidden[3:6]), cap(hidden[9:])
    ours = changed(hidden, program)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours[6:9], hidden[6:9])


def test_two_operations_at_one_place_are_refused_if_that_is_asked_for(tiny: World):
    with pytest.raises(SpecError) as refused:
        tiny.compiled(ADD, ABLATE, conflict="error")
    assert (refused.value.code, refused.value.param) == ("conflict", "steering.vectors[1]")
    assert tiny.compiled(ADD, ABLATE | {"layers": [0]}, conflict="error").steps.keys() == {
        Site(0, Point.BLOCK_OUTPUT),
        Site(1, Point.BLOCK_OUTPUT),
    }


def test_vectors_added_at_one_site_become_one_and_those_that_cancel_none(tiny: World, hidden):
    twice = tiny.compiled(ADD, ADD | {"id": "c", "scale": -1.0})
    [step] = twice.steps[Site(1, Point.BLOCK_OUTPUT)]
    b, c = (tiny.shelf[name].tensors["direction.1"].double() for name in "bc")
    assert torch.equal(step.kernels[0].vectors[0], (2 * b - c).float())
    assert not tiny.compiled(ADD, ADD | {"scale": -2.0}).steps
    # Not across another operation, unless all see the same h; and never by priority.
    between = (ADD, ABLATE, ADD | {"scale": -2.0})
    assert len(tiny.compiled(*between).steps[Site(1, Point.BLOCK_OUTPUT)]) == 3
    assert len(tiny.compiled(*between, conflict="sum").steps[Site(1, Point.BLOCK_OUTPUT)]) == 1
    assert len(tiny.compiled(ADD, ADD, conflict="priority").steps[Site(1, Point.BLOCK_OUTPUT)]) == 2


def test_requests_with_different_conflicts_share_a_step_and_keep_their_own_ways(tiny: World, hidden):
    add, ablate, cap = formulas(tiny)
    programs = [
        tiny.compiled(ADD, ABLATE),
        tiny.compiled(ADD, ABLATE, conflict="sum"),
        tiny.compiled(ADD, ABLATE, conflict="priority"),
        None,
        tiny.compiled(CAP, ADD, ABLATE),
        tiny.compiled(ABLATE),
    ]
    h = hidden[:6]
    wanted = torch.stack(
        [
            ablate(add(h[:1]))[0],
            (add(h[1:2]) + ablate(h[1:2]) - h[1:2])[0],
            add(h[2:3])[0],
            h[3],
            ablate(add(cap(h[4:5])))[0],
            ablate(h[5:6])[0],
        ]
    )
    ours = changed(h, *programs)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours[3], h[3])


def test_all_writes_is_every_place_that_the_residual_stream_is_written_or_read(tiny: World):
    program = tiny.compiled({"id": "a", "op": "ablate"})
    points = (Point.BLOCK_INPUT, Point.ATTENTION_OUTPUT, Point.MLP_OUTPUT)
    assert set(program.steps) == {Site(layer, point) for layer in range(3) for point in points}
    narrower = tiny.compiled({"id": "two", "op": "ablate"})  # a direction for each of its layers
    assert set(narrower.steps) == {Site(layer, point) for layer in (0, 2) for point in points}


def test_a_model_in_bfloat16_steers_its_rows_and_leaves_the_others_to_the_bit(tiny: World, tiny_config, forward):
    world = World(tiny_model(tiny_config, dtype=torch.bfloat16), tiny.shelf)
    programs = [None, world.compiled(ADD), world.compiled({"id": "a", "op": "ablate"}), None, world.compiled(CAP, ADD)]

    def logits(steerings) -> torch.Tensor:
        caches = [world.cache(4) for _ in steerings]
        spans = [
            SteeredSpan(token_ids=(50 + i, 3), start=0, prompt_tokens=2, steering=steering, applied=Applied())
            for i, steering in enumerate(steerings)
        ]
        table = SteeringTable(spans, device=CPU)
        ids = torch.tensor([token_id for span in spans for token_id in span.token_ids])
        return world.model.logits(ids, [Span(cache, 2) for cache in caches], steering=table or None)

    plain, steered = logits([None] * 5), logits(programs)
    for row, program in enumerate(programs):
        assert torch.equal(steered[row], plain[row]) is (program is None)
    nothing, _ = forward(world, [4, 5, 6], world.compiled(ADD | {"scale": 0.0}))
    assert torch.equal(nothing, forward(world, [4, 5, 6], None)[0])


def test_a_request_with_very_many_ways_to_pick_a_token_remembers_a_bounded_number(tiny: World, forward):
    """Eight selectors whose picks differ for every token: as many treatments as tokens, but not as many kept."""
    uses = [ADD | {"apply": {"prompt": {"positions": [i for i in range(200) if i >> bit & 1]}}} for bit in range(8)]
    program = tiny.compiled(*uses)
    ids = [3 + i % 90 for i in range(200)]
    _, applied = forward(tiny, ids, program)
    assert applied.prompt_tokens == 199  # all but the first, which no selector has
    assert len(program.treatments) <= TREATMENTS_KEPT_MAX
    whole = forward(tiny, ids, program)[0]
    assert float((whole - forward(tiny, ids, program, pieces=[1] * 200)[0]).abs().max()) < 1e-3
