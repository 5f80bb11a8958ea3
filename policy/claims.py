"""What may be said about a policy: bounds, days to theft, and what honest users are left with.

Everything here follows from the caps that the policy configures, never from usage, and speaks of all tenants
together, since they may collude. The policy's own theft compression fixes the caps; the table then holds
these caps against thieves who compress better or worse.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from policy.quantity import SLIDING
from policy.rules import Model, Policy, Window
from policy.weights import theft_bits

DAY_S = 86_400

# How far a thief may shrink bf16 weights.
THEFT_ASSUMPTIONS: Mapping[str, Fraction] = {
    "lossless": Fraction(3, 2),  # DFloat11 (arXiv 2504.11651), ZipNN (arXiv 2411.05239)
    "4-bit": Fraction(4),  # ordinary quantised deployment
    "2-bit": Fraction(13, 2),  # AQLM (arXiv 2401.06118): about 2.4 bits a parameter, small loss
    "1/16 theft": Fraction(16),  # compression made for theft, decompressed at leisure (arXiv 2601.01296),
    "1/100 theft": Fraction(100),  # its careful end
}

# What a token of honest English chat costs, for judging usefulness only; no bound rests on these estimates.
# 4.3 bytes a token × 8 bits = 34.4; zstd with a trained dictionary took 2.53 bits a byte of real answers = 10.9; a small
# language model takes 1.2 bits a byte of prose that is not its own = 5.2, and about half of that of its own kind of text.
HONEST_TOKEN_BITS: Mapping[str, Fraction] = {
    "raw": Fraction(344, 10),
    "zstd": Fraction(109, 10),
    "language_model": Fraction(52, 10),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """One budget of a model, in bits. All caps of a model hold at once."""

    window: Window
    limit_bits: int
    bits_per_day: int | None  # the rate if every window is used up, rounded up; None for a lifetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Theft:
    """What the caps mean to a thief who compresses this well."""

    assumption: str
    compression: Fraction
    theft_bits: int  # what such a thief must carry off
    lifetime_share: Fraction | None  # of theft_bits, at most 1, that the lifetime cap permits, ever; None without one
    days_at_caps: Fraction | None  # theft_bits at the slowest cap's even rate; None without one, or if it is 0
    days_at_least: Fraction | None  # a bound: None if never; see `_days_at_least`

    @property
    def is_possible(self) -> bool:
        """False: never under this budget, however long the thief waits."""
        return self.days_at_least is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class HonestUse:
    """An estimate: English chat that fits into a day at the caps."""

    code: str
    tokens_per_day: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Everything that may be printed about one model."""

    model: str
    parameters: int
    theft_compression: Fraction
    theft_bits: int  # W
    caps: tuple[Cap, ...]
    thefts: tuple[Theft, ...]  # by compression; holds the policy's own assumption too
    honest: tuple[HonestUse, ...]  # empty without a windowed cap, which leaves nothing to count per day
    transcripts: tuple[str, ...]  # C1 of THEORY, one sentence for each cap
    days: str  # C4 of THEORY, under the policy's own assumption
    conditions: tuple[str, ...]  # what all of these rest on; print them with the sentences

    @property
    def own(self) -> Theft:
        """The row of the policy's own assumption."""
        return next(theft for theft in self.thefts if theft.compression == self.theft_compression)


def claim_table(policy: Policy, parameters: Mapping[str, int]) -> tuple[Claim, ...]:
    """One claim for each model, in the order of the policy. `parameters` by model name, from trusted headers."""
    return tuple(_claim(policy, model, parameters[name]) for name, model in policy.models.items())


def _claim(policy: Policy, model: Model, parameters: int) -> Claim:
    own_bits = theft_bits(parameters, model.theft_compression)
    caps = tuple(_cap(budget.window, budget.limit_bits(own_bits)) for budget in model.budgets)
    thefts = tuple(_theft(name, ratio, parameters, caps) for name, ratio in _assumptions(model.theft_compression))
    own = next(theft for theft in thefts if theft.compression == model.theft_compression)
    return Claim(
        model=model.name,
        parameters=parameters,
        theft_compression=model.theft_compression,
        theft_bits=own_bits,
        caps=caps,
        thefts=thefts,
        honest=_honest(policy.meters, caps),
        transcripts=tuple(_transcripts(model.name, cap) for cap in caps),
        days=_days(own, caps),
        conditions=_conditions(policy),
    )


def _cap(window: Window, limit_bits: int) -> Cap:
    per_day = None if window.duration_s is None else -(-limit_bits * DAY_S // window.duration_s)
    return Cap(window=window, limit_bits=limit_bits, bits_per_day=per_day)


def _assumptions(own: Fraction) -> list[tuple[str, Fraction]]:
    assumptions = list(THEFT_ASSUMPTIONS.items())
    if own not in THEFT_ASSUMPTIONS.values():
        assumptions.append(("this policy", own))
    return sorted(assumptions, key=lambda assumption: assumption[1])


def _theft(assumption: str, compression: Fraction, parameters: int, caps: tuple[Cap, ...]) -> Theft:
    needed = theft_bits(parameters, compression)
    lifetime = next((cap.limit_bits for cap in caps if cap.window.duration_s is None), None)
    is_possible = (lifetime is None or lifetime >= needed) and all(cap.limit_bits > 0 for cap in caps)
    return Theft(
        assumption=assumption,
        compression=compression,
        theft_bits=needed,
        lifetime_share=None if lifetime is None or needed == 0 else min(Fraction(1), Fraction(lifetime, needed)),
        days_at_caps=_days_at_caps(needed, caps),
        days_at_least=_days_at_least(needed, caps) if is_possible else None,
    )


def _days_at_caps(needed: int, caps: tuple[Cap, ...]) -> Fraction | None:
    rates = [
        Fraction(cap.limit_bits * DAY_S, cap.window.duration_s) for cap in caps if cap.window.duration_s is not None
    ]
    slowest = min(rates, default=Fraction(0))
    return needed / slowest if slowest else None


def _days_at_least(needed: int, caps: tuple[Cap, ...]) -> Fraction:
    """No thief is faster. Of calendar windows the first and the last may be used up within a moment at their edges; only the
    windows between them must pass in full. That makes it up to two windows less than the even rate would give. Of a window
    that slides, the first may be used up within a moment; every other takes its whole length.
    """
    spans = [
        (-(-needed // cap.limit_bits) - (1 if cap.window.sliding else 2)) * Fraction(cap.window.duration_s, DAY_S)
        for cap in caps
        if cap.window.duration_s is not None
    ]
    return max(Fraction(0), *spans) if spans else Fraction(0)


def _honest(meters: tuple[str, ...], caps: tuple[Cap, ...]) -> tuple[HonestUse, ...]:
    rates = [cap.bits_per_day for cap in caps if cap.bits_per_day is not None]
    if not rates:
        return ()
    return tuple(HonestUse(code=meter, tokens_per_day=int(min(rates) / HONEST_TOKEN_BITS[meter])) for meter in meters)


def _transcripts(model: str, cap: Cap) -> str:
    """C1."""
    when = "Since this ledger began"
    if cap.window.sliding:
        when = f"In any span of {cap.window.name.removeprefix(SLIDING)}, whenever it begins"
    elif cap.window.duration_s is not None:
        when = f"In any one window of {cap.window.name} (aligned to the Unix epoch)"
    return (
        f"{when}, everything released by {model} to all tenants together was one of at most 2^{cap.limit_bits} "
        "transcripts (content, ends, errors, ticks), whatever the backends did; the probability that an n-bit secret "
        f"was revealed in it is at most 2^({cap.limit_bits} - n)."
    )


def _days(own: Theft, caps: tuple[Cap, ...]) -> str:
    """C4, with the asset, the assumed compression and the caps that it rests on."""
    size_bytes = -(-own.theft_bits // 8)
    asset = f"{size_bytes} bytes (weights of 16 bits a parameter, compressed {_ratio(own.compression)} times)"
    limits = ", ".join(f"{cap.limit_bits} bits per {cap.window.name}" for cap in caps)
    if own.days_at_least is None:
        return f"At the configured caps ({limits}), no amount of time is enough for {asset}."
    if own.days_at_least == 0:
        return f"At the configured caps ({limits}), time is no protection for {asset}: two windows are enough."
    return f"At the configured caps ({limits}), {asset} need at least {_rounded_down(own.days_at_least)} days."


def _ratio(compression: Fraction) -> str:
    return str(compression) if compression.denominator == 1 else f"{float(compression):g}"


def _rounded_down(days: Fraction) -> str:
    tenths = int(days * 10)
    return f"{tenths // 10}.{tenths % 10}"


def _conditions(policy: Policy) -> tuple[str, ...]:
    return (
        "The codes that charges are counted under are fixed independently of the secret.",
        "The gateway host and its ledger are not compromised, and the ledger was not reset.",
        "There is no other way out of the inference hosts.",
        f"Timing finer than one tick ({policy.release.tick_s * 1000:g} ms) is excluded; missed ticks are counted.",
        "Receivers are all tenants of this gateway together; whoever else can observe the gateway is excluded.",
        "Distillation through honest answers is not theft in this sense and is not bounded by days.",
    )
