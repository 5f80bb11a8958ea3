"""What a keeper and its workers say to each other, beside ledger and audit log."""

from __future__ import annotations

from msgspec import Struct

from gateway.host.summing import Values


class Done(Struct, frozen=True):
    """The answer where there is nothing to say."""


# A worker asks.


class Hello(Struct, frozen=True, tag=True):
    """A process began. The answer is a `Welcome`; it comes when what its predecessor left behind is settled."""


class Welcome(Struct, frozen=True):
    """The policy in force, as text: a worker that begins later must not find another one in the file."""

    path: str
    text: str
    policy: str  # its digest
    codes: str  # digest of the code set; all workers charge alike
    port: int  # of the public address, which may ask for any


class Serving(Struct, frozen=True, tag=True):
    """Clients can connect."""


class Together(Struct, frozen=True, tag=True):
    """What all workers hold: a `Holdings`."""


# The keeper asks, once a worker serves.


class Take(Struct, frozen=True, tag=True):
    """From here on this policy is in force."""

    text: str
    policy: str


class Count(Struct, frozen=True, tag=True):
    """All samples of the worker's registry: a `Counted`."""


class Counted(Struct, frozen=True):
    """By family."""

    values: Values


class Hold(Struct, frozen=True, tag=True):
    """What the worker holds: a `Holdings`."""


class Ready(Struct, frozen=True, tag=True):
    """Whether it should be sent requests: an `Unready`."""


class Unready(Struct, frozen=True):
    """Why not; None if it should."""

    reason: str | None


class Drain(Struct, frozen=True, tag=True):
    """Refuse new answers, finish the open ones, give the leases back, end."""
