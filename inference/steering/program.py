"""A request's steering ready for the forward pass: which kernel at which site, for which tokens, behind which gate."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from collections.abc import Mapping

from inference.steering.gates import Gate
from inference.steering.kernels import Kernel
from inference.steering.points import Site
from inference.steering.selectors import Selection


class Conflict(enum.Enum):
    """What several operations at one site do to one token."""

    SEQUENTIAL = "sequential"  # in the order of the list, each on what the one before left
    SUM = "sum"  # each on the same h; their changes are added
    PRIORITY = "priority"  # the first in the list whose selection and gate let it
    ERROR = "error"  # no such thing: two operations at one site are refused


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One operation at one site. `selection` and `gate` are indices into those of the whole; no gate: always."""

    kernels: tuple[
        Kernel, ...
    ]  # one after the other; several only where the order is no matter (orthonormal directions)
    selection: int
    gate: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Use:
    """What the keys and values of a prompt may depend on. `identity` names content and numbers of the operation."""

    identity: str
    selection: int
    gate: int | None


Picked = tuple[bool, ...]
"""Which of a request's selections pick a token."""

Treatment = tuple[tuple[Site, tuple[tuple[int, Kernel], ...]], ...]
"""What is done to a token: per site kernels, each with its stage, in order."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CompiledSteering:
    """Operations that would do nothing are not in `steps`. Gates are those of all uses that have one, in their order."""

    fingerprint: str
    model_digest: str
    conflict: Conflict
    gates: tuple[Gate, ...]
    selections: tuple[Selection, ...]
    uses: tuple[Use, ...]
    steps: Mapping[Site, tuple[Step, ...]]
    # What follows from all this, kept by `layout.py` in the thread of the engine: (gates, picks) → treatment.
    treatments: dict[tuple[tuple[bool, ...], Picked], Treatment] = dataclasses.field(default_factory=dict)

    @property
    def is_constant(self) -> bool:
        """Whether every token of the answer is treated like the one before."""
        return all(selection.is_constant for selection in self.selections)

    def prefix_key(self, *, prompt_tokens: int, gates: tuple[bool, ...]) -> str:
        """Names what the keys and values of this prompt depend on besides its tokens: "" if it runs unsteered.

        Prompts with a common beginning and the same key have the same keys and values there. What steering did to
        them is an `Applied` that has to be kept with them, and copied.
        """
        assert len(gates) == len(self.gates)
        acting = [
            use
            for use in self.uses
            if not self.selections[use.selection].skips_prompt and (use.gate is None or gates[use.gate])
        ]
        if not acting:
            return ""
        from_end = any(self.selections[use.selection].counts_from_end for use in acting)
        named = [
            self.model_digest,
            self.conflict.value,
            [use.identity for use in acting],
            prompt_tokens if from_end else None,
            # Which of several additions are summed beforehand, and so how they round, is decided by the whole spec.
            self.fingerprint if len(acting) > 1 else None,
        ]
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()
