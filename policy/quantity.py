"""Quantities as operators write them: `40%`, `20ms`, `20MiB`, `70e9`.

Every function raises ValueError with a sentence that shows the form it wants. Results are exact: no float
stands between what was written and a budget.
"""

import re
from fractions import Fraction

from policy.mistakes import quoted
from policy.rules import Window

_DECIMAL = r"[0-9]{1,18}(?:\.[0-9]{1,18})?"  # long enough for any real quantity, short enough to stay cheap

SECONDS = {
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86_400),
    "y": Fraction(365 * 86_400),
}
BYTES = {
    "B": 1,
    "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
COUNTS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}

SLIDING = "sliding "  # before the duration of a window
CODE_PATTERN = r"^[0-9a-fA-F]{64}$"
DIGEST_PATTERN = r"^sha256:([0-9a-fA-F]{64})$"
PERCENTAGE_PATTERN = rf"^({_DECIMAL})%$"
DURATION_PATTERN = rf"^({_DECIMAL})({'|'.join(SECONDS)})$"
WINDOW_PATTERN = rf"^(?:{SLIDING})?({_DECIMAL})({'|'.join(SECONDS)})$"
BYTES_PATTERN = rf"^({_DECIMAL})({'|'.join(BYTES)})$"
COUNT_PATTERN = rf"^({_DECIMAL})(?:[eE]\+?([0-9]{{1,2}}))?([KMBT]?)$"
RATIO_PATTERN = rf"^({_DECIMAL})$"

WINDOW_SECONDS_MAX = int(100 * SECONDS["y"])  # nobody's policy outlives a century; keeps budgets in sane integers
SLIDING_SECONDS_MIN = 3600  # its steps are then minutes long; with shorter ones, answers would cross several
PARAMETERS_MAX = 10**15  # a thousand times the largest model known
ANSWER_TOKENS_MAX = 1_000_000  # the longest contexts that are sold
COMPRESSION_MAX = 10**6  # beyond this the "weights" left are smaller than an answer


def percentage(text: str) -> Fraction:
    """`40%` → 2/5. More than nothing, at most all."""
    match = re.fullmatch(PERCENTAGE_PATTERN, text)
    if match is None:
        raise ValueError(f"{quoted(text)} is not a percentage; write for example 40%")
    share = Fraction(match[1]) / 100
    if not 0 < share <= 1:
        raise ValueError(f"{quoted(text)} must be more than 0% and at most 100%")
    return share


def duration_s(text: str) -> Fraction:
    """`20ms` → 1/50 of a second. A year is 365 days."""
    match = re.fullmatch(DURATION_PATTERN, text)
    if match is None:
        raise ValueError(f"{quoted(text)} is not a duration; write for example 20ms, 5s, 10m, 1h, 1d or 5y")
    duration = Fraction(match[1]) * SECONDS[match[2]]
    if duration == 0:
        raise ValueError(f"{quoted(text)} must be longer than nothing")
    return duration


def whole_duration_s(text: str) -> int:
    """A duration of whole seconds, up to a century."""
    duration = duration_s(text)
    if duration.denominator != 1:
        raise ValueError(f"{quoted(text)} must be whole seconds")
    if duration > WINDOW_SECONDS_MAX:
        raise ValueError(f"{quoted(text)} must be at most 100y")
    return int(duration)


def window(text: str) -> Window:
    """`lifetime`, or a duration, named the same however it was spelled: `24h` is `1d`. `sliding 1d` moves with the clock."""
    if text == "lifetime":
        return Window(name=text, duration_s=None)
    match = re.fullmatch(WINDOW_PATTERN, text)
    if match is None:
        raise ValueError(f"{quoted(text)} is not a window; write lifetime, 1d, sliding 1d or another duration")
    seconds = whole_duration_s(text.removeprefix(SLIDING))
    sliding = text.startswith(SLIDING)
    if sliding and seconds < SLIDING_SECONDS_MIN:
        raise ValueError(f"{quoted(text)} must be at least one hour; write for example sliding 1h or sliding 1d")
    name = _canonical_duration(seconds)
    return Window(name=f"{SLIDING}{name}" if sliding else name, duration_s=seconds, sliding=sliding)


def _canonical_duration(seconds: int) -> str:
    unit = next(unit for unit in ("y", "d", "h", "m", "s") if seconds % SECONDS[unit] == 0)
    return f"{seconds // int(SECONDS[unit])}{unit}"


def byte_count(text: str) -> int:
    """`20MiB` → 20,971,520. At least one byte, and a unit, since a bare number could be bits."""
    match = re.fullmatch(BYTES_PATTERN, text)
    if match is None:
        raise ValueError(f"{quoted(text)} is not a number of bytes; write for example 16B, 20MiB or 2GB")
    count = Fraction(match[1]) * BYTES[match[2]]
    if count < 1 or count.denominator != 1:
        raise ValueError(f"{quoted(text)} must be whole bytes, at least 1B")
    return int(count)


def parameter_count(text: str) -> int:
    """`70e9`, `70B` and `70000000000` are the same model."""
    match = re.fullmatch(COUNT_PATTERN, text)
    if match is None:
        raise ValueError(f"{quoted(text)} is not a number of parameters; write for example 70e9, 70B or 135M")
    count = Fraction(match[1]) * 10 ** int(match[2] or 0) * COUNTS[match[3]]
    if count.denominator != 1 or not 1 <= count <= PARAMETERS_MAX:
        raise ValueError(f"{quoted(text)} must be a whole number of parameters from 1 to 1e15")
    return int(count)


def compression(text: str) -> Fraction:
    """How many times smaller than bf16 a thief can make the weights: at least 1, for a lower figure would raise W."""
    match = re.fullmatch(RATIO_PATTERN, text)
    if match is None:
        raise ValueError(f"{quoted(text)} is not a ratio; write for example 100 or 6.5")
    ratio = Fraction(match[1])
    if not 1 <= ratio <= COMPRESSION_MAX:
        raise ValueError(f"{quoted(text)} must be from 1 (weights as they are) to {COMPRESSION_MAX}")
    return ratio


def whole_number(text: str, *, most: int) -> int:
    """From 1 to `most`, in plain digits."""
    if not re.fullmatch(r"[0-9]{1,18}", text) or not 1 <= int(text) <= most:
        raise ValueError(f"{quoted(text)} is not a whole number from 1 to {most}")
    return int(text)


def answer_tokens(text: str) -> int:
    return whole_number(text, most=ANSWER_TOKENS_MAX)


def code_digest(text: str) -> str:
    """64 hex digits, as `sha256sum` prints them → in lower case."""
    if not re.fullmatch(CODE_PATTERN, text):
        raise ValueError(f"{quoted(text)} is not a SHA-256 digest; write its 64 hex digits")
    return text.lower()


def key_digest(text: str) -> str:
    """`sha256:<64 hex digits>` → the digits in lower case. The message repeats nothing: it may be the key itself."""
    match = re.fullmatch(DIGEST_PATTERN, text)
    if match is None:
        raise ValueError("is not the digest of a key; write sha256: and the output of `printf %s KEY | sha256sum`")
    return match[1].lower()
