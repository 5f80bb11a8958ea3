"""Why a request is refused: the closed list, with the HTTP status and OpenAI error fields each one becomes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from policy.budget import Account


class Shape(NamedTuple):
    """How a reason looks from outside."""

    status: int
    type: str
    code: str


class Reason(Enum):
    """What went wrong. The value is what a client sees; the name is the metrics label, in lower case."""

    INVALID_REQUEST = Shape(400, "invalid_request_error", "invalid_request")
    INVALID_JSON = Shape(400, "invalid_request_error", "invalid_json")
    UNSUPPORTED_FIELD = Shape(400, "invalid_request_error", "unsupported_parameter")
    UPSTREAM_REFUSED = Shape(400, "invalid_request_error", "rejected_by_model_server")
    UNKNOWN_KEY = Shape(401, "authentication_error", "invalid_api_key")
    STEERING_NOT_ALLOWED = Shape(403, "permission_error", "steering_not_allowed")
    UNKNOWN_ROUTE = Shape(404, "invalid_request_error", "unknown_url")
    UNKNOWN_MODEL = Shape(404, "invalid_request_error", "model_not_found")
    NOT_FOUND = Shape(404, "invalid_request_error", "not_found")
    WRONG_METHOD = Shape(405, "invalid_request_error", "method_not_allowed")
    REQUEST_TIMEOUT = Shape(408, "invalid_request_error", "request_timeout")
    CONFLICT = Shape(409, "invalid_request_error", "conflict")
    REQUEST_TOO_LARGE = Shape(413, "invalid_request_error", "request_too_large")
    WRONG_CONTENT_TYPE = Shape(415, "invalid_request_error", "unsupported_content_type")
    OVER_BUDGET = Shape(429, "insufficient_quota", "egress_budget_exhausted")
    TOO_MANY_STREAMS = Shape(429, "rate_limit_error", "too_many_streams")
    INTERNAL = Shape(500, "api_error", "internal_error")
    UPSTREAM_ERROR = Shape(502, "api_error", "upstream_error")
    LEDGER_UNAVAILABLE = Shape(503, "api_error", "ledger_unavailable")
    UNLICENSED = Shape(503, "api_error", "licence_not_in_force")
    UNWITNESSED = Shape(503, "api_error", "log_not_witnessed")
    DRAINING = Shape(503, "api_error", "shutting_down")
    UPSTREAM_TIMEOUT = Shape(504, "api_error", "upstream_timeout")

    @property
    def label(self) -> str:
        """The metrics label and log field."""
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A refusal as a value. `message` is for people and never quotes a backend."""

    reason: Reason
    message: str
    param: str | None = None
    code: str | None = None  # where the reason's own code is too coarse
    retry_after_s: int | None = None
    resets_at_s: int | None = None
    account: Account | None = None  # the budget that is exhausted
