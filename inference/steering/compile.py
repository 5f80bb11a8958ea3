"""From a request's spec to its program. Whatever can be wrong with a spec is found here, before anything runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from inference.config import ModelConfig
from inference.limits import SITE_KERNELS_MAX, SPEC_VECTORS_MAX
from inference.steering.asking import answer
from inference.steering.conditions import gate_of, selection_of
from inference.steering.gates import Gate
from inference.steering.kernels import Add, Kernel
from inference.steering.objects import Objects, Vectors, digest
from inference.steering.points import Site
from inference.steering.program import CompiledSteering, Conflict, Step, Use
from inference.steering.selectors import Selection
from inference.steering.spec import SpecError, SteeringSpec, VectorUse


def compile_spec(spec: SteeringSpec, *, store: Vectors, config: ModelConfig, model_digest: str) -> CompiledSteering:
    """Resolve a spec against a model and a store. Raises SpecError."""
    objects = Objects(vectors=store, config=config, model_digest=model_digest)
    conflict = _conflict(spec)
    if len(spec.vectors) > SPEC_VECTORS_MAX:
        message = f"{len(spec.vectors)} vectors in one request, at most {SPEC_VECTORS_MAX} are allowed"
        raise SpecError(message, param="steering.vectors", code="too_many_vectors")
    uses = [_resolved(use, objects, param=_param(i)) for i, use in enumerate(spec.vectors)]
    if conflict is Conflict.ERROR:
        _refuse_conflicts(uses)
    return _program(uses, conflict, model_digest)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Resolved:
    """One use. `acts`: it changes something somewhere."""

    identity: list[Any]
    kernels: dict[Site, tuple[Kernel, ...]]
    selection: Selection
    gate: Gate | None
    gate_identity: list[Any] | None

    @property
    def acts(self) -> bool:
        picks_nothing = self.selection.skips_prompt and self.selection.skips_generation
        return not picks_nothing and any(self.kernels.values())


def _param(index: int) -> str:
    return f"steering.vectors[{index}]"


def _conflict(spec: SteeringSpec) -> Conflict:
    try:
        return Conflict(spec.conflict)
    except ValueError as error:
        known = ", ".join(conflict.value for conflict in Conflict)
        message = f"unknown conflict {spec.conflict!r}; there are {known}"
        raise SpecError(message, param="steering.conflict", code="unknown_conflict") from error


def _resolved(use: VectorUse, objects: Objects, *, param: str) -> _Resolved:
    found = answer(use, objects, param=param)
    selection = selection_of(use.apply, vocab_size=objects.config.vocab_size, param=f"{param}.apply")
    gate = gate_identity = None
    if use.when is not None:
        gate = gate_of(use.when, objects, param=f"{param}.when")
        condition = objects.vectors.get(use.when.id)
        assert condition is not None
        gate_identity = [digest(condition), gate.layer, gate.comparison.value, gate.threshold, gate.reading.value]
    return _Resolved(
        identity=found.identity,
        kernels=found.kernels,
        selection=dataclasses.replace(selection, prompt_window=found.prompt_window),
        gate=gate,
        gate_identity=gate_identity,
    )


def _refuse_conflicts(uses: list[_Resolved]) -> None:
    owners: dict[Site, int] = {}
    for index, use in enumerate(uses):
        for site in use.kernels:
            other = owners.setdefault(site, index)
            if other != index:
                place = f"{site.point.value} of layer {site.layer}"
                message = f"vectors[{other}] and vectors[{index}] both work at {place}, and conflict is error"
                raise SpecError(message, param=_param(index), code="conflict")


def _program(uses: list[_Resolved], conflict: Conflict, model_digest: str) -> CompiledSteering:
    gates = [use.gate for use in uses if use.gate is not None]
    selections: list[Selection] = []
    named: list[Use] = []
    steps: dict[Site, list[Step]] = {}
    for use in uses:
        if not use.acts:
            continue
        if use.selection not in selections:
            selections.append(use.selection)
        selection = selections.index(use.selection)
        gate = None if use.gate is None else next(i for i, other in enumerate(gates) if other is use.gate)
        named.append(Use(identity=_text([use.identity, use.selection.prompt_identity]), selection=selection, gate=gate))
        for site, kernels in use.kernels.items():
            if kernels:
                step = Step(kernels=kernels, selection=selection, gate=gate)
                _append(steps.setdefault(site, []), step, conflict)
    content = [[use.identity, use.selection.identity, use.gate_identity] for use in uses]
    return CompiledSteering(
        fingerprint=hashlib.sha256(_text([model_digest, conflict.value, content]).encode()).hexdigest(),
        model_digest=model_digest,
        conflict=conflict,
        gates=tuple(gates),
        selections=tuple(selections),
        uses=tuple(named),
        steps={site: done for site, wanted in sorted(steps.items(), key=_place) if (done := _finished(wanted))},
    )


def _append(steps: list[Step], step: Step, conflict: Conflict) -> None:
    """Vectors added to the same tokens at one site are summed here, so that they cost as much as one.

    In order of the list only neighbours can be: what stands between them would see another h. Who takes tokens away
    from others by priority stays alone.
    """
    if conflict is Conflict.PRIORITY:
        candidates = []
    elif conflict is Conflict.SUM:
        candidates = list(range(len(steps)))
    else:
        candidates = list(range(len(steps)))[-1:]
    for index in candidates:
        merged = _merged(steps[index], step)
        if merged is not None:
            steps[index] = merged
            return
    steps.append(step)


def _merged(one: Step, two: Step) -> Step | None:
    if (one.selection, one.gate) != (two.selection, two.gate) or len(one.kernels) + len(two.kernels) != 2:
        return None
    (a,), (b,) = one.kernels, two.kernels
    if not isinstance(a, Add) or not isinstance(b, Add) or a.keeps_norm or b.keeps_norm or a.first != b.first:
        return None
    return dataclasses.replace(one, kernels=(dataclasses.replace(a, vectors=a.vectors + b.vectors),))


def _finished(steps: list[Step]) -> tuple[Step, ...]:
    """Additions rounded to float32; those that cancelled out are none: the plain model, bit for bit."""
    rounded = [dataclasses.replace(step, kernels=tuple(map(_rounded, step.kernels))) for step in steps]
    kept = [step for step in rounded if not all(isinstance(k, Add) and not bool(k.vectors.any()) for k in step.kernels)]
    if sum(len(step.kernels) for step in kept) > SITE_KERNELS_MAX:
        message = f"more than {SITE_KERNELS_MAX} operations at one place, each ablated direction being one"
        raise SpecError(message, param="steering.vectors", code="too_many_operations")
    return tuple(kept)


def _rounded(kernel: Kernel) -> Kernel:
    return dataclasses.replace(kernel, vectors=kernel.vectors.float()) if isinstance(kernel, Add) else kernel


def _place(item: tuple[Site, list[Step]]) -> tuple[int, str]:
    return item[0].layer, item[0].point.value


def _text(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
