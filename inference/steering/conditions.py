"""A spec's `apply` and `when`, checked: which tokens, and on what condition."""

from __future__ import annotations

from inference.limits import CONTEXT_TOKENS_MAX, SELECTOR_NUMBERS_MAX
from inference.steering.gates import Comparison, Gate, Reading
from inference.steering.objects import Objects, direction_at
from inference.steering.selectors import ALL, NONE, Picks, Selection
from inference.steering.spec import Apply, Selected, SpecError, When
from inference.steering.vector import Kind


def selection_of(apply: Apply | None, *, vocab_size: int, param: str) -> Selection:
    """What is named alone leaves the other stretch out; if neither is named, both are meant. Raises SpecError."""
    if apply is None:
        return Selection()
    exclude = apply.exclude
    default = ALL if apply.prompt is None and apply.generation is None else NONE
    excluded = (None, None) if exclude is None else (exclude.prompt, exclude.generation)

    def picks(selected: Selected | None, default: Picks, path: str) -> Picks:
        is_prompt = path.endswith("prompt")
        return _picks(selected, default, is_prompt=is_prompt, vocab_size=vocab_size, param=f"{param}.{path}")

    return Selection(
        prompt=picks(apply.prompt, default, "prompt"),
        generation=picks(apply.generation, default, "generation"),
        prompt_excluded=picks(excluded[0], NONE, "exclude.prompt"),
        generation_excluded=picks(excluded[1], NONE, "exclude.generation"),
    )


def gate_of(when: When, objects: Objects, *, param: str) -> Gate:
    """Raises SpecError."""
    stored = objects.find(when.id, {Kind.DIRECTION}, param=f"{param}.id")
    if not 0 <= when.layer < objects.config.n_layers:
        message = f"layer {when.layer} does not exist; block outputs are 0 to {objects.config.n_layers - 1}"
        raise SpecError(message, param=f"{param}.layer", code="bad_layers")
    condition = direction_at(stored, when.layer, param=f"{param}.layer").float()
    if when.above is not None and when.below is not None:
        raise SpecError("a gate has above or below, not both", param=f"{param}.below", code="bad_gate")
    comparison = Comparison.BELOW if when.above is None else Comparison.ABOVE
    threshold = when.below if when.above is None else when.above
    if threshold is None:
        raise SpecError("a gate needs above or below", param=param, code="bad_gate")
    if not -1 <= threshold <= 1:  # NaN too
        message = "the score is a cosine, so a threshold is between -1 and 1"
        raise SpecError(message, param=f"{param}.{comparison.value}", code="bad_gate")
    reading = Reading(when.token)
    return Gate(condition=condition, layer=when.layer, comparison=comparison, threshold=threshold, reading=reading)


def _picks(selected: Selected | None, default: Picks, *, is_prompt: bool, vocab_size: int, param: str) -> Picks:
    if selected is None:
        return default
    if isinstance(selected, str):
        return ALL if selected == "all" else NONE
    tokens, positions, windows = selected.tokens or [], selected.positions or [], selected.windows or []
    if not (tokens or positions or windows):
        raise SpecError('a selector picks something, or is "none"', param=param, code="bad_selector")
    if len(tokens) + len(positions) + len(windows) > SELECTOR_NUMBERS_MAX:
        message = f"more than {SELECTOR_NUMBERS_MAX} token ids, positions and windows"
        raise SpecError(message, param=param, code="bad_selector")
    for i, token_id in enumerate(tokens):
        if not 0 <= token_id < vocab_size:
            message = f"token {token_id} does not exist; ids are 0 to {vocab_size - 1}"
            raise SpecError(message, param=f"{param}.tokens[{i}]", code="bad_selector")
    for i, position in enumerate(positions):
        _check_place(position, is_prompt=is_prompt, param=f"{param}.positions[{i}]")
    for i, (start, end) in enumerate(windows):
        place = f"{param}.windows[{i}]"
        for edge in (start, end):
            _check_place(edge, is_prompt=is_prompt, param=place)
        # Half-open, and 0 is the first token, not the end: [-3, 0] is nothing in a prompt of any length.
        if end == 0 or (start >= end and (start < 0) is (end < 0)):
            message = f"[{start}, {end}] is empty: a window ends before its second number"
            raise SpecError(message, param=place, code="bad_selector")
    return Picks(tokens=frozenset(tokens), positions=tuple(positions), windows=tuple(windows))


def _check_place(place: int, *, is_prompt: bool, param: str) -> None:
    if place < 0 and not is_prompt:
        message = "an answer has no end to count from: its positions are not negative"
        raise SpecError(message, param=param, code="bad_selector")
    if abs(place) > CONTEXT_TOKENS_MAX:
        raise SpecError(f"no context has {CONTEXT_TOKENS_MAX} tokens", param=param, code="bad_selector")
