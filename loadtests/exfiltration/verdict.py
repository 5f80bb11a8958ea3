"""What a theft's figures mean: the rule of every row, in one place. Pure."""

from dataclasses import dataclass
from enum import Enum

from loadtests.exfiltration.channel import Channel, Residual
from loadtests.exfiltration.charges import Charges

STOLEN_SHARE_MIN = 0.9
STOLEN_TIMED_SHARE_MIN = 0.5  # a busy machine blurs milliseconds for the plain proxy too
BITS_PER_BYTE = 8


class Verdict(Enum):
    """How a row ended."""

    PASS = "PASS"  # noqa: S105  no password
    FAIL = "FAIL"  # the gateway let through more than it charged, or broke a promise
    BLUNT = "BLUNT"  # it does not even succeed through a plain proxy, so it proves nothing
    SKIPPED = "SKIPPED"  # something this machine lacks


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table."""

    channel: str
    what: str
    residual: str
    sent_bits: float
    responses: int
    stolen_bits: float  # through the plain proxy
    stolen_note: str
    decoded_bits: float  # through the gateway
    charged_bits: int  # by the gateway, settled
    seconds: float
    note: str
    verdict: Verdict
    why: str

    @property
    def rate(self) -> float:
        """Decoded bits per second."""
        return self.decoded_bits / self.seconds if self.seconds else 0.0

    @property
    def uncharged_rate(self) -> float:
        """Decoded beyond the charge, in bits per second."""
        return max(self.decoded_bits - self.charged_bits, 0.0) / self.seconds if self.seconds else 0.0


def price(channel: Channel, charges: Charges) -> int:
    """The charge that a channel's bits are held against: for timing, everything but the text."""
    if channel.residual is Residual.TICKS:
        return charges.raw_bits - BITS_PER_BYTE * charges.text_bytes
    return charges.settled_bits


def judge(
    channel: Channel, *, sent: float, stolen: float, sent_gateway: float, decoded: float, charged: int, seconds: float,
    fault: str,
) -> tuple[Verdict, str]:  # fmt: skip
    """The verdict, and why it is not PASS."""
    if fault:
        return Verdict.FAIL, fault
    if channel.residual is Residual.BOUNDED:
        return Verdict.PASS, ""
    if decoded > charged:
        over = decoded - charged
        return Verdict.FAIL, f"{over:.0f} of {sent_gateway:.0f} bits were not charged ({over / seconds:.2f} bit/s)"
    if channel.residual is Residual.NOTHING and decoded > 0:
        return Verdict.FAIL, "must decode nothing at all"
    share_min = STOLEN_TIMED_SHARE_MIN if channel.residual is Residual.TICKS else STOLEN_SHARE_MIN
    if stolen < share_min * sent:
        return Verdict.BLUNT, f"only {stolen:.0f} of {sent:.0f} bits come through a plain proxy"
    return Verdict.PASS, ""
