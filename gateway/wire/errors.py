"""Error bodies in the shapes that OpenAI and Anthropic clients expect. Every text here is the gateway's own, no backend's."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.wire.rejections import REJECTIONS
from policy.refusal import Reason, Refused
from policy.release import Ending, Outcome

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
    Outcome.LICENCE: Reason.UNLICENSED,
    Outcome.UNWITNESSED: Reason.UNWITNESSED,
}
_MESSAGES = {
    Outcome.BUDGET: (
        "The egress budget ended before the answer did. What was released stays charged. GET /v1/budget shows what is left."
    ),
    Outcome.UPSTREAM_ERROR: "The model server failed to give a valid answer.",
    Outcome.TIMEOUT: "The model server did not answer in time.",
    Outcome.NOT_FOUND: "There is nothing with this id.",
    Outcome.LICENCE: "The gateway's operating licence ended before the answer did. What was released stays charged.",
    Outcome.UNWITNESSED: "Nobody has witnessed the gateway's audit log lately. What was released stays charged.",
    Outcome.CONFLICT: "Something with this id exists already. Delete it first, or choose another id.",
}

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    409: "invalid_request_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}  # by status; all others are `api_error`


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


def anthropic_error_body(refused: Refused) -> bytes:
    """`{"type": "error", "error": {...}}` as Anthropic's clients know it, with our code and a budget's reset beside it."""
    shape = refused.reason.value
    error = {
        "type": _ANTHROPIC_TYPES.get(shape.status, "api_error"),
        "message": refused.message,
        "code": refused.code or shape.code,
        **_budget(refused),
    }
    return msgspec.json.encode({"type": "error", "error": error})


def _error(refused: Refused) -> dict[str, Any]:
    shape = refused.reason.value
    return {
        "message": refused.message,
        "type": shape.type,
        "param": refused.param,
        "code": refused.code or shape.code,
        **_budget(refused),
    }


def _budget(refused: Refused) -> dict[str, Any]:
    budget: dict[str, Any] = {}
    if refused.resets_at_s is not None:
        budget["resets_at"] = refused.resets_at_s
    if refused.account is not None:
        budget["budget"] = refused.account.id
    return budget
