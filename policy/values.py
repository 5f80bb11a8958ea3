"""What a single value of a policy document may look like: how it is read, and what JSON Schema says of it.

Values are read by `quantity`, `address` and `public_key`, so that every message says what to write instead. Each name here is
the type of a pydantic field; `forms` puts them together.
"""

import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import AfterValidator, PlainValidator, WithJsonSchema

from policy import quantity, rules
from policy.address import address, upstream
from policy.limits import EMBEDDING_DIMENSIONS_MAX
from policy.mistakes import quoted
from policy.public_key import AUDITOR_PATTERN, SIGNER_PATTERN, SIGNERS_MAX, auditor_key, signer_key
from policy.yaml_nodes import Scalar

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

ADDRESS_PATTERN = r"^(.+:[0-9]{1,5}|unix:/.+)$"
UPSTREAM_PATTERN = r"^(http://.+:[0-9]{1,5}|unix:/.+)$"
LEDGER_PATTERN = r"^(sqlite:.+|postgresql://.+|memory)$"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

_ARTICLES = {"text": "text", "number": "a number", "boolean": "a boolean"}


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


_PATH = WithJsonSchema({"type": "string", "minLength": 1})
Path = Annotated[str, _value(_text, kind="text", instead="write it in quotes"), _PATH]
PathOrNone = Annotated[str | None, _value(_text, kind="text", instead="write it in quotes"), _PATH]
NameOfModel = Annotated[str, _value(_text, kind="text", instead="write it in quotes"), _pattern(NAME_PATTERN)]
Boolean = Annotated[
    bool, _value(_boolean, kind="boolean", instead="write true or false"), WithJsonSchema({"type": "boolean"})
]
Address = Annotated[rules.Address, _value(address), _pattern(ADDRESS_PATTERN)]
Upstream = Annotated[str, _value(upstream), _pattern(UPSTREAM_PATTERN)]
Window = Annotated[rules.Window, _value(quantity.window), _pattern(f"^lifetime$|{quantity.WINDOW_PATTERN}")]
PercentageOrNone = Annotated[Fraction | None, _value(quantity.percentage), _pattern(quantity.PERCENTAGE_PATTERN)]
DurationOrNone = Annotated[int | None, _value(quantity.whole_duration_s), _pattern(quantity.DURATION_PATTERN)]
Duration = Annotated[int, _value(quantity.whole_duration_s), _pattern(quantity.DURATION_PATTERN)]
Timeout = Annotated[float, _value(_timeout_s), _pattern(quantity.DURATION_PATTERN)]
Tick = Annotated[float, _value(_tick_s), _pattern(quantity.DURATION_PATTERN)]
Bits = Annotated[int, _value(_bits), _pattern(quantity.BYTES_PATTERN)]
BitsOrNone = Annotated[int | None, _value(_bits), _pattern(quantity.BYTES_PATTERN)]
Quantum = Annotated[int, _value(_quantum_bytes), _pattern(quantity.BYTES_PATTERN)]
ParametersOrNone = Annotated[
    int | None,
    _value(quantity.parameter_count),
    WithJsonSchema({"type": ["number", "string"], "pattern": quantity.COUNT_PATTERN, "minimum": 1}),
]
Compression = Annotated[
    Fraction,
    _value(quantity.compression),
    WithJsonSchema({"type": "number", "minimum": 1, "maximum": quantity.COMPRESSION_MAX}),
]
Code = Annotated[str, _value(quantity.code_digest), _pattern(quantity.CODE_PATTERN)]
CodeOrNone = Annotated[str | None, _value(quantity.code_digest), _pattern(quantity.CODE_PATTERN)]
Key = Annotated[str, _value(quantity.key_digest), _pattern(quantity.DIGEST_PATTERN)]
Auditor = Annotated[rules.PublicKey, _value(auditor_key), _pattern(AUDITOR_PATTERN)]
Signer = Annotated[rules.PublicKey, _value(signer_key), _pattern(SIGNER_PATTERN)]
Ledger = Annotated[rules.Ledger, _value(_ledger), _pattern(LEDGER_PATTERN)]
ModelName = Annotated[str, AfterValidator(_name)]
GatewayName = Annotated[str, _value(_name, kind="text", instead="write it in quotes"), _pattern(NAME_PATTERN)]
TenantName = Annotated[str, AfterValidator(_tenant_name)]


Guarantee = Annotated[
    Literal["absolute"],
    _value(_choice("absolute", unavailable={"black_box": "it needs the replay meter, which"})),
    WithJsonSchema({"enum": ["absolute"]}),
]
Usage = Annotated[
    Literal["charge", "recount", "drop"],
    _value(_choice("charge", "recount", "drop")),
    WithJsonSchema({"enum": ["charge", "recount", "drop"]}),
]
Reasoning = Annotated[
    Literal["drop", "release"], _value(_choice("drop", "release")), WithJsonSchema({"enum": ["drop", "release"]})
]
Embeddings = Annotated[
    Literal["refuse", "int8", "binary"],
    _value(_choice("refuse", "int8", "binary")),
    WithJsonSchema({"enum": ["refuse", "int8", "binary"]}),
]
DimensionsOrNone = Annotated[
    int | None,
    _value(
        partial(quantity.whole_number, most=EMBEDDING_DIMENSIONS_MAX), kind="number", instead="write it without quotes"
    ),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": EMBEDDING_DIMENSIONS_MAX}),
]
Schedule = Annotated[
    Literal["flow", "paced", "whole"],
    _value(_choice("flow", "paced", "whole")),
    WithJsonSchema({"enum": ["flow", "paced", "whole"]}),
]
Meter = Annotated[
    str,
    _value(_choice(*rules.METERS, unavailable={"replay": "that meter"})),
    WithJsonSchema({"enum": list(rules.METERS)}),
]
AnswerTokens = Annotated[
    int,
    _value(quantity.answer_tokens, kind="number", instead="write it without quotes"),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": quantity.ANSWER_TOKENS_MAX}),
]
Streams = Annotated[
    int,
    _value(partial(quantity.whole_number, most=STREAMS_MAX), kind="number", instead="write it without quotes"),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": STREAMS_MAX}),
]
Threshold = Annotated[
    int,
    _value(partial(quantity.whole_number, most=SIGNERS_MAX), kind="number", instead="write it without quotes"),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": SIGNERS_MAX}),
]
