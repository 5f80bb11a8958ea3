"""Which token comes next: Gumbel-max over filtered, tempered logits, with noise from a counter.

The definition (a replayer depends on every line; `docs/inference.md` repeats it):

1. temperature 0: the token with the largest logit, the lowest id among equals. Nothing below applies.
2. z = float64(float32 logit) / temperature.
3. top-k: order tokens by z descending, then id ascending; keep the first k. 0 keeps all.
4. top-p: p = softmax of the z kept, float64; in the same order keep a token while the sum of those before it is <
   top_p.
5. noise of token t at absolute position n (the first sampled token has n = number of prompt tokens):
   block(b) = Philox4x32-10(key = (seed mod 2^32, seed div 2^32), counter = (t div 4, b, n mod 2^32, n div 2^32));
   high = word (t mod 4) of block(0), low = word (t mod 4) of block(1);
   u = (high · 2^21 + low div 2^11 + 1/2) / 2^53, rounded to float64, at most 1 − 2^-53; g = −ln(−ln u).
6. the answer is the kept token with the largest z + g, the lowest id among equals.

So the token depends on (logits, seed, n, parameters) and not on who else is in the batch. Gumbel-max: Maddison et al.
1411.0030.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.philox import philox4x32

SEED_MAX = (1 << 64) - 1
TEMPERATURE_MIN = 1e-6
"""Smallest temperature but 0: logits divided by less leave the range in which float64 tells them apart, in the end as NaN."""
_TOP_P_CANDIDATES = 512  # a nucleus of a chat model rarely holds more; beyond it everything is sorted
_GUMBEL_MAX = 37.0  # −ln(−ln(1 − 2^-53)) = 36.74: no noise is larger
_LUCKY_HIGH = 0xFFF00000  # one high word in 4,096 reaches it
_UNLUCKY_GUMBEL_MAX = 8.32  # −ln(−ln(1 − 2^-12)) = 8.318: no noise with a smaller high word is larger
_ROUNDING = 1e-9  # relative slack when a bound decides what need not be computed

Logits = NDArray[np.float32]
Scores = NDArray[np.float64]
Ids = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to choose. `seed` is unsigned, 64 bits; `top_k` 0 means all; `temperature` 0 means the largest logit."""

    seed: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= SEED_MAX:
            raise ValueError("seed must fit 64 bits")
        if not (self.temperature == 0 or TEMPERATURE_MIN <= self.temperature <= 100):
            raise ValueError(f"temperature is 0 or in {TEMPERATURE_MIN}..100")
        if not (self.top_k >= 0 and 0 < self.top_p <= 1):
            raise ValueError("top_k is at least 0, top_p in (0, 1]")


def sample(logits: Logits, params: SamplingParams, *, position: int) -> int:
    """Choose a token id from logits [vocab_size] for absolute position `position`. Equal to `sample_naive`, faster."""
    if params.temperature == 0:
        return int(np.argmax(logits))
    z = logits.astype(np.float64) / params.temperature
    ids = _kept(z, params)
    if ids is not None:
        return int(ids[np.argmax(z[ids] + gumbel(params.seed, position, ids))])
    return _largest_with_noise(z, params.seed, position)


def sample_naive(logits: Logits, params: SamplingParams, *, position: int) -> int:
    """The definition, word for word: sort everything, draw noise for everything. Kept as the reference of `sample`."""
    if params.temperature == 0:
        return int(np.argmax(logits))
    z = logits.astype(np.float64) / params.temperature
    order = np.lexsort((np.arange(z.size), -z))
    order = order[: params.top_k] if params.top_k else order
    if params.top_p < 1:
        order = _nucleus(z, order, params.top_p, total=_mass(z, order))
    ids = np.sort(order)
    noise = gumbel(params.seed, position, np.arange(z.size))
    return int(ids[np.argmax(z[ids] + noise[ids])])


def gumbel(seed: int, position: int, token_ids: Ids) -> Scores:
    """Noise of some tokens [n] at one position, float64 [n]: step 5 of the definition."""
    counter = (token_ids >> 2, np.array([[0], [1]]), position & 0xFFFFFFFF, position >> 32)
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))  # each [2, n]: block(0) and block(1)
    high, low = np.choose(token_ids & 3, words)
    u = (high.astype(np.float64) * 2.0**21 + (low >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    # The half is rounded away above 2^52, at the very top even to 1.0: keep u inside (0, 1).
    return np.asarray(-np.log(-np.log(np.minimum(u, 1 - 2.0**-53))))


def _kept(z: Scores, params: SamplingParams) -> Ids | None:
    """Ids that pass top-k and top-p, ascending; None if all do."""
    if params.top_k == 0 and params.top_p == 1:
        return None
    if 0 < params.top_k < z.size:
        order = _first(z, params.top_k)
        if params.top_p < 1:
            order = _nucleus(z, order, params.top_p, total=_mass(z, order))
        return np.sort(order)
    if params.top_p == 1:
        return None
    total = float(np.exp(z - z.max()).sum())
    order = _first(z, min(_TOP_P_CANDIDATES, z.size))
    if np.exp(z[order] - z[order[0]]).sum() < params.top_p * total * (1 + _ROUNDING):
        order = _first(z, z.size)
    return np.sort(_nucleus(z, order, params.top_p, total=total))


def _first(z: Scores, count: int) -> Ids:
    """The first `count` ids by z descending, id ascending."""
    if count < z.size:
        threshold = np.partition(z, z.size - count)[z.size - count]
        ids = np.flatnonzero(z >= threshold)
    else:
        ids = np.arange(z.size)
    return ids[np.argsort(-z[ids], kind="stable")][:count]


def _mass(z: Scores, ids: Ids) -> float:
    # Summed in id order, so that both ways of sampling divide by the same bits.
    return float(np.exp(z[np.sort(ids)] - z.max()).sum())


def _nucleus(z: Scores, order: Ids, top_p: float, *, total: float) -> Ids:
    before = np.cumsum(np.exp(z[order] - z.max())) / total
    return order[: 1 + int(np.searchsorted(before[:-1], top_p, side="left"))]


def _largest_with_noise(z: Scores, seed: int, position: int) -> int:
    """argmax over all tokens of z + g. Bounds on g from the high words exclude nearly all of them unseen."""
    probe = np.asarray([int(np.argmax(z))])
    best = float((z[probe] + gumbel(seed, position, probe))[0])
    best -= _ROUNDING * (abs(best) + _GUMBEL_MAX)
    blocks = np.arange((z.size + 3) // 4)
    key = (seed & 0xFFFFFFFF, seed >> 32)
    words = philox4x32((blocks, 0, position & 0xFFFFFFFF, position >> 32), key)
    lucky = [4 * np.flatnonzero(word >= _LUCKY_HIGH) + which for which, word in enumerate(words)]
    ids = np.concatenate((np.flatnonzero(z >= best - _UNLUCKY_GUMBEL_MAX), *lucky))
    ids = np.unique(ids[ids < z.size])
    high = np.choose(ids & 3, [word[ids >> 2] for word in words])
    ids = ids[z[ids] + _bound(high) >= best]
    return int(ids[np.argmax(z[ids] + gumbel(seed, position, ids))])


def _bound(high: NDArray[Any]) -> Scores:
    """No less than the noise of tokens with these high words."""
    # u < (high + 1) / 2^32, so 1 − u > (2^32 − 1 − high) / 2^32 =: rest, and g < −ln(−ln(1 − rest)).
    rest = (np.uint64(0xFFFFFFFF) - high).astype(np.float64) * 2.0**-32
    with np.errstate(divide="ignore"):
        return np.asarray(np.minimum(-np.log(-np.log1p(-rest)), _GUMBEL_MAX))
