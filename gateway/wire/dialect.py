"""What every API dialect offers the relay: a sanitised call, a decoder for the backend, a renderer for the client."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from policy.canonical import Event
from policy.release import Release


class Decoder(Protocol):
    """Backend bytes to events, for one answer. Raises `policy.canonical.Malformed` for what it cannot hold.

    The events before a fault are yielded first, so that what a client gets does not depend on how the bytes were split.
    """

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Take in body bytes, however they were split."""

    def eof(self) -> Iterator[Event]:
        """The body is over. Raises `Malformed` if the answer is not."""


class Renderer(Protocol):
    """Releases to client bytes, for one answer: a function of the releases and of what the gateway knew before."""

    content_type: str

    def release(self, release: Release) -> bytes:
        """The bytes of one release."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What the gateway gives an answer before the backend is asked."""

    id: str  # unique in this gateway, fit for any dialect's id field
    created_s: int
    seed: int  # 63 bits, fresh: the backend must not choose its own randomness


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request after sanitising: what is asked of the backend, and how its answer is read and rendered."""

    model: str
    stream: bool
    upstream_method: str
    upstream_path: str
    upstream_body: bytes
    answer_bytes_max: int
    tools_declared: frozenset[str]
    decoder: Decoder
    renderer: Renderer
    reasoning: bool = False  # whether the answer may begin with some
    status: int = 200
    stateful: bool = False  # names vectors or jobs, which may be missing (404) or exist already (409)
    steps_max: int | None = None  # of a job's events: how many steps its progress has


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRules:
    """The part of a model's policy that a dialect needs."""

    name: str
    usage: bool  # whether token counts are released (and priced)
    usage_claimed: bool = True  # whether they are the backend's; else the gateway counts
    token_ids: bool  # whether the backend is asked for the sampled ids, for the record
    tokens_max: int
    tokens_default: int
    reasoning: bool = False  # whether what the model says before its answer is released (and priced)
    embeddings: Literal["refuse", "int8", "binary"] = "refuse"
    dimensions: int | None = None  # of embeddings, where policy fixes them
    cache_salted: bool = False  # whether the backend is told to keep tenants apart in its prefix cache
