"""The policy document: YAML text to validated rules, or every mistake in it with line and column."""

from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from policy.contradictions import contradictions
from policy.forms import PolicyForm
from policy.mistakes import Mistake, Mistakes, Path, unknown
from policy.rules import Policy
from policy.yaml_nodes import Outline, Scalar, outline


def parse(text: str, *, name: str) -> Policy | Mistakes:
    """Rules, or every mistake at once. `name` is the file's name for messages; nothing is opened. Never raises."""
    document = outline(text)
    found = {*document.mistakes, *(document.mistake(path, message) for path, message in contradictions(document))}
    try:
        form = PolicyForm.model_validate(document.root)
    except ValidationError as error:
        found |= {_mistake(document, details) for details in error.errors() if not _is_reported(details)}
        assert found
    if found:
        return Mistakes(name=name, mistakes=tuple(sorted(found)))
    return form.rule()


def json_schema() -> dict[str, Any]:
    """JSON Schema of the document, for editors; committed as policy/schema.json."""
    schema = PolicyForm.model_json_schema()
    for shape in (schema, *schema["$defs"].values()):
        _drop_noise(shape)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Weir policy"} | schema


def _drop_noise(shape: dict[str, Any]) -> None:
    """Titles repeat the key; a null default says no more than that the key is not required; docstrings are wrapped."""
    shape.pop("title", None)
    for member in shape["properties"].values():
        member.pop("title", None)
        member["description"] = " ".join(member["description"].split())
        if member.get("default", ...) is None:
            del member["default"]


def _mistake(document: Outline, details: ErrorDetails) -> Mistake:
    kind, location = details["type"], details["loc"]
    is_key = kind == "value_error" and location[-1] == "[key]"  # how pydantic marks the key of a mapping
    path = _document_path(document, location[:-1] if is_key else location)
    match kind:
        case "extra_forbidden":
            message = unknown(str(path[-1]), _known_keys(path[:-1]), noun="key")
        case "missing":
            message = "is missing"
        case "model_type" | "dict_type":
            message = "must be a mapping, that is, lines of `key: value`"
        case "list_type":
            message = "must be a list"
        case "too_short":
            message = "must not be empty"
        case "too_long":
            message = f"must have at most {details['ctx']['max_length']} entries"
        case _:
            assert kind == "value_error", kind
            message = str(details["ctx"]["error"])
    return document.mistake(path, message, of_key=is_key or kind == "extra_forbidden")


def _document_path(document: Outline, location: Path) -> Path:
    """A single budget is validated as a list of one, so its index stands in the location but not in the document."""
    path: Path = ()
    for part in location:
        if not (isinstance(part, int) and isinstance(document.at(*path), dict)):
            path = (*path, part)
    return path


def _is_reported(details: ErrorDetails) -> bool:
    return isinstance(details["input"], Scalar) and details["input"].kind == "refused"


def _known_keys(path: Path) -> list[str]:
    schema = json_schema()
    shape = schema
    for part in path:
        if isinstance(part, str):
            shape = shape.get("properties", {}).get(part) or shape["additionalProperties"]
        else:
            shape = shape.get("items", shape)  # one of a list of budgets, which `anyOf` has already reached
        shape = shape.get("anyOf", [shape])[0]
        if "$ref" in shape:
            shape = schema["$defs"][shape["$ref"].rpartition("/")[2]]
    return list(shape["properties"])
