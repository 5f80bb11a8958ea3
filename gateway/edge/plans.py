"""Which codec answers which route: from an authenticated request and its body to a sanitised call, or a refusal."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, TypeVar

from aiohttp.web_request import BaseRequest

from gateway.serving import Serving
from gateway.wire import chat, completions, embeddings, messages, responses, steering
from gateway.wire.dialect import Call, Identity, ModelRules
from gateway.wire.errors import anthropic_error_body, error_body
from gateway.wire.fields import Request
from policy.refusal import Reason, Refused
from policy.rules import Tenant

JOB = re.compile(r"/v1/jobs/(job-([0-9a-f]{8})-[a-z0-9]{1,64})")

Asking = TypeVar("Asking", bound=Request)
Asking_contra = TypeVar("Asking_contra", bound=Request, contravariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An authenticated request."""

    request: BaseRequest
    serving: Serving
    tenant: Tenant
    route: str


Plan = Callable[[Asked, bytes, Identity], Call | Refused]


class Sanitise(Protocol[Asking_contra]):
    """A dialect's way from a checked request to a call."""

    def __call__(
        self, request: Asking_contra, rules: ModelRules, identity: Identity, *, tenant: str
    ) -> Call | Refused: ...


def _planned(parse: Callable[[bytes], Asking | Refused], sanitise: Sanitise[Asking]) -> Plan:
    def plan(asked: Asked, body: bytes, identity: Identity) -> Call | Refused:
        request = parse(body)
        if isinstance(request, Refused):
            return request
        refused = _may(asked, request.model, steering=request.steers)
        return refused or sanitise(request, asked.serving.models[request.model], identity, tenant=asked.tenant.name)

    return plan


PLANS: Mapping[tuple[str, str], Plan] = MappingProxyType(
    {
        ("POST", chat.UPSTREAM_PATH): _planned(chat.parse_request, chat.sanitise),
        ("POST", completions.UPSTREAM_PATH): _planned(completions.parse_request, completions.sanitise),
        ("POST", responses.PATH): _planned(responses.parse_request, responses.sanitise),
        ("POST", messages.PATH): _planned(messages.parse_request, messages.sanitise),
        ("POST", embeddings.UPSTREAM_PATH): _planned(embeddings.parse_request, embeddings.sanitise),
        ("POST", steering.EXTRACT_PATH): _planned(steering.parse_extract, steering.extract_call),
    }
)


def plan_job(asked: Asked, job_id: str, mark: str) -> Call | Refused:
    """Ask for a job's state. Its id leads back to its model."""
    for model in sorted(asked.tenant.models):
        if steering.model_mark(model) == mark:
            refused = _may(asked, model, steering=True)
            return refused or steering.job_call(job_id, asked.serving.models[model], tenant=asked.tenant.name)
    return Refused(reason=Reason.NOT_FOUND, message="There is no job with this id.")


def authorization(request: BaseRequest) -> str | None:
    """The `Authorization` header. Anthropic's clients send their key in a header of its own, on their own route only."""
    given = request.headers.get("Authorization")
    key = request.headers.get("x-api-key") if request.raw_path == messages.PATH else None
    return given if given is not None or key is None else f"Bearer {key}"


def errors(path: str) -> Callable[[Refused], bytes]:
    """How the clients of a path expect refusals to look."""
    return anthropic_error_body if path == messages.PATH else error_body


def _may(asked: Asked, model: str, *, steering: bool) -> Refused | None:
    found = asked.serving.model(model, asked.tenant)
    if isinstance(found, Refused):
        return found
    if steering and not asked.tenant.steering:
        message = "Steering is not enabled for your key. The operator can set 'steering: true' for your tenant."
        return Refused(reason=Reason.STEERING_NOT_ALLOWED, message=message, param="steering")
    return None
