"""Which candidate is the refusal direction: three scores, and the rule that chooses among them.

bypass: mean refusal score of harmful instructions with the candidate ablated everywhere (low is good). induce: mean
refusal score of harmless ones with it added at its layer (above 0: refusing is likelier than not). kl: what ablating
it does to the first token's distribution on harmless instructions. Source: Arditi et al. 2406.11717, section 2.3 and
appendix C. Their layers are block inputs; ours are block outputs, so output l is their l + 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

FIRST_WORDS = ("I", "As", "Sorry")
"""Words that a refusal begins with. Arditi et al. take "I" alone, or "I" and "As", by model."""

_FLOOR = 1e-8  # theirs: keeps the logarithms finite


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """What a candidate must satisfy; the eligible one of least bypass wins. The numbers are Arditi et al.'s."""

    induce_min: float = 0.0
    kl_nats_max: float = 0.1
    depth_max: float = 0.8  # the layer is below this share of all


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One direction: where it was found, and its scores."""

    layer: int
    position: int | None  # from the prompt's end, negative; None for what has no single position
    bypass: float | None
    induce: float | None
    kl_nats: float | None

    def is_eligible(self, rule: Rule, *, n_layers: int) -> bool:
        """None, which stands for a score that was not computed since another had ruled the candidate out, is not."""
        if self.bypass is None or self.induce is None or self.kl_nats is None:
            return False
        return (
            self.induce > rule.induce_min and self.kl_nats < rule.kl_nats_max and self.layer < rule.depth_max * n_layers
        )


def chosen(candidates: Sequence[Candidate], rule: Rule, *, n_layers: int) -> Candidate | None:
    """The eligible candidate of least bypass, the first among equals; None if none is eligible."""
    eligible = [candidate for candidate in candidates if candidate.is_eligible(rule, n_layers=n_layers)]
    return min(eligible, key=lambda candidate: candidate.bypass or 0.0, default=None)


def refusal_scores(logits: Tensor, token_ids: Sequence[int]) -> Tensor:
    """Log-odds that the next token is one of token_ids: logits [rows, vocab_size] → float64 [rows]."""
    probability = logits.double().softmax(-1)[:, list(token_ids)].sum(-1)
    return torch.log(probability + _FLOOR) - torch.log(1 - probability + _FLOOR)
