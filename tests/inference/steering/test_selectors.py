from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.steering.points import Point, Site
from inference.steering.selectors import ALL, NONE, Picks, Selection
from tests.inference.steering.world import World

IDS = list(range(40, 60))


def mask(selection: Selection, ids, *, start=0, prompt_tokens=12) -> list[int]:
    return np.flatnonzero(selection.mask(ids, start=start, prompt_tokens=prompt_tokens)).tolist()


def test_the_three_ways_to_pick_are_united_and_what_is_excluded_wins():
    picks = Picks(tokens=frozenset({43}), positions=(0, -1), windows=((5, 7), (-3, -1)))
    assert mask(Selection(prompt=picks, generation=NONE), IDS) == [0, 3, 5, 6, 9, 10, 11]
    without = Selection(prompt=picks, generation=NONE, prompt_excluded=Picks(positions=(-1, 5), tokens=frozenset({43})))
    assert mask(without, IDS) == [0, 6, 9, 10]
    assert mask(Selection(prompt_excluded=ALL), IDS) == list(range(12, 20))


def test_positions_of_the_answer_count_from_its_first_token():
    picks = Picks(positions=(0, 3), windows=((5, 7),))
    assert mask(Selection(prompt=NONE, generation=picks), IDS) == [12, 15, 17, 18]
    assert mask(Selection(prompt=NONE, generation=picks), [50], start=15) == [0]
    assert mask(Selection(prompt=NONE, generation=picks), [50], start=16) == []


picks = st.builds(
    Picks,
    everything=st.booleans(),
    tokens=st.frozensets(st.integers(40, 45), max_size=2),
    positions=st.lists(st.integers(-25, 25), max_size=3).map(tuple),
    windows=st.lists(st.tuples(st.integers(-25, 25), st.integers(-25, 25)), max_size=2).map(tuple),
)
selections = st.builds(
    Selection,
    prompt=picks,
    generation=picks,
    prompt_excluded=picks,
    generation_excluded=picks,
    prompt_window=st.none() | st.just((2, 6)),
)


@given(selections, st.lists(st.integers(40, 50), min_size=1, max_size=20), st.integers(0, 20), st.data())
@settings(max_examples=500, deadline=None)
def test_a_sequence_cut_in_any_pieces_is_picked_alike(selection: Selection, ids, prompt_tokens: int, data):
    cuts = sorted(data.draw(st.sets(st.integers(1, len(ids)), max_size=6)) | {len(ids)})
    whole = selection.mask(ids, start=0, prompt_tokens=prompt_tokens)
    pieces = [
        selection.mask(ids[start:end], start=start, prompt_tokens=prompt_tokens)
        for start, end in itertools.pairwise([0, *cuts])
    ]
    assert np.array_equal(np.concatenate(pieces), whole)
    if selection.skips_prompt:
        assert not whole[:prompt_tokens].any()
    if selection.skips_generation:
        assert not whole[prompt_tokens:].any()
    if selection.is_constant:
        assert len(set(whole[prompt_tokens:].tolist())) <= 1


SELECTORS = [
    ({"prompt": "all"}, 12, 0),
    ({"generation": "all"}, 0, 8),
    ({"prompt": {"positions": [0, -1]}}, 2, 0),
    ({"prompt": {"windows": [[2, 5], [-2, -1]]}, "generation": {"windows": [[1, 4]]}}, 4, 3),
    ({"prompt": {"tokens": [41, 44]}, "generation": {"tokens": [55, 99]}}, 2, 1),
    ({"exclude": {"prompt": {"positions": [0]}}}, 11, 8),
    ({"exclude": {"generation": {"windows": [[0, 100]]}, "prompt": {"tokens": [40, 41]}}}, 10, 0),
    (None, 12, 8),
]


@pytest.mark.parametrize(("apply", "prompt", "generated"), SELECTORS)
@pytest.mark.parametrize("pieces", [[20], [1] * 20, [5, 7, 8], [3, 17], [12, *[1] * 8]])
def test_exactly_the_tokens_selected_are_touched_and_counted_however_the_prompt_is_cut(
    tiny: World, forward, apply, prompt: int, generated: int, pieces
):
    use = {"id": "a", "op": "add", "layers": [0, 2], **({} if apply is None else {"apply": apply})}
    _, applied = forward(tiny, IDS, tiny.compiled(use), prompt_tokens=12, pieces=pieces)
    assert (applied.prompt_tokens, applied.generated_tokens) == (prompt, generated)
    for layer in (0, 2):
        tally = applied.sites[Site(layer, Point.BLOCK_OUTPUT)]
        assert (tally.prompt_tokens, tally.generated_tokens) == (prompt, generated)
    assert applied.layers() == [0, 2]


def test_tokens_are_counted_once_wherever_they_are_touched(tiny: World, forward):
    uses = [
        {"id": "a", "op": "add", "layers": [0], "apply": {"prompt": {"windows": [[0, 4]]}}},
        {
            "id": "b",
            "op": "add",
            "layers": [2],
            "apply": {"prompt": {"windows": [[2, 9]]}, "generation": {"positions": [1]}},
        },
    ]
    _, applied = forward(tiny, IDS, tiny.compiled(*uses), prompt_tokens=12, pieces=[5, 15])
    assert (applied.prompt_tokens, applied.generated_tokens) == (9, 1)


def test_a_positional_vector_reaches_its_own_positions_of_the_prompt_and_no_others(tiny: World):
    """h_{a+t} + c·(h⁺[t] − h⁻[t]), on the prompt only."""
    from inference.steering.applied import Applied
    from inference.steering.table import SteeredSpan, SteeringTable

    rows = tiny.shelf["positional"].tensors["direction.1"]  # [4, d_model]
    for first in (0, 3, 10):
        program = tiny.compiled({"id": "positional", "op": "add", "scale": 2.0, "params": {"position": first}})
        for pieces in ([20], [1] * 20, [4, 9, 7]):
            hidden = torch.zeros(20, tiny.config.d_model)
            start = 0
            for size in pieces:
                span = SteeredSpan(
                    token_ids=tuple(IDS[start : start + size]),
                    start=start,
                    prompt_tokens=12,
                    steering=program,
                    applied=Applied(),
                )
                hooks = SteeringTable([span], device=torch.device("cpu")).at(1)
                if hooks is not None:
                    part = hidden[start : start + size].clone()
                    hooks.block_output(part)
                    hidden[start : start + size] = part
                start += size
            wanted = torch.zeros(20, tiny.config.d_model)
            inside = min(4, 12 - first)  # the rest of the vector would lie behind the prompt
            wanted[first : first + inside] = 2.0 * rows[:inside]
            assert torch.equal(hidden, wanted)
