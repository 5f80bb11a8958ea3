"""The shape of a policy document: which keys there are, what may stand there, and the rule it becomes.

pydantic collects all mistakes in one pass and writes the JSON Schema; single values are read by `quantity`
and `address`, so that every message says what to write instead. Nothing of pydantic leaves this module and
`document`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, Literal

from annotated_types import MaxLen, MinLen
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema

from policy import quantity, rules
from policy.address import address, upstream
from policy.limits import EMBEDDING_DIMENSIONS_MAX
from policy.mistakes import quoted
from policy.public_key import AUDITOR_PATTERN, AUDITORS_MAX, SIGNER_PATTERN, SIGNERS_MAX, auditor_key, signer_key
from policy.rules import rules_digest
from policy.yaml_nodes import Scalar

MODELS_MAX = 256  # each is a label of the gateway's metrics
TENANTS_MAX = 1000  # likewise; beyond this a Prometheus server suffers first
BUDGETS_MAX = 8  # an admission touches every one of them
KEYS_MAX = 64  # of one tenant
STREAMS_MAX = 10_000  # of one tenant; a gateway's sockets end near here
PATH_CHARACTERS_MAX = 4096  # PATH_MAX of Linux
TIMEOUT_S_MAX = 86_400  # a connection that waits a day is a leak
TICK_S_MIN, TICK_S_MAX = Fraction(5, 1000), Fraction(1)  # fdatasync takes milliseconds; readers notice a second
BUDGET_BITS_END = 1 << 63  # what a signed 64-bit column of any store holds
QUANTUM_BYTES_MIN = (
    8  # how far a piece is rounded down to whole characters is not coded; from 5 bytes on, UTF-8 pays for it
)
QUANTUM_BYTES_MAX = 1024  # more would stall ordinary answers between quanta

# Several hosts: the primary is among them. The options are libpq's, but for `standbys`.
POSTGRES_PATTERN = r"postgresql://([^:@/\s]+@)?([\w.-]+|\[[0-9a-fA-F:]+\])?(:[0-9]+)?(,([\w.-]+|\[[0-9a-fA-F:]+\])(:[0-9]+)?)*/[^:@/\s]+"
POSTGRES_OPTIONS = (
    "standbys",
    "target_session_attrs",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "host",
    "passfile",
)

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

_ARTICLES = {"text": "text", "number": "a number", "boolean": "a boolean"}


# What a single value may look like.


def _value(
    read: Callable[[str], object], *, kind: Literal["text", "number", "boolean"] | None = None, instead: str = ""
) -> PlainValidator:
    """`kind` is given where quotes matter: "true" is text and true is not. `instead` says what to write."""

    def validate(node: object) -> object:
        if not isinstance(node, Scalar):
            raise ValueError("must be a single value, not a list or a mapping")  # noqa: TRY004 - pydantic collects it
        if node.kind == "nothing":
            raise ValueError("has no value")
        if kind is not None and node.kind not in {kind, "refused"}:
            raise ValueError(f"{quoted(node.text)} is {_ARTICLES[node.kind]} here; {instead}")
        return read(node.text)

    return PlainValidator(validate)


def _choice(*available: str, unavailable: Mapping[str, str] = MappingProxyType({})) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text in unavailable:
            raise ValueError(
                f"{quoted(text)}: {unavailable[text]} is not available in this version; write {' or '.join(available)}"
            )
        if text not in available:
            raise ValueError(f"{quoted(text)} is not known; write {' or '.join(available)}")
        return text

    return read


def _text(text: str) -> str:
    if not 1 <= len(text) <= PATH_CHARACTERS_MAX:
        raise ValueError(f"must have 1 to {PATH_CHARACTERS_MAX} characters")
    return text


def _boolean(text: str) -> bool:
    return text == "true"


def _name(text: str) -> str:
    if not re.fullmatch(NAME_PATTERN, text):
        raise ValueError(
            f"{quoted(text)} is not a name; write up to 64 letters, digits, '.', '_', '-', first a letter or digit"
        )
    return text


def _tenant_name(text: str) -> str:
    if text == "other":
        raise ValueError("'other' is reserved: metrics use it for whoever is not a tenant")
    return _name(text)


def _timeout_s(text: str) -> float:
    duration = quantity.duration_s(text)
    if duration > TIMEOUT_S_MAX:
        raise ValueError(f"{quoted(text)} must be at most 1d")
    return float(duration)


def _tick_s(text: str) -> float:
    duration = quantity.duration_s(text)
    if not TICK_S_MIN <= duration <= TICK_S_MAX:
        raise ValueError(f"{quoted(text)} must be from 5ms to 1s")
    return float(duration)


def _quantum_bytes(text: str) -> int:
    count = quantity.byte_count(text)
    if not QUANTUM_BYTES_MIN <= count <= QUANTUM_BYTES_MAX:
        raise ValueError(f"{quoted(text)} must be from {QUANTUM_BYTES_MIN}B to {QUANTUM_BYTES_MAX}B")
    return count


def _bits(text: str) -> int:
    bits = 8 * quantity.byte_count(text)
    if bits >= BUDGET_BITS_END:
        raise ValueError(f"{quoted(text)} is more than a ledger can count; write at most 1000000TB")
    return bits


def _ledger(text: str) -> rules.Ledger:
    if text == "memory":
        return rules.MemoryLedger()
    kind = text.partition(":")[0]  # what follows may hold a password, and is not repeated
    if kind in {"postgresql", "postgres"}:
        return _postgres_ledger(text)
    if kind != "sqlite" or kind == text:
        raise ValueError(
            f"{quoted(kind)} is not a ledger; write sqlite:./var/ledger.db, postgresql://user@host/database or memory"
        )
    return rules.SqliteLedger(path=_text(text.removeprefix("sqlite:")))


def _postgres_ledger(text: str) -> rules.PostgresLedger:
    head, _, query = text.partition("?")
    if re.match("[a-z]+://[^@]*:[^@]*@", head) or "password=" in query:
        raise ValueError("a password does not belong in a policy; write it into ~/.pgpass, or into PGPASSWORD")
    if not re.fullmatch(POSTGRES_PATTERN, head):
        raise ValueError(
            "not a database's address; write postgresql://user@host/database, or several host:port with commas"
        )
    options = [part.partition("=")[::2] for part in query.split("&") if part]
    for name, _value in options:
        if name not in POSTGRES_OPTIONS:
            raise ValueError(f"{quoted(name)} is not known here; known are {', '.join(POSTGRES_OPTIONS)}")
    standbys = dict(options).get("standbys", "0")
    if not re.fullmatch("[0-9]", standbys):
        raise ValueError(f"standbys={quoted(standbys)} must be from 0 to 9")
    kept = "&".join(f"{name}={value}" for name, value in options if name != "standbys")
    return rules.PostgresLedger(url=f"{head}?{kept}" if kept else head, standbys=int(standbys))


def _pattern(pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern})


_STRING = WithJsonSchema({"type": "string", "minLength": 1})
_Text = Annotated[str, _value(_text, kind="text", instead="write it in quotes"), _STRING]
_TextOrNone = Annotated[str | None, _value(_text, kind="text", instead="write it in quotes"), _STRING]
_Boolean = Annotated[
    bool, _value(_boolean, kind="boolean", instead="write true or false"), WithJsonSchema({"type": "boolean"})
]
_Address = Annotated[rules.Address, _value(address), _STRING]
_Upstream = Annotated[str, _value(upstream), _pattern("^(http://.+:[0-9]+|unix:/.+)$")]
_Window = Annotated[rules.Window, _value(quantity.window), _pattern(f"^lifetime$|{quantity.WINDOW_PATTERN}")]
_PercentageOrNone = Annotated[Fraction | None, _value(quantity.percentage), _pattern(quantity.PERCENTAGE_PATTERN)]
_DurationOrNone = Annotated[int | None, _value(quantity.whole_duration_s), _pattern(quantity.DURATION_PATTERN)]
_Duration = Annotated[int, _value(quantity.whole_duration_s), _pattern(quantity.DURATION_PATTERN)]
_Timeout = Annotated[float, _value(_timeout_s), _pattern(quantity.DURATION_PATTERN)]
_Tick = Annotated[float, _value(_tick_s), _pattern(quantity.DURATION_PATTERN)]
_Bits = Annotated[int, _value(_bits), _pattern(quantity.BYTES_PATTERN)]
_BitsOrNone = Annotated[int | None, _value(_bits), _pattern(quantity.BYTES_PATTERN)]
_Quantum = Annotated[int, _value(_quantum_bytes), _pattern(quantity.BYTES_PATTERN)]
_ParametersOrNone = Annotated[
    int | None,
    _value(quantity.parameter_count),
    WithJsonSchema({"type": ["number", "string"], "pattern": quantity.COUNT_PATTERN, "minimum": 1}),
]
_Compression = Annotated[
    Fraction,
    _value(quantity.compression),
    WithJsonSchema({"type": "number", "minimum": 1, "maximum": quantity.COMPRESSION_MAX}),
]
_Code = Annotated[str, _value(quantity.code_digest), _pattern(quantity.CODE_PATTERN)]
_CodeOrNone = Annotated[str | None, _value(quantity.code_digest), _pattern(quantity.CODE_PATTERN)]
_Key = Annotated[str, _value(quantity.key_digest), _pattern(quantity.DIGEST_PATTERN)]
_Auditor = Annotated[rules.PublicKey, _value(auditor_key), _pattern(AUDITOR_PATTERN)]
_Signer = Annotated[rules.PublicKey, _value(signer_key), _pattern(SIGNER_PATTERN)]
_Ledger = Annotated[rules.Ledger, _value(_ledger), _pattern("^(sqlite:.+|postgresql://.+|memory)$")]
_ModelName = Annotated[str, AfterValidator(_name)]
_GatewayName = Annotated[str, _value(_name, kind="text", instead="write it in quotes"), _pattern(NAME_PATTERN)]
_TenantName = Annotated[str, AfterValidator(_tenant_name)]


_Guarantee = Annotated[
    Literal["absolute"],
    _value(_choice("absolute", unavailable={"black_box": "it needs the replay meter, which"})),
    WithJsonSchema({"enum": ["absolute"]}),
]
_Usage = Annotated[
    Literal["charge", "recount", "drop"],
    _value(_choice("charge", "recount", "drop")),
    WithJsonSchema({"enum": ["charge", "recount", "drop"]}),
]
_Reasoning = Annotated[
    Literal["drop", "release"], _value(_choice("drop", "release")), WithJsonSchema({"enum": ["drop", "release"]})
]
_Embeddings = Annotated[
    Literal["refuse", "int8", "binary"],
    _value(_choice("refuse", "int8", "binary")),
    WithJsonSchema({"enum": ["refuse", "int8", "binary"]}),
]
_DimensionsOrNone = Annotated[
    int | None,
    _value(
        partial(quantity.whole_number, most=EMBEDDING_DIMENSIONS_MAX), kind="number", instead="write it without quotes"
    ),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": EMBEDDING_DIMENSIONS_MAX}),
]
_Schedule = Annotated[
    Literal["flow", "paced", "whole"],
    _value(_choice("flow", "paced", "whole")),
    WithJsonSchema({"enum": ["flow", "paced", "whole"]}),
]
_Meter = Annotated[
    str,
    _value(_choice(*rules.METERS, unavailable={"replay": "that meter"})),
    WithJsonSchema({"enum": list(rules.METERS)}),
]
_AnswerTokens = Annotated[
    int,
    _value(quantity.answer_tokens, kind="number", instead="write it without quotes"),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": quantity.ANSWER_TOKENS_MAX}),
]
_Streams = Annotated[
    int,
    _value(partial(quantity.whole_number, most=STREAMS_MAX), kind="number", instead="write it without quotes"),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": STREAMS_MAX}),
]
_Threshold = Annotated[
    int,
    _value(partial(quantity.whole_number, most=SIGNERS_MAX), kind="number", instead="write it without quotes"),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": SIGNERS_MAX}),
]


def _as_list(node: object) -> object:
    return [node] if isinstance(node, dict) else node


def _one_or_many(schema: dict[str, Any]) -> None:
    """For editors: a budget is one mapping, or a list of them. `document._known_keys` relies on the order."""
    many = {key: schema.pop(key) for key in ("type", "items", "minItems", "maxItems")}
    schema["anyOf"] = [many["items"], many]


# What keys there are. Each form becomes the rule of the same name.


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class WeightsForm(_Form):
    file: _TextOrNone = Field(None, description="A safetensors or GGUF file; only its header is read")
    parameters: _ParametersOrNone = Field(None, description="Number of parameters, for example 70e9")

    def rule(self) -> rules.WeightsSource:
        return rules.WeightsSource(file=self.file, parameters=self.parameters)


class ModelBudgetForm(_Form):
    window: _Window = Field(
        description="lifetime, a fixed calendar window in UTC such as 1d, or one that moves such as sliding 1d"
    )
    fraction: _PercentageOrNone = Field(None, description="Share of W that may leave in the window")
    time_to_theft: _DurationOrNone = Field(None, description="How long W must take to leave at this rate")
    bytes: _BitsOrNone = Field(None, description="Absolute limit, for example 20MiB")

    def rule(self) -> rules.ModelBudget:
        return rules.ModelBudget(
            window=self.window, fraction=self.fraction, time_to_theft_s=self.time_to_theft, bits=self.bytes
        )


class TenantBudgetForm(_Form):
    window: _Window = Field(
        description="lifetime, a fixed calendar window in UTC such as 1d, or one that moves such as sliding 1d"
    )
    bytes: _Bits = Field(description="Absolute limit, for example 20MiB")

    def rule(self) -> rules.TenantBudget:
        return rules.TenantBudget(window=self.window, bits=self.bytes)


class TimeoutsForm(_Form):
    connect: _Timeout = Field(5.0, description="To open a connection", json_schema_extra={"default": "5s"})
    first_byte: _Timeout = Field(60.0, description="Until the answer begins", json_schema_extra={"default": "60s"})
    idle: _Timeout = Field(30.0, description="Between two pieces of it", json_schema_extra={"default": "30s"})
    total: _Timeout = Field(600.0, description="Until the answer ends", json_schema_extra={"default": "600s"})

    def rule(self) -> rules.Timeouts:
        return rules.Timeouts(
            connect_s=self.connect, first_byte_s=self.first_byte, idle_s=self.idle, total_s=self.total
        )


class TokenizerForm(_Form):
    file: _Text = Field(description="A tokenizer.json")
    sha256: _Code = Field(description="Its digest; a file with another one is not taken")

    def rule(self) -> rules.Tokenizer:
        return rules.Tokenizer(file=self.file, sha256=self.sha256)


class ModelForm(_Form):
    upstream: _Upstream = Field(description="The backend: http://host:port or unix:/path")
    weights: WeightsForm = Field(description="Where the number of parameters comes from")
    theft_compression: _Compression = Field(description="How far a thief may shrink bf16 weights; sets W")
    guarantee: _Guarantee = Field("absolute", description="What the budgets bound; absolute: everything that leaves")
    budgets: Annotated[list[ModelBudgetForm], MinLen(1), MaxLen(BUDGETS_MAX)] = Field(
        description="The security bound; all of them hold"
    )
    usage: _Usage = Field("charge", description="Token counts: the backend's, charged; the gateway's own; or none")
    tokenizer: TokenizerForm | None = Field(None, description="What usage is recounted with")
    reasoning: _Reasoning = Field("drop", description="Pass on what the model thinks before it answers, or drop it")
    embeddings: _Embeddings = Field("refuse", description="Embeddings: none, 8 bits a dimension, or 1 bit")
    dimensions: _DimensionsOrNone = Field(None, description="Of its embeddings; without it the backend chooses")
    record_token_ids: _Boolean = Field(default=False, description="Ask the backend for sampled token ids, for the log")
    prefix_cache_salt: _Boolean = Field(
        default=False, description="Keep tenants apart in the backend's prefix cache: send a cache_salt"
    )
    answer_tokens_max: _AnswerTokens = Field(rules.ANSWER_TOKENS_MAX, description="The most a client may ask for")
    answer_tokens_default: _AnswerTokens = Field(
        rules.ANSWER_TOKENS_DEFAULT, description="For a client that does not ask; never above the maximum"
    )
    timeouts: TimeoutsForm = Field(default_factory=TimeoutsForm, description="How long the backend may take")

    def rule(self, name: str) -> rules.Model:
        return rules.Model(
            name=name,
            upstream=self.upstream,
            weights=self.weights.rule(),
            theft_compression=self.theft_compression,
            guarantee=self.guarantee,
            budgets=tuple(sorted((budget.rule() for budget in self.budgets), key=_by_length)),
            usage=self.usage,
            tokenizer=self.tokenizer.rule() if self.tokenizer is not None else None,
            reasoning=self.reasoning,
            embeddings=self.embeddings,
            dimensions=self.dimensions,
            record_token_ids=self.record_token_ids,
            prefix_cache_salt=self.prefix_cache_salt,
            answer_tokens_max=self.answer_tokens_max,
            answer_tokens_default=min(self.answer_tokens_default, self.answer_tokens_max),
            timeouts=self.timeouts.rule(),
        )


class TenantForm(_Form):
    keys: Annotated[list[_Key], MinLen(1), MaxLen(KEYS_MAX)] = Field(description="sha256:<hex> of each API key")
    models: Annotated[list[_Text], MinLen(1), MaxLen(MODELS_MAX)] = Field(description="Models it may use")
    share: _PercentageOrNone = Field(None, description="The most it may take of each budget of each model")
    budget: Annotated[list[TenantBudgetForm], BeforeValidator(_as_list), MinLen(1), MaxLen(BUDGETS_MAX)] = Field(
        default_factory=list, description="Its own limit, or a list of them", json_schema_extra=_one_or_many
    )
    steering: _Boolean = Field(default=False, description="Whether it may steer models")
    streams_max: _Streams = Field(64, description="Answers at the same time")

    def rule(self, name: str) -> rules.Tenant:
        return rules.Tenant(
            name=name,
            key_digests=frozenset(self.keys),
            models=frozenset(self.models),
            share=self.share,
            budgets=tuple(sorted((budget.rule() for budget in self.budget), key=_by_length)),
            steering=self.steering,
            streams_max=self.streams_max,
        )


class ReleaseForm(_Form):
    schedule: _Schedule = Field(
        "flow", description="flow: at each tick, what is ready; paced: one quantum a tick; whole: at once"
    )
    tick: _Tick = Field(0.02, description="The clock that all output leaves by", json_schema_extra={"default": "20ms"})
    quantum: _Quantum = Field(
        16, description="Text leaves in multiples of this until the end", json_schema_extra={"default": "16B"}
    )

    def rule(self) -> rules.Release:
        return rules.Release(schedule=self.schedule, tick_s=self.tick, quantum_bytes=self.quantum)


class ScorerForm(_Form):
    address: _Upstream = Field(description="Where `python -m inference score` listens")
    code: _CodeOrNone = Field(None, description="Its code's digest; a scorer with another one is not believed")

    def rule(self) -> rules.Scorer:
        return rules.Scorer(address=self.address, code=self.code)


class WitnessesForm(_Form):
    policy: _Text = Field(description="A C2SP tlog-policy file: the witnesses, where they are asked, and the quorum")
    within: _Duration = Field(
        3600, description="How old the last quorum's cosignatures may be", json_schema_extra={"default": "1h"}
    )

    def rule(self) -> rules.WitnessRule:
        return rules.WitnessRule(policy=self.policy, within_s=self.within)


class AuditForm(_Form):
    directory: _Text = Field(rules.AUDIT_DIRECTORY, description="Where the log of everything released is kept")
    auditors: Annotated[list[_Auditor], MaxLen(AUDITORS_MAX)] = Field(
        default_factory=list,
        description="Public keys made by `weir keys auditor`; content is kept sealed to each. None, or at least two",
    )
    content_kept: _DurationOrNone = Field(
        None, description="How long sealed content is kept. The records stay for good"
    )
    witnesses: WitnessesForm | None = Field(
        None, description="Who must have cosigned the log lately; otherwise nothing leaves"
    )

    def rule(self) -> rules.Audit:
        return rules.Audit(
            directory=self.directory,
            auditors=tuple(sorted(self.auditors, key=_by_name)),
            content_kept_s=self.content_kept,
            witnesses=self.witnesses.rule() if self.witnesses is not None else None,
        )


class LicenceForm(_Form):
    file: _Text = Field(description="Where the operating licence lies; it is watched, and may be replaced at any time")
    keys: Annotated[list[_Signer], MinLen(1), MaxLen(SIGNERS_MAX)] = Field(
        description="Public keys of those who may sign, made by `weir licence key`"
    )
    threshold: _Threshold = Field(description="How many of the keys must have signed")
    gateway: _GatewayName = Field(
        description="What this gateway is called in licences; not part of the policy's digest"
    )

    def rule(self) -> rules.LicenceRule:
        return rules.LicenceRule(
            file=self.file,
            keys=tuple(sorted(self.keys, key=_by_name)),
            threshold=self.threshold,
            gateway=self.gateway,
        )


class PolicyForm(_Form):
    listen: _Address = Field(description="Where clients connect")
    admin: _Address = Field(description="Metrics and health; not for clients")
    models: Annotated[dict[_ModelName, ModelForm], MinLen(1), MaxLen(MODELS_MAX)] = Field(description="By name")
    tenants: Annotated[dict[_TenantName, TenantForm], MinLen(1), MaxLen(TENANTS_MAX)] = Field(description="By name")
    release: ReleaseForm = Field(default_factory=ReleaseForm, description="How answers leave")
    meters: Annotated[list[_Meter], MinLen(1)] = Field(
        list(rules.METERS_DEFAULT), description="Codes that answers are charged under"
    )
    dictionary: _TextOrNone = Field(None, description="A zstd dictionary made by `weir dictionary train`")
    scorer: ScorerForm | None = Field(None, description="The process that language_model asks")
    audit: AuditForm = Field(default_factory=AuditForm, description="The record of everything released")
    licence: LicenceForm | None = Field(None, description="Without a signed licence in force, nothing leaves")
    ledger: _Ledger = Field(
        default_factory=rules.SqliteLedger,
        description="Where spent bits are kept: sqlite:<path>, postgresql://<user>@<host>/<database>, or memory for tests",
        json_schema_extra={"default": f"sqlite:{rules.LEDGER_PATH}"},
    )

    def rule(self) -> rules.Policy:
        draft = rules.Policy(
            listen=self.listen,
            admin=self.admin,
            models=MappingProxyType({name: form.rule(name) for name, form in self.models.items()}),
            tenants=MappingProxyType({name: form.rule(name) for name, form in self.tenants.items()}),
            release=self.release.rule(),
            meters=tuple(meter for meter in rules.METERS if meter in self.meters),
            dictionary=self.dictionary,
            scorer=self.scorer.rule() if self.scorer is not None else None,
            audit=self.audit.rule(),
            licence=self.licence.rule() if self.licence is not None else None,
            ledger=self.ledger,
            digest="",
        )
        return replace(draft, digest=rules_digest(draft))


def _by_length(budget: rules.ModelBudget | rules.TenantBudget) -> tuple[int, bool]:
    return budget.window.duration_s or 0, budget.window.sliding


def _by_name(key: rules.PublicKey) -> str:
    return key.name
