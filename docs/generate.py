"""`make reference`: writes the tables of docs/policy.md and docs/metrics.md from the code that they describe.

A table stands between `<!-- table: WHAT -->` and `<!-- end -->`; the prose around it is written by hand. Fields and their
meaning come from the policy's JSON Schema, metrics and theirs from the registries of the gateway and of the model server.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from gateway.metrics import Metrics
from inference.server.metrics import ServerMetrics
from policy import quantity, values
from policy.document import json_schema
from policy.public_key import AUDITOR_PATTERN, SIGNER_PATTERN

DOCS = Path(__file__).resolve().parent
DOCUMENTS = (DOCS / "policy.md", DOCS / "metrics.md")
TABLE = re.compile(r"(<!-- table: (?P<what>[^\n]+) -->\n).*?(<!-- end -->\n)", re.DOTALL)

_KINDS = {
    values.ADDRESS_PATTERN: "address",
    values.LEDGER_PATTERN: "`sqlite:…`, `postgresql://…` or `memory`",
    values.NAME_PATTERN: "name",
    values.UPSTREAM_PATTERN: "`http://host:port` or `unix:/path`",
    quantity.BYTES_PATTERN: "bytes",
    quantity.CODE_PATTERN: "64 hex digits",
    quantity.COUNT_PATTERN: "parameters",
    quantity.DIGEST_PATTERN: "`sha256:<64 hex digits>`",
    quantity.DURATION_PATTERN: "duration",
    quantity.PERCENTAGE_PATTERN: "percentage",
    f"^lifetime$|{quantity.WINDOW_PATTERN}": "window",
    AUDITOR_PATTERN: "public key",
    SIGNER_PATTERN: "public key",
}
_SUFFIXES = {"counter": "_total", "info": "_info"}


def main() -> int:
    """Write both documents anew."""
    for document in DOCUMENTS:
        document.write_text(generated(document.read_text()))
    return 0


def generated(text: str) -> str:
    """The document with its tables as the code has them. KeyError for a table that nobody knows."""
    return TABLE.sub(lambda match: match[1] + _table(match["what"]) + match[3], text)


def _table(what: str) -> str:
    subject, _, argument = what.partition(" ")
    if subject == "metrics":
        return _metrics({"gateway": gateway_metrics, "inference": inference_metrics}[argument]())
    return _fields(subject, prefix=argument)


# Fields of a policy.


def _fields(form: str, *, prefix: str) -> str:
    schema = json_schema()
    shape = schema if form == "PolicyForm" else schema["$defs"][form]
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, field in shape["properties"].items():
        default = "required" if name in shape.get("required", ()) else _default(field)
        rows.append(f"| `{prefix}{name}` | {_kind(field)} | {default} | {field['description']} |")
    return "\n".join(rows) + "\n"


def _default(field: dict[str, Any]) -> str:
    match field.get("default"):
        case None:
            return "`{}`" if "$ref" in field else "none"
        case bool(value):
            return f"`{str(value).lower()}`"
        case list(items):
            return f"`[{', '.join(items)}]`"
        case value:
            return f"`{value}`"


def _kind(field: dict[str, Any]) -> str:
    match field:
        case {"anyOf": [*options]}:
            kinds = [_kind(option) for option in options if option.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
        case {"$ref": _}:
            return "mapping"
        case {"pattern": pattern}:
            return _KINDS[pattern]
        case {"enum": [*choices]}:
            *first, last = [f"`{choice}`" for choice in choices]
            return f"{', '.join(first)} or {last}" if first else last
        case {"type": "array", "items": item}:
            least, most = field.get("minItems", 0), field.get("maxItems")
            count = f", {least} to {most}" if least and most else f", up to {most}" if most else ""
            return f"list of {_kind(item)}{count}"
        case {"type": "object"}:
            return "mapping of names"
        case {"type": "integer" | "number", "minimum": least, "maximum": most}:
            return f"{least} to {most}"
        case {"type": "boolean"}:
            return "boolean"
        case {"type": "string", "minLength": 1}:
            return "path"
    raise ValueError(f"no name for {field}")


# Metrics.


def _metrics(rows: Iterable[tuple[Metric, Iterable[str]]]) -> str:
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for family, labels in rows:
        name, named = family.name + _SUFFIXES.get(family.type, ""), ", ".join(f"`{label}`" for label in labels)
        lines.append(f"| `{name}` | {family.type} | {named} | {family.documentation.removesuffix('.')} |")
    return "\n".join(lines) + "\n"


@cache
def gateway_metrics() -> tuple[tuple[Metric, tuple[str, ...]], ...]:
    """What a gateway's `/metrics` has, each with its labels."""
    metrics = Metrics()
    metrics.took(policy="", codes="", wall_s=0)
    metrics.assumes(model="", assumption="")
    return tuple(_labelled(metrics.registry))


@cache
def inference_metrics() -> tuple[tuple[Metric, tuple[str, ...]], ...]:
    """What a model server's `/metrics` has, each with its labels; asked of one that holds nothing."""
    loaded = SimpleNamespace(id="m", digest_sha256="0", model=SimpleNamespace(dtype=torch.float32))
    engine = SimpleNamespace(
        waiting_requests=0,
        running_requests=0,
        batch_rows_max=1,
        kv_tokens_reserved=0,
        kv_tokens_max=1,
        prefix_tokens=0,
    )
    nothing = SimpleNamespace(all=list)
    service = SimpleNamespace(loaded=loaded, engine=engine, store=nothing, jobs=nothing, derived=nothing)
    return tuple(_labelled(ServerMetrics(service).registry))  # type: ignore[arg-type]


def _labelled(registry: CollectorRegistry) -> Iterator[tuple[Metric, tuple[str, ...]]]:
    """A family without a sample yet has its labels in the collector only, which keeps them to itself."""
    declared = dict(registry._names_to_collectors)  # noqa: SLF001
    for family in registry.collect():
        labels = next((tuple(sample.labels) for sample in family.samples), None)
        if labels is None:
            labels = declared[family.name]._labelnames  # type: ignore[attr-defined]  # noqa: SLF001
        yield family, tuple(label for label in labels if label != "le")


if __name__ == "__main__":
    sys.exit(main())
