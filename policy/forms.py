"""The shape of a policy document: which keys there are, what each may hold, and the rule it becomes.

pydantic collects all mistakes in one pass and writes the JSON Schema, whose descriptions are also the tables of docs/policy.md
(`make reference`). Nothing of pydantic leaves this module, `values` and `document`.
"""

from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any

from annotated_types import MaxLen, MinLen
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from policy import rules
from policy.public_key import AUDITORS_MAX, SIGNERS_MAX
from policy.rules import rules_digest
from policy.values import (
    Address,
    AnswerTokens,
    Auditor,
    Bits,
    BitsOrNone,
    Boolean,
    Code,
    CodeOrNone,
    Compression,
    DimensionsOrNone,
    Duration,
    DurationOrNone,
    Embeddings,
    GatewayName,
    Guarantee,
    Key,
    Ledger,
    Meter,
    ModelName,
    NameOfModel,
    ParametersOrNone,
    Path,
    PathOrNone,
    PercentageOrNone,
    Quantum,
    Reasoning,
    Schedule,
    Signer,
    Streams,
    TenantName,
    Threshold,
    Tick,
    Timeout,
    Upstream,
    Usage,
    Window,
)

MODELS_MAX = 256  # each is a label of the gateway's metrics
TENANTS_MAX = 1000  # likewise; beyond this a Prometheus server suffers first
BUDGETS_MAX = 8  # an admission touches every one of them
KEYS_MAX = 64  # of one tenant


def _as_list(node: object) -> object:
    return [node] if isinstance(node, dict) else node


def _one_or_many(schema: dict[str, Any]) -> None:
    """For editors: a budget is one mapping, or a list of them. `document._known_keys` relies on the order."""
    many = {key: schema.pop(key) for key in ("type", "items", "minItems", "maxItems")}
    schema["anyOf"] = [many["items"], many]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, use_attribute_docstrings=True)


class WeightsForm(_Form):
    file: PathOrNone = None
    """A safetensors or GGUF file that the gateway's host holds; only its header is read"""
    parameters: ParametersOrNone = None
    """The operator's word, for sharded weights or none on this host, for example 70e9"""

    def rule(self) -> rules.WeightsSource:
        return rules.WeightsSource(file=self.file, parameters=self.parameters)


class ModelBudgetForm(_Form):
    window: Window
    """`lifetime`; fixed calendar windows of this length, aligned to the Unix epoch (`1d` turns at midnight UTC,
    `7d` on Thursdays); or `sliding 1d`: in any span of a day, whenever it begins. One budget for each window"""
    fraction: PercentageOrNone = None
    """This share of W in each window"""
    time_to_theft: DurationOrNone = None
    """W would take this long at this rate: W × window ÷ this. Not for `lifetime`, and not shorter than the
    window"""
    bytes: BitsOrNone = None
    """An absolute limit, whatever W is, for example 20MiB"""

    def rule(self) -> rules.ModelBudget:
        return rules.ModelBudget(
            window=self.window, fraction=self.fraction, time_to_theft_s=self.time_to_theft, bits=self.bytes
        )


class TenantBudgetForm(_Form):
    window: Window
    """As of a model's budget. One budget for each window"""
    bytes: Bits
    """The limit, for example 20MiB"""

    def rule(self) -> rules.TenantBudget:
        return rules.TenantBudget(window=self.window, bits=self.bytes)


class TimeoutsForm(_Form):
    connect: Timeout = Field(5.0, json_schema_extra={"default": "5s"})
    """To open a connection; at most `1d`, like the others"""
    first_byte: Timeout = Field(60.0, json_schema_extra={"default": "60s"})
    """Until a streamed answer begins; a long prompt is read before that. An unstreamed one comes whole, so only
    `total` applies"""
    idle: Timeout = Field(30.0, json_schema_extra={"default": "30s"})
    """Between two pieces of an answer"""
    total: Timeout = Field(600.0, json_schema_extra={"default": "600s"})
    """Until the answer ends"""

    def rule(self) -> rules.Timeouts:
        return rules.Timeouts(
            connect_s=self.connect, first_byte_s=self.first_byte, idle_s=self.idle, total_s=self.total
        )


class TokenizerForm(_Form):
    file: Path
    """The model's `tokenizer.json`"""
    sha256: Code
    """Its digest; a file with another one is not taken"""

    def rule(self) -> rules.Tokenizer:
        return rules.Tokenizer(file=self.file, sha256=self.sha256)


class ModelForm(_Form):
    upstream: Upstream
    """The backend; no path, query or user, and no TLS: the way there belongs inside the trusted network"""
    weights: WeightsForm
    """Where the number of parameters comes from"""
    theft_compression: Compression
    """How many times smaller than 16 bits a parameter a thief can make the weights; sets W"""
    guarantee: Guarantee = "absolute"
    """What the budgets bound; `absolute`: everything that leaves, whatever the backends do"""
    budgets: Annotated[list[ModelBudgetForm], MinLen(1), MaxLen(BUDGETS_MAX)]
    """The security bound; all of them hold at once, for all tenants together"""
    usage: Usage = "charge"
    """Token counts: pass the backend's on and charge their bits; count with a pinned tokenizer, which costs no
    bits; or none. A recount counts the request's texts without a chat template's own tokens. Embeddings have none
    then"""
    tokenizer: TokenizerForm | None = None
    """What `usage: recount` counts with; there exactly if usage is recounted"""
    reasoning: Reasoning = "drop"
    """What the model says before its answer (`reasoning_content`, `reasoning`): never read, or released before the
    text and charged like it"""
    embeddings: Embeddings = "refuse"
    """Whether `POST /v1/embeddings` exists for this model, and in how many bits a dimension: 8 or 1. They are
    charged raw: no code refunds any of it"""
    dimensions: DimensionsOrNone = None
    """The length of its embeddings; another one is an error of the backend. Without it the backend chooses, and its
    choice is charged"""
    record_token_ids: Boolean = False
    """Ask the backend for `return_token_ids` and keep them in the audit log; they never leave"""
    prefix_cache_salt: Boolean = False
    """Send the backend a `cache_salt` that differs from tenant to tenant, so that no tenant can tell by the time of
    the first token whether another one asked the same prompt. Weir's model server and vLLM know the field; an
    engine that refuses unknown fields refuses every request that has it"""
    answer_tokens_max: AnswerTokens = rules.ANSWER_TOKENS_MAX
    """The most tokens that a client may ask for"""
    answer_tokens_default: AnswerTokens = rules.ANSWER_TOKENS_DEFAULT
    """For a client that does not ask; at most `answer_tokens_max`, and lowered to it by default"""
    timeouts: TimeoutsForm = Field(default_factory=TimeoutsForm)
    """How long the backend may take"""

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


TenantBudgets = Annotated[list[TenantBudgetForm], BeforeValidator(_as_list), MinLen(1), MaxLen(BUDGETS_MAX)]


class TenantForm(_Form):
    keys: Annotated[list[Key], MinLen(1), MaxLen(KEYS_MAX)]
    """Digests of its API keys; a key belongs to one tenant only"""
    models: Annotated[list[NameOfModel], MinLen(1), MaxLen(MODELS_MAX)]
    """What it may use"""
    share: PercentageOrNone = None
    """The most it may take of each budget, windowed or lifetime, of each of its models"""
    budget: TenantBudgets = Field(default_factory=list, json_schema_extra=_one_or_many)
    """Its own absolute limits: one, or a list of them"""
    steering: Boolean = False
    """Whether it may use the steering endpoints"""
    streams_max: Streams = 64
    """Answers at the same time"""

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
    schedule: Schedule = "flow"
    """`flow`: at each tick, what is ready, in whole quanta; `paced`: one quantum a tick, so that once an answer is
    settled only stalls have cost anything. Choose `tick` and `quantum` so that the engine is faster than `quantum /
    tick` (64B and 500ms: 128 bytes or about 30 tokens a second); `whole`: the answer at once"""
    tick: Tick = Field(0.02, json_schema_extra={"default": "20ms"})
    """The clock that all output leaves by, from `5ms` to `1s`"""
    quantum: Quantum = Field(16, json_schema_extra={"default": "16B"})
    """Text leaves in multiples of this until the end, from `8B` to `1024B`"""

    def rule(self) -> rules.Release:
        return rules.Release(schedule=self.schedule, tick_s=self.tick, quantum_bytes=self.quantum)


class ScorerForm(_Form):
    address: Upstream
    """Where `python -m inference score` listens"""
    code: CodeOrNone = None
    """The digest of its model, tokenizer and rules (`GET /code`); scores under another code are not believed.
    Without it, what its first answer says"""

    def rule(self) -> rules.Scorer:
        return rules.Scorer(address=self.address, code=self.code)


class WitnessesForm(_Form):
    policy: Path
    """A tlog-policy file (C2SP): the witnesses, where they are asked, and how many of them it takes. It is read at
    the start"""
    within: Duration = Field(3600, json_schema_extra={"default": "1h"})
    """How old the newest cosignatures of a quorum may be, and how long the first may take"""

    def rule(self) -> rules.WitnessRule:
        return rules.WitnessRule(policy=self.policy, within_s=self.within)


class AuditForm(_Form):
    directory: Path = rules.AUDIT_DIRECTORY
    """Where the log of everything released is kept"""
    auditors: Annotated[list[Auditor], MaxLen(AUDITORS_MAX)] = Field(default_factory=list)
    """Who may read what was said: lines that `weir keys auditor NAME` printed. None, or at least two, so that a
    lost key loses nothing; no key or name twice"""
    content_kept: DurationOrNone = None
    """Sealed content is deleted, a segment of the log at a time, when it was last written so long ago. The records
    stay. Without it, content stays too"""
    witnesses: WitnessesForm | None = None
    """Who must have cosigned the log lately; otherwise nothing leaves"""

    def rule(self) -> rules.Audit:
        return rules.Audit(
            directory=self.directory,
            auditors=tuple(sorted(self.auditors, key=_by_name)),
            content_kept_s=self.content_kept,
            witnesses=self.witnesses.rule() if self.witnesses is not None else None,
        )


class LicenceForm(_Form):
    file: Path
    """Where the licence lies. It is looked at every second, and may be replaced at any time; without the file
    nothing leaves"""
    keys: Annotated[list[Signer], MinLen(1), MaxLen(SIGNERS_MAX)]
    """Who may sign: lines that `weir licence key NAME` printed; no key or name twice"""
    threshold: Threshold
    """How many of the keys must have signed; at most as many as there are"""
    gateway: GatewayName
    """What this gateway is called in licences. It is not part of the policy's digest: gateways with one policy can
    share a licence"""

    def rule(self) -> rules.LicenceRule:
        return rules.LicenceRule(
            file=self.file,
            keys=tuple(sorted(self.keys, key=_by_name)),
            threshold=self.threshold,
            gateway=self.gateway,
        )


class PolicyForm(_Form):
    listen: Address
    """Where clients connect"""
    admin: Address
    """Metrics, health and the status page; must not collide with `listen`, and nothing limits who may read it but
    the network"""
    models: Annotated[dict[ModelName, ModelForm], MinLen(1), MaxLen(MODELS_MAX)]
    """At most 256, by the names that clients ask for"""
    tenants: Annotated[dict[TenantName, TenantForm], MinLen(1), MaxLen(TENANTS_MAX)]
    """At most 1000, by name"""
    release: ReleaseForm = Field(default_factory=ReleaseForm)
    """How answers leave"""
    meters: Annotated[list[Meter], MinLen(1)] = list(rules.METERS_DEFAULT)
    """The codes that answers are charged under; `raw` is always among them"""
    dictionary: PathOrNone = None
    """A zstd dictionary made by `weir dictionary train`, instead of the shipped one; a change takes a restart and
    changes the code digest"""
    scorer: ScorerForm | None = None
    """The process that `language_model` asks; there exactly if `meters` names it"""
    audit: AuditForm = Field(default_factory=AuditForm)
    """The record of everything released"""
    licence: LicenceForm | None = None
    """Nothing leaves without a signed licence in force"""
    ledger: Ledger = Field(
        default_factory=rules.SqliteLedger, json_schema_extra={"default": f"sqlite:{rules.LEDGER_PATH}"}
    )
    """Where spent bits are kept: `sqlite:` and a path, `postgresql://user@host/database`, or `memory`, which
    forgets them when the process ends"""

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
