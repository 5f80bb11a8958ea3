"""Mistakes that no single field makes: values that contradict each other, names that name nothing.

These look at the document, not at rules built from it, so they speak even when some other field is wrong.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

from policy.address import address, collide
from policy.mistakes import Path, quoted, unknown
from policy.public_key import SIGNERS_MAX, auditor_key, signer_key
from policy.quantity import answer_tokens, key_digest, whole_duration_s, whole_number, window
from policy.rules import ANSWER_TOKENS_MAX, PublicKey
from policy.yaml_nodes import NOTHING, Node, Outline, Scalar

T = TypeVar("T")


def contradictions(document: Outline) -> Iterator[tuple[Path, str]]:
    yield from _listener_contradictions(document)
    for name in _names(document.at("models")):
        yield from _model_contradictions(document, name)
    for name in _names(document.at("tenants")):
        yield from _repeated_windows(document, ("tenants", name, "budget"))
    yield from _unknown_models(document)
    yield from _repeated_keys(document)
    yield from _key_contradictions(document, ("audit", "auditors"), auditor_key)
    yield from _key_contradictions(document, ("licence", "keys"), signer_key)
    auditors = len(list(Outline.members(document.at("audit", "auditors"))))
    if auditors == 1:
        yield ("audit", "auditors"), "one auditor who loses a key loses the record: name at least two, or none"
    signers = len(list(Outline.members(document.at("licence", "keys"))))
    threshold = _try(partial(whole_number, most=SIGNERS_MAX), document.at("licence", "threshold"))
    if signers and threshold is not None and threshold > signers:
        yield (
            ("licence", "threshold"),
            f"must not be more than the number of keys, {signers}: no licence could be signed",
        )
    meters = [_text(meter) for _, meter in Outline.members(document.at("meters"))]
    if meters and "raw" not in meters:
        yield ("meters",), "must name raw: every answer is charged raw when it leaves, other meters refund"
    has_scorer = document.at("scorer") is not NOTHING
    if "language_model" in meters and not has_scorer:
        yield ("meters", meters.index("language_model")), "needs a `scorer:` to ask; see docs/policy.md"
    if has_scorer and "language_model" not in meters:
        yield ("scorer",), "is not asked, because `meters` does not name language_model"
    for index, meter in enumerate(meters):
        if meter in meters[:index]:
            yield ("meters", index), f"{quoted(meter)} is already listed"


def _key_contradictions(document: Outline, path: Path, read: Callable[[str], PublicKey]) -> Iterator[tuple[Path, str]]:
    """No name and no key twice: who signs under two names still signs once."""
    names: set[str] = set()
    owners: dict[str, str] = {}
    for index, node in Outline.members(document.at(*path)):
        key = _try(read, node)
        if key is None:
            continue
        if key.name in names:
            yield (*path, index), f"the name {quoted(key.name)} is already listed"
        elif key.encoded in owners:
            yield (*path, index), f"is the key of {quoted(owners[key.encoded])}, under another name"
        names.add(key.name)
        owners.setdefault(key.encoded, key.name)


def _listener_contradictions(document: Outline) -> Iterator[tuple[Path, str]]:
    listen, admin = _try(address, document.at("listen")), _try(address, document.at("admin"))
    if listen and admin and collide(listen, admin):
        yield ("admin",), "must not be where `listen` is: metrics and health are not for clients"


def _model_contradictions(document: Outline, name: str) -> Iterator[tuple[Path, str]]:
    weights = document.at("models", name, "weights")
    if isinstance(weights, dict) and ("file" in weights) == ("parameters" in weights):
        yield ("models", name, "weights"), "set either file or parameters"
    recounted = _text(document.at("models", name, "usage")) == "recount"
    if recounted != (document.at("models", name, "tokenizer") is not NOTHING):
        yield ("models", name), "`usage: recount` and `tokenizer` go together: set both or neither"
    most = _try(answer_tokens, document.at("models", name, "answer_tokens_max")) or ANSWER_TOKENS_MAX
    usual = _try(answer_tokens, document.at("models", name, "answer_tokens_default"))
    if usual is not None and usual > most:
        yield ("models", name, "answer_tokens_default"), f"must not be more than answer_tokens_max, {most}"
    budgets = ("models", name, "budgets")
    for index, budget in Outline.members(document.at(*budgets)):
        if isinstance(budget, dict):
            yield from (((*budgets, index, *key), message) for key, message in _budget_contradictions(budget))
    yield from _repeated_windows(document, budgets)


def _budget_contradictions(budget: dict[str, Node]) -> Iterator[tuple[Path, str]]:
    if len({"fraction", "time_to_theft", "bytes"} & budget.keys()) != 1:
        yield (), "set exactly one of fraction, time_to_theft and bytes"
    over = _try(window, budget.get("window", NOTHING))
    time_to_theft_s = _try(whole_duration_s, budget.get("time_to_theft", NOTHING))
    if over is None or time_to_theft_s is None:
        return
    if over.duration_s is None:
        yield ("time_to_theft",), "a lifetime has no rate; set its budget by fraction or bytes"
    elif time_to_theft_s < over.duration_s:
        yield ("time_to_theft",), f"is shorter than the window of {over.name}, which would let the whole model leave"


def _repeated_windows(document: Outline, path: Path) -> Iterator[tuple[Path, str]]:
    seen: set[str] = set()
    for index, budget in Outline.members(document.at(*path)):
        over = _try(window, dict(Outline.members(budget)).get("window", NOTHING))
        if over is not None and over.name in seen:
            yield (*path, index, "window"), f"there is already a budget for {over.name}"
        elif over is not None:
            seen.add(over.name)


def _unknown_models(document: Outline) -> Iterator[tuple[Path, str]]:
    models = _names(document.at("models"))
    for tenant in _names(document.at("tenants")):
        for index, model in Outline.members(document.at("tenants", tenant, "models")):
            if models and isinstance(model, Scalar) and model.kind == "text" and model.text not in models:
                yield ("tenants", tenant, "models", index), unknown(model.text, models, noun="model")


def _repeated_keys(document: Outline) -> Iterator[tuple[Path, str]]:
    owners: dict[str, str] = {}
    for tenant in _names(document.at("tenants")):
        for index, key in Outline.members(document.at("tenants", tenant, "keys")):
            digest = _try(key_digest, key)
            if digest in owners:
                yield ("tenants", tenant, "keys", index), f"this key already belongs to tenant {quoted(owners[digest])}"
            elif digest is not None:
                owners[digest] = tenant


def _names(node: Node) -> list[str]:
    return list(node) if isinstance(node, dict) else []


def _text(node: Node) -> str:
    return node.text if isinstance(node, Scalar) else ""


def _try(read: Callable[[str], T], node: Node) -> T | None:
    """Nothing for what does not parse: the forms report that."""
    try:
        return read(_text(node))
    except ValueError:
        return None
