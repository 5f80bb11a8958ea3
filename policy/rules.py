"""The rules of one policy: what an operator has decided, validated, frozen and free of spelling.

`document.parse` is what builds these from YAML. They hold no clock and no usage: the same rules serve a
gateway, an offline check and an auditor. `Policy.digest` names them.
"""

import base64
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType
from typing import Literal

SLIDING_STEPS = 24  # an hour of a day: a sliding window over-counts by at most two of these
ANSWER_TOKENS_MAX = 4096
ANSWER_TOKENS_DEFAULT = 512
AUDIT_DIRECTORY = "./var/audit"
LEDGER_PATH = "./var/ledger.db"
METERS_DEFAULT = ("raw", "zstd")
METERS = (
    "raw",
    "zstd",
    "language_model",
)  # in the order of the pipeline; a policy's meters are a subset that holds "raw"

# Fields that earlier versions did not have. At its default such a field stays out of the digest, so that an upgrade alone
# does not change it.
LATER: Mapping[str, str] = MappingProxyType({"weir": "later"})

# Fields that say which gateway this is, not what it may do. They stay out of the digest, so that one licence fits a fleet.
LOCAL: Mapping[str, str] = MappingProxyType({"weir": "local"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpAddress:
    host: str
    port: int  # 0 asks the system for a free one (tests)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixAddress:
    path: str


Address = TcpAddress | UnixAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A fixed calendar window, aligned to the Unix epoch; one that slides with the clock; or the whole life of the ledger."""

    name: str  # "lifetime", or the canonical duration: "1d" however it was spelled, "sliding 1d" if it slides
    duration_s: int | None  # None = lifetime
    sliding: bool = field(default=False, metadata=LATER)

    def __post_init__(self) -> None:
        if (self.duration_s is None) != (self.name == "lifetime") or self.duration_s == 0:
            raise ValueError("a window is either the lifetime or at least one second long")
        if self.sliding and self.duration_s is None:
            raise ValueError("a lifetime does not slide")

    @property
    def step_s(self) -> int:
        """How far a sliding window moves at a time: a twenty-fourth of its length, rounded up."""
        assert self.duration_s is not None
        return -(-self.duration_s // SLIDING_STEPS)

    @property
    def steps(self) -> int:
        """How many steps count together: all that a window of any position touches, and one for gateways' clocks to differ."""
        assert self.duration_s is not None
        return -(-self.duration_s // self.step_s) + 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelBudget:
    """The security bound of a model in one window, in exactly one of three spellings."""

    window: Window
    fraction: Fraction | None = None  # of W
    time_to_theft_s: int | None = None  # W spread evenly over this long
    bits: int | None = None

    def __post_init__(self) -> None:
        if [self.fraction, self.time_to_theft_s, self.bits].count(None) != 2:
            raise ValueError("exactly one of fraction, time_to_theft_s and bits sets a model budget")
        if self.time_to_theft_s is not None and self.window.duration_s is None:
            raise ValueError("a lifetime has no rate, so time_to_theft cannot set its budget")

    def limit_bits(self, theft_bits: int) -> int:
        """The most that may leave in one window, rounded down, when stealing the model takes `theft_bits`."""
        if self.bits is not None:
            return self.bits
        if self.fraction is not None:
            return theft_bits * self.fraction.numerator // self.fraction.denominator
        assert self.window.duration_s is not None
        assert self.time_to_theft_s is not None
        return theft_bits * self.window.duration_s // self.time_to_theft_s


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantBudget:
    """Keeps one tenant from starving the others; it is no security bound, since tenants collude."""

    window: Window
    bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsSource:
    """Where the parameter count comes from: a file whose header is read, or the operator's word."""

    file: str | None = None
    parameters: int | None = None

    def __post_init__(self) -> None:
        if (self.file is None) == (self.parameters is None):
            raise ValueError("exactly one of file and parameters says how large a model is")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """What usage is recounted with, pinned."""

    file: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long a backend may take."""

    connect_s: float = 5.0
    first_byte_s: float = 60.0  # a long prompt is prefilled before the first byte
    idle_s: float = 30.0
    total_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    name: str
    upstream: str  # http://host:port or unix:/path
    weights: WeightsSource
    theft_compression: Fraction
    guarantee: Literal["absolute"] = "absolute"
    budgets: tuple[ModelBudget, ...]  # lifetime first, then by length; windows are unique
    usage: Literal["charge", "recount", "drop"] = "charge"
    tokenizer: Tokenizer | None = field(default=None, metadata=LATER)  # set exactly if usage is recounted
    reasoning: Literal["drop", "release"] = field(default="drop", metadata=LATER)
    embeddings: Literal["refuse", "int8", "binary"] = field(default="refuse", metadata=LATER)
    dimensions: int | None = field(default=None, metadata=LATER)  # None: the backend chooses, and is charged for it
    record_token_ids: bool = False
    prefix_cache_salt: bool = field(default=False, metadata=LATER)
    answer_tokens_max: int = ANSWER_TOKENS_MAX
    answer_tokens_default: int = ANSWER_TOKENS_DEFAULT
    timeouts: Timeouts = field(default_factory=Timeouts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    name: str
    key_digests: frozenset[str]  # SHA-256 of each API key, lower-case hex
    models: frozenset[str]
    share: Fraction | None = None  # of every budget of every model it may use
    budgets: tuple[TenantBudget, ...] = ()  # ordered like a model's
    steering: bool = False
    streams_max: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    schedule: Literal["flow", "paced", "whole"] = "flow"
    tick_s: float = 0.02
    quantum_bytes: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """The trusted process that knows the public language model."""

    address: str  # http://host:port or unix:/path
    code: str | None = None  # digest of its code; a scorer with another one is not believed


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """Somebody's public key. `policy.public_key` reads these."""

    algorithm: str  # "x25519" or "xwing" of an auditor, "ed25519" of a signer
    name: str
    encoded: str  # base64

    @property
    def raw(self) -> bytes:
        """The key's bytes."""
        return base64.b64decode(self.encoded)


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessRule:
    """Nothing leaves unless others have lately signed that they have seen the audit log."""

    policy: str  # a C2SP tlog-policy file: who they are, and how many of them it takes
    within_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    directory: str = AUDIT_DIRECTORY
    auditors: tuple[PublicKey, ...] = field(default=(), metadata=LATER)  # none, or two and more: by name
    content_kept_s: int | None = field(default=None, metadata=LATER)  # then what was said is deleted; None: never
    witnesses: WitnessRule | None = field(default=None, metadata=LATER)


@dataclass(frozen=True, slots=True, kw_only=True)
class LicenceRule:
    """Nothing leaves without an operating licence that enough of these keys have signed."""

    file: str
    keys: tuple[PublicKey, ...]  # by name; no key stands here twice
    threshold: int
    gateway: str = field(metadata=LOCAL)  # the name that a licence must list

    def __post_init__(self) -> None:
        if not 1 <= self.threshold <= len(self.keys) or len({key.encoded for key in self.keys}) != len(self.keys):
            raise ValueError("a threshold is from one up to the number of distinct keys")


@dataclass(frozen=True, slots=True, kw_only=True)
class SqliteLedger:
    path: str = LEDGER_PATH


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresLedger:
    url: str  # never with a password
    standbys: int = 0  # so many must have a commit before it counts


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLedger:
    """Forgets what was spent when the process ends: for tests and demonstrations."""


Ledger = SqliteLedger | PostgresLedger | MemoryLedger


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    listen: Address
    admin: Address
    models: Mapping[str, Model]
    tenants: Mapping[str, Tenant]
    release: Release = field(default_factory=Release)
    meters: tuple[str, ...] = METERS_DEFAULT
    dictionary: str | None = field(default=None, metadata=LATER)  # the operator's own, for zstd
    scorer: Scorer | None = field(default=None, metadata=LATER)  # set exactly if the meters name language_model
    audit: Audit = field(default_factory=Audit)
    licence: LicenceRule | None = field(default=None, metadata=LATER)
    ledger: Ledger = field(default_factory=SqliteLedger)
    digest: str  # rules_digest of all the fields above


def rules_digest(policy: Policy) -> str:
    """SHA-256, in hex, of the rules' canonical JSON: the same for every spelling of the same decisions.

    Covers every field but `digest` itself and those that are `LOCAL`. A weights file is covered by its name, not by its contents.
    """
    canonical = {"format": "weir-policy-1", **_canonical(policy)}
    del canonical["digest"]
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _canonical(value: object) -> dict[str, object]:
    assert dataclasses.is_dataclass(value)
    members = {rule.name: getattr(value, rule.name) for rule in dataclasses.fields(value) if not _left_out(value, rule)}
    return {name: _canonical_field(member) for name, member in members.items()}


def _left_out(value: object, rule: dataclasses.Field[object]) -> bool:
    return rule.metadata == LOCAL or (rule.metadata == LATER and getattr(value, rule.name) == rule.default)


def _canonical_field(value: object) -> object:
    """JSON for one field. The members of each union differ in their fields, so no type tag is needed."""
    if dataclasses.is_dataclass(value):
        return _canonical(value)
    if isinstance(value, Mapping):
        return {name: _canonical_field(member) for name, member in value.items()}
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple):
        return [_canonical_field(member) for member in value]
    if isinstance(value, Fraction):
        return f"{value.numerator}/{value.denominator}"
    return value
