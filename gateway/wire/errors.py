"""Error bodies in the shape OpenAI clients expect. Every text here is the gateway's own; no backend's words appear."""

from __future__ import annotations

from typing import Any

import msgspec

from policy.refusal import Reason, Refused
from policy.release import Ending, Outcome

# Codes that a backend may name in a 4xx: a closed list, so that a rejection helps its reader and carries few bits.
REJECTIONS: tuple[tuple[str, str], ...] = (
    ("rejected_by_model_server", "The model server rejected this request."),
    ("context_length_exceeded", "The prompt and max_tokens together exceed the model's context length."),
    ("kv_memory_exceeded", "The prompt and max_tokens together exceed the model server's memory for one request."),
    ("empty_prompt", "The prompt is empty."),
    ("text_too_long", "A contrast text is longer than the model's context length."),
    ("unknown_vector", "A steering vector id does not exist; POST /v1/steering/extract makes one."),
    ("unknown_op", "The steering operation is not one that this model server knows."),
    ("bad_scale", "A steering scale is out of range."),
    ("bad_layers", "A steering layer does not exist in this model."),
    ("bad_layer", "The layer to extract at does not exist in this model."),
    ("wrong_dimension", "A steering vector's dimension is not the model's residual width."),
    ("wrong_model", "A steering vector was made for another model."),
)

_REJECTING = frozenset(
    {400, 404, 409, 413, 422}
)  # the request is at fault; everything else is the backend's own trouble

_REASONS = {
    Outcome.BUDGET: Reason.OVER_BUDGET,
    Outcome.UPSTREAM_ERROR: Reason.UPSTREAM_ERROR,
    Outcome.TIMEOUT: Reason.UPSTREAM_TIMEOUT,
    Outcome.REJECTED: Reason.UPSTREAM_REFUSED,
    Outcome.NOT_FOUND: Reason.NOT_FOUND,
    Outcome.CONFLICT: Reason.CONFLICT,
}
_MESSAGES = {
    Outcome.BUDGET: (
        "The egress budget ended before the answer did. What was released stays charged. GET /v1/budget shows what is left."
    ),
    Outcome.UPSTREAM_ERROR: "The model server failed to give a valid answer.",
    Outcome.TIMEOUT: "The model server did not answer in time.",
    Outcome.NOT_FOUND: "There is nothing with this id.",
    Outcome.CONFLICT: "Something with this id exists already. Delete it first, or choose another id.",
}


def rejection_index(code: object) -> int:
    """The position of a backend's error code in the closed list; 0 for all others."""
    for index, (known, _) in enumerate(REJECTIONS):
        if known == code:
            return index
    return 0


def refusal_of(ending: Ending) -> Refused | None:
    """What an incomplete ending means to a client; None for a complete one."""
    if ending.outcome.complete:
        return None
    if ending.outcome is Outcome.REJECTED:
        code, message = REJECTIONS[ending.numbers[0] if ending.numbers else 0]
        return Refused(reason=Reason.UPSTREAM_REFUSED, message=message, code=code)
    return Refused(reason=_REASONS[ending.outcome], message=_MESSAGES[ending.outcome])


def outcome_of_status(status: int, *, stateful: bool) -> Outcome:
    """What a backend's non-2xx status means. `stateful` calls name things that may be missing or exist already."""
    if stateful and status == 404:
        return Outcome.NOT_FOUND
    if stateful and status == 409:
        return Outcome.CONFLICT
    return Outcome.REJECTED if status in _REJECTING else Outcome.UPSTREAM_ERROR


def error_body(refused: Refused) -> bytes:
    """`{"error": {...}}`, with the honest reset of a budget where there is one."""
    return msgspec.json.encode({"error": _error(refused)})


def error_event(refused: Refused) -> bytes:
    """The same as a server-sent event. The connection is aborted after it: clients take a clean end for a complete answer."""
    return b"data: " + error_body(refused) + b"\n\n"


def _error(refused: Refused) -> dict[str, Any]:
    shape = refused.reason.value
    error: dict[str, Any] = {
        "message": refused.message,
        "type": shape.type,
        "param": refused.param,
        "code": refused.code or shape.code,
    }
    if refused.resets_at_s is not None:
        error["resets_at"] = refused.resets_at_s
    if refused.account is not None:
        error["budget"] = refused.account.id
    return error
