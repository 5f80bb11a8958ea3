"""What was measured and how, in words: the same lines for every report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

UNTOLD = "not told by the gateway"


def facts(document: Mapping[str, Any], request: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values. `request` is the one that the texts are taken from."""
    model, server = document["model"], document["server"]
    found = [
        ("model", f"{model['id']}{_several(model['layers'], 'layers')}{_also(model['dtype'])}"),
        ("model digest", model["digest"] or UNTOLD),
        ("asked", f"{'a gateway' if server['is_gateway'] else 'the model server'} at {server['url']}"),
        ("made", f"{document['made']} by {document['made_by']}"),
        ("jobs", ", ".join(document["jobs"].values())),
        *_texts(document, request),
    ]
    return [*found, *((f"vector {vector['id']}", vector_text(vector)) for vector in document["vectors"])]


def vector_text(vector: Mapping[str, Any]) -> str:
    """How it was made, as far as it is told."""
    parts = [str(vector["kind"])] if "kind" in vector else []
    if "layers" in vector:
        parts.append(f"layers {', '.join(map(str, vector['layers']))}")
    told = [name for name in ("method", "token", "dataset", "dataset_digest", "model_digest") if vector.get(name)]
    parts += [f"{name.replace('_', ' ')} {vector[name]}" for name in told]
    return "; ".join(parts) or "deleted since"


def use_text(steering: Mapping[str, Any]) -> str:
    """A steering object on a line."""
    uses = []
    for use in steering.get("vectors", []):
        rest = {name: value for name, value in use.items() if name not in ("id", "op", "layers", "scale")}
        layers = use.get("layers")
        where = (
            "" if layers is None else f" at layers {layers if isinstance(layers, str) else ', '.join(map(str, layers))}"
        )
        scale = f" × {use['scale']}" if "scale" in use else ""
        more = f" {json.dumps(rest, ensure_ascii=False)}" if rest else ""
        uses.append(f"{use.get('op', 'add')} {use['id']}{scale}{where}{more}")
    conflict = steering.get("conflict")
    return "; ".join(uses) + (f" ({conflict})" if conflict and len(uses) > 1 else "")


def _texts(document: Mapping[str, Any], request: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    if "dataset" in request:
        told: Mapping[str, Any] = next((one for one in document["datasets"] if one["id"] == request["dataset"]), {})
        size = f", {told['train']} + {told['test']} texts a side (fitted + held out)" if "train" in told else ""
        found.append(("dataset", f"{request['dataset']}{size}"))
        found.append(("dataset digest", told.get("digest", UNTOLD)))
    given = [name for name in ("prompts", "positive", "negative") if name in request]
    found += [(f"{name} given", str(len(request[name]))) for name in given]
    return [*found, ("chat template", "yes" if request.get("chat") else "no")]


def _several(count: int | None, noun: str) -> str:
    return "" if count is None else f", {count} {noun}"


def _also(word: str | None) -> str:
    return "" if word is None else f", {word}"


def columns(points: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Those of the names that anything was measured for."""
    return [name for name in names if any(point[name] is not None for point in points)]
