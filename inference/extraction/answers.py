"""The plain model's own answers to some prompts: the text on which a steered model is held against it.

Both models read the same tokens, so every position has two distributions to compare, and an operation that acts on the
answer only is seen too. Arditi et al. (2406.11717) call the cross-entropy there on-distribution.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from inference.extraction.divergence import kl_nats, token_nats
from inference.lab import Lab, Pieces, within
from inference.passages import Passage, TokenIds
from inference.steering.applied import Applied
from inference.steering.program import CompiledSteering


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PlainAnswers:
    """passages: each prompt with its greedy answer. states: what predicts the answer tokens [answer tokens, d_model]."""

    passages: tuple[Passage, ...]
    states: Tensor

    @property
    def token_ids(self) -> Tensor:
        """Of all answers, one behind the other [answer tokens]."""
        return torch.tensor([token_id for passage in self.passages for token_id in passage.answer_ids])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Compared:
    """Per answer token, float64 [answer tokens]. `applied`: what steering did meanwhile."""

    kl_nats: Tensor  # KL(plain ‖ steered)
    token_nats: Tensor  # −log p of the plain model's token under the steered model
    applied: Applied


def answer_plainly(
    prompts: Sequence[TokenIds], *, tokens_max: int, end_ids: Collection[int], lab: Lab
) -> Pieces[PlainAnswers]:
    """Greedy answers, and one more pass over them whole: what they are compared with must have run the same way."""
    answers = yield from within(lab.greedy_answers(prompts, tokens_max=tokens_max, end_ids=end_ids), 0.0, 0.7)
    passages = tuple(
        Passage(token_ids=(*prompt, *answer), prompt_tokens=len(prompt))
        for prompt, answer in zip(prompts, answers, strict=True)
    )
    states = yield from within(lab.answer_states(passages), 0.7, 1.0)
    return PlainAnswers(passages=passages, states=states)


def compare(plain: PlainAnswers, steering: CompiledSteering, *, lab: Lab) -> Pieces[Compared]:
    """The same tokens through the steered model."""
    applied = Applied()
    states = yield from within(lab.answer_states(plain.passages, steering=steering, applied=applied), 0.0, 0.6)
    token_ids = plain.token_ids.to(states.device)
    divergences: list[Tensor] = []
    surprises: list[Tensor] = []

    def take(rows: slice, logits: list[Tensor]) -> None:
        divergences.append(kl_nats(logits[0], logits[1]).cpu())
        surprises.append(token_nats(logits[1], token_ids[rows]).cpu())

    yield from within(lab.distributions([plain.states, states], take), 0.6, 1.0)
    return Compared(kl_nats=torch.cat(divergences), token_nats=torch.cat(surprises), applied=applied)
