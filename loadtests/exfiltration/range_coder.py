"""Range coding turned round: secret bits come out as tokens of a model, and the tokens give the bits back.

Integer arithmetic throughout (Witten, Neal and Cleary, CACM 30(6), 1987), so that both ends agree to the last bit. The
text follows the model's own distribution: to anyone who looks it is what the model would have said (zero KL divergence).
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, chain, cycle

CODE_BITS = 32
TOTAL_MAX = 1 << 16  # of one distribution's frequencies: far below a quarter of the range, so that every token has room
_TOP = (1 << CODE_BITS) - 1
_QUARTER = 1 << (CODE_BITS - 2)
_HALF = 2 * _QUARTER

Distribution = tuple[Sequence[int], Sequence[int]]  # tokens, and their frequencies; a function of the tokens before
Model = Callable[[tuple[int, ...]], Distribution]


class _Interval:
    """What is left of the unit interval after the tokens so far."""

    def __init__(self) -> None:
        self.low, self.high = 0, _TOP
        self._pending = 0

    def narrow(self, *, below: int, frequency: int, total: int) -> tuple[list[int], list[int]]:
        """Take one token. Returns the bits that are now certain, and what each doubling subtracted first."""
        width = self.high - self.low + 1
        self.high = self.low + width * (below + frequency) // total - 1
        self.low += width * below // total
        bits: list[int] = []
        offsets: list[int] = []
        while True:
            if self.high < _HALF or self.low >= _HALF:
                bit = int(self.low >= _HALF)
                bits += [bit, *[1 - bit] * self._pending]
                self._pending = 0
                offset = bit * _HALF
            elif self.low >= _QUARTER and self.high < 3 * _QUARTER:
                self._pending += 1
                offset = _QUARTER
            else:
                return bits, offsets
            self.low, self.high = 2 * (self.low - offset), 2 * (self.high - offset) + 1
            offsets.append(offset)


def hide(bits: Sequence[int], model: Model, *, tokens_max: int) -> list[int]:
    """Tokens that say `bits`: as few as make all of them certain. Raises ValueError over `tokens_max`."""
    stream = chain(bits, cycle((0, 1)))  # what follows the secret says nothing, but has to be something
    interval = _Interval()
    code = 0
    for _ in range(CODE_BITS):
        code = 2 * code + next(stream)
    tokens: list[int] = []
    certain = 0
    while certain < len(bits):
        if len(tokens) == tokens_max:
            raise ValueError(f"{len(bits)} bits need more than {tokens_max} tokens of this model")
        choices, frequencies = model(tuple(tokens))
        total = sum(frequencies)
        target = ((code - interval.low + 1) * total - 1) // (interval.high - interval.low + 1)
        above = list(accumulate(frequencies))
        at = next(index for index, end in enumerate(above) if target < end)
        tokens.append(choices[at])
        said, offsets = interval.narrow(below=above[at] - frequencies[at], frequency=frequencies[at], total=total)
        certain += len(said)
        for offset in offsets:
            code = 2 * (code - offset) + next(stream)
    return tokens


def reveal(tokens: Iterable[int], model: Model) -> list[int]:
    """The bits that tokens say. Stops at a token that the model could not have said."""
    interval = _Interval()
    bits: list[int] = []
    before: tuple[int, ...] = ()
    for token in tokens:
        choices, frequencies = model(before)
        if token not in choices:
            break
        at = choices.index(token)
        said, _ = interval.narrow(below=sum(frequencies[:at]), frequency=frequencies[at], total=sum(frequencies))
        bits += said
        before = (*before, token)
    return bits
