"""The selection job: candidates at layers and positions, found in one part of the texts, judged on the other."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from inference.extraction.divergence import kl_nats
from inference.extraction.extraction import result_of, stored
from inference.extraction.interventions import Interventions
from inference.extraction.methods import FoundDirection, Method, Params, find_direction
from inference.extraction.refusal import Candidate, Rule, chosen, refusal_scores
from inference.extraction.samples import Activations, Samples, activations
from inference.extraction.statistics import DegenerateError, d_prime
from inference.jobs.chore import JobError, Work
from inference.lab import Lab, Pieces, within
from inference.passages import Positions, Which
from inference.steering.store import VectorStore

_FINDING = 0.2  # share of the time that finding candidates takes where judging them runs the model


class By(enum.StrEnum):
    """How candidates are judged."""

    D_PRIME = "d_prime"
    REFUSAL = "refusal"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """What to choose from. `places`: EACH_OF_TAIL stands for that many positions, each a candidate of its own."""

    vector_id: str
    method: Method
    params: Params
    layers: tuple[int, ...]  # ascending
    places: tuple[Positions, ...]
    train: Samples
    test: Samples
    by: By
    rule: Rule
    refusal_ids: tuple[int, ...]
    side_names: tuple[str, str]
    provenance: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Found:
    """A candidate, and how far it separates texts that it was not made from."""

    layer: int
    position: int | None
    token: str
    direction: FoundDirection
    d_prime: float | None


def select(selection: Selection, *, lab: Lab, store: VectorStore, interventions: Interventions) -> Work:
    """The job in pieces; stores the winner, made from the training part only."""
    _, result = yield from _select(selection, lab, store, interventions)
    return result


def extract_selected(selection: Selection, *, lab: Lab, store: VectorStore, interventions: Interventions) -> Work:
    """The same with the result of an extraction: figures of the winner, and where it was found."""
    winner, _ = yield from _select(selection, lab, store, interventions)
    return {
        "layers": [result_of(winner.layer, winner.direction.figures)],
        "selected_layer": winner.layer,
        "position": winner.position,
    }


def _select(
    selection: Selection, lab: Lab, store: VectorStore, interventions: Interventions
) -> Pieces[tuple[_Found, dict[str, Any]]]:
    share = 1.0 if selection.by is By.D_PRIME else _FINDING
    found = yield from within(_find(selection, lab), 0.0, share)
    if selection.by is By.D_PRIME:
        winner, result = _widest(found)
    else:
        winner, result = yield from within(_judge(found, selection, lab, interventions), share, 1.0)
    provenance = {
        **selection.provenance,
        "token": winner.token,
        "position": winner.position,
        "selected_by": selection.by.value,
        "score": result["score"],
        "held_out_d_prime": winner.d_prime,
    }
    store.add(stored(selection.vector_id, {winner.layer: winner.direction}, selection.side_names, provenance))
    return winner, result


def _find(selection: Selection, lab: Lab) -> Pieces[list[_Found]]:
    found: list[_Found] = []
    places = selection.places
    for number, at in enumerate(places):
        start, middle, stop = (
            (2 * number) / (2 * len(places)),
            (2 * number + 1) / (2 * len(places)),
            (number + 1) / len(places),
        )
        train = yield from within(activations(selection.train, layers=selection.layers, at=at, lab=lab), start, middle)
        test = yield from within(activations(selection.test, layers=selection.layers, at=at, lab=lab), middle, stop)
        for layer in selection.layers:
            found += yield from within(_found_at(layer, at, train, test, selection), stop, stop)
            yield stop
    if not found:
        raise JobError("no candidate has a direction: the texts have the same activations", code="degenerate")
    return found


def _found_at(
    layer: int, at: Positions, train: Activations, test: Activations, selection: Selection
) -> Pieces[list[_Found]]:
    rows = range(at.tokens) if at.which is Which.EACH_OF_TAIL else range(1)
    found: list[_Found] = []
    for row in rows:
        try:
            direction = yield from find_direction(selection.method, train.sides(layer, row=row), selection.params)
        except DegenerateError:
            continue  # a position that all texts share has no direction at the first layers
        held_out, vector = test.sides(layer, row=row), direction.vector
        one = _Found(
            layer=layer,
            position=_position(at, row),
            token=at.which.value if at.which is not Which.EACH_OF_TAIL else Which.INDEX.value,
            direction=direction,
            d_prime=d_prime(held_out.positive @ vector, held_out.negative @ vector),
        )
        found.append(one)
    return found


def _position(at: Positions, row: int) -> int | None:
    if at.which is Which.EACH_OF_TAIL:
        return row - at.tokens
    return {Which.LAST: -1, Which.INDEX: at.index}.get(at.which)


def _widest(found: Sequence[_Found]) -> tuple[_Found, dict[str, Any]]:
    winner = max(found, key=lambda one: -1.0 if one.d_prime is None else one.d_prime)
    if winner.d_prime is None:
        raise JobError("no candidate has a spread on the held-out texts", code="nothing_eligible")
    rows = [
        {
            "layer": one.layer,
            "position": one.position,
            "score": one.d_prime or 0.0,
            "bypass": None,
            "induce": None,
            "kl_nats": None,
            "is_eligible": one.d_prime is not None,
        }
        for one in found
    ]
    return winner, _result(winner, winner.d_prime, rows)


def _judge(
    found: Sequence[_Found], selection: Selection, lab: Lab, interventions: Interventions
) -> Pieces[tuple[_Found, dict[str, Any]]]:
    """By Arditi et al.'s rule; the score is the negated bypass score, so that more is better."""
    harmless = selection.test.negative
    share = 1 / (len(found) + 1)
    plain = yield from within(lab.last_logits(harmless), 0.0, share)
    rows: list[dict[str, Any]] = []
    candidates: list[tuple[_Found, Candidate]] = []
    for number, one in enumerate(found):
        start, stop = (number + 1) * share, (number + 2) * share
        scores = yield from within(_scores(one, plain, selection, lab, interventions), start, stop)
        candidate = Candidate(layer=one.layer, position=one.position, **scores)
        eligible = candidate.is_eligible(selection.rule, n_layers=lab.n_layers)
        candidates.append((one, candidate))
        rows.append(
            {
                "layer": one.layer,
                "position": one.position,
                "score": 0.0 if candidate.bypass is None else -candidate.bypass,
                "bypass": candidate.bypass,
                "induce": candidate.induce,
                "kl_nats": candidate.kl_nats,
                "is_eligible": eligible,
            }
        )
    best = chosen([candidate for _, candidate in candidates], selection.rule, n_layers=lab.n_layers)
    if best is None or best.bypass is None:
        raise JobError(_nothing(candidates), code="nothing_eligible")
    winner = next(one for one, candidate in candidates if candidate is best)
    return winner, _result(winner, -best.bypass, rows)


def _scores(
    one: _Found, plain: Tensor, selection: Selection, lab: Lab, interventions: Interventions
) -> Pieces[dict[str, float | None]]:
    """In the order of their cost to the candidate; what comes behind a score that rules it out is not computed."""
    rule, ids = selection.rule, selection.refusal_ids
    scores: dict[str, float | None] = {"kl_nats": None, "induce": None, "bypass": None}
    if one.layer >= rule.depth_max * lab.n_layers:
        return scores
    ablated = interventions.ablate(one.direction.vector, one.layer)

    def diverged(rows: slice, logits: Tensor) -> Tensor:
        return kl_nats(plain[rows], logits)

    def refused(_: slice, logits: Tensor) -> Tensor:
        return refusal_scores(logits, ids)

    harmful, harmless = selection.test.positive, selection.test.negative
    found = yield from within(lab.last_logits(harmless, steering=ablated, reduce=diverged), 0.0, 0.33)
    divergence = float(found.mean())
    scores["kl_nats"] = divergence if math.isfinite(divergence) else None
    if not divergence < rule.kl_nats_max:
        return scores
    added = interventions.add(one.direction.vector, one.layer)
    found = yield from within(lab.last_logits(harmless, steering=added, reduce=refused), 0.33, 0.66)
    induced = float(found.mean())
    scores["induce"] = induced if math.isfinite(induced) else None
    if not induced > rule.induce_min:
        return scores
    found = yield from within(lab.last_logits(harmful, steering=ablated, reduce=refused), 0.66, 1.0)
    bypass = float(found.mean())
    scores["bypass"] = bypass if math.isfinite(bypass) else None
    return scores


def _nothing(candidates: Sequence[tuple[_Found, Candidate]]) -> str:
    kls = [c.kl_nats for _, c in candidates if c.kl_nats is not None]
    induced = [c.induce for _, c in candidates if c.induce is not None]
    lowest = f"; the lowest divergence was {min(kls):.3g} nats" if kls else ""
    highest = f", the highest induced refusal score {max(induced):.3g}" if induced else ""
    return f"none of {len(candidates)} candidates satisfies the rule{lowest}{highest}"


def _result(winner: _Found, score: float, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"layer": winner.layer, "position": winner.position, "score": score, "candidates": rows}
