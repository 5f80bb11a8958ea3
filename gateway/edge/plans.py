"""Which codec answers which route: from an authenticated request and its body to a sanitised call, or a refusal."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, TypeVar

from aiohttp.web_request import BaseRequest

from gateway.serving import Serving
from gateway.wire import chat, completions, embeddings, jobs, messages, responses, steering, vectors
from gateway.wire.dialect import Call, Identity, ModelRules
from gateway.wire.errors import anthropic_error_body, error_body
from gateway.wire.fields import Request
from gateway.wire.handles import HANDLE_PATTERN, model_mark
from policy.refusal import Reason, Refused
from policy.rules import Tenant

MODEL_QUERY = r"(?:\?model=(?P<model>[A-Za-z0-9][A-Za-z0-9._-]{0,63}))?"  # the one query there is, letter for letter

Asking = TypeVar("Asking", bound=Request)
Asking_contra = TypeVar("Asking_contra", bound=Request, contravariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An authenticated request. `plan`: what becomes of it; None for what the gateway answers itself."""

    request: BaseRequest
    serving: Serving
    tenant: Tenant
    route: str
    plan: Plan | None = None
    named: Mapping[str, str] = field(default_factory=dict)  # by the path: an id, a model


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
        ("POST", steering.SELECT_PATH): _planned(steering.parse_select, steering.select_call),
        ("POST", steering.CALIBRATE_PATH): _planned(steering.parse_calibrate, steering.calibrate_call),
        ("POST", steering.EVALUATE_PATH): _planned(steering.parse_evaluate, steering.evaluate_call),
        ("POST", steering.ORTHOGONALIZE_PATH): _planned(steering.parse_orthogonalize, steering.orthogonalize_call),
        ("POST", vectors.COMBINE_PATH): _planned(vectors.parse_combine, vectors.combine_call),
    }
)


def _of_job(call: Callable[[jobs.JobId, ModelRules, str], Call]) -> Plan:
    """A question about a job. Its id leads back to its model, and says what a result of it looks like."""

    def plan(asked: Asked, body: bytes, identity: Identity) -> Call | Refused:
        job = jobs.job_id_of(asked.named["id"])
        for model in sorted(asked.tenant.models):
            if model_mark(model) == job.mark:
                refused = _may(asked, model, steering=True)
                return refused or call(job, asked.serving.models[model], asked.tenant.name)
        return Refused(reason=Reason.NOT_FOUND, message="There is no job with this id.")

    return plan


def _of_model(call: Callable[[str, ModelRules, str], Call]) -> Plan:
    """A question about what a tenant has at one model: the one that the query names, or the only one that it may use."""

    def plan(asked: Asked, body: bytes, identity: Identity) -> Call | Refused:
        mine = sorted(asked.tenant.models)
        model = asked.named.get("model") or (mine[0] if len(mine) == 1 else None)
        if model is None:
            message = f"Say which model: ?model=NAME, with one of {', '.join(mine)}."
            return Refused(reason=Reason.INVALID_REQUEST, message=message, param="model")
        refused = _may(asked, model, steering=True)
        return refused or call(asked.named.get("id", ""), asked.serving.models[model], asked.tenant.name)

    return plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route whose path names something."""

    name: str
    path: re.Pattern[str]
    plans: Mapping[str, Plan]  # by method


def _job_path(rest: str) -> re.Pattern[str]:
    return re.compile(rf"/v1/jobs/(?P<id>{jobs.JOB_ID_PATTERN}){rest}")


def _own_path(path: str, *, one: bool) -> re.Pattern[str]:
    return re.compile(path + (rf"/(?P<id>{HANDLE_PATTERN})" if one else "") + MODEL_QUERY)


ROUTES = (
    Route(
        name="/v1/jobs/{id}",
        path=_job_path(""),
        plans={
            "GET": _of_job(lambda job, rules, tenant: jobs.job_call(job, rules, tenant=tenant)),
            "DELETE": _of_job(lambda job, rules, tenant: jobs.job_call(job, rules, tenant=tenant, method="DELETE")),
        },
    ),
    Route(
        name="/v1/jobs/{id}/events",
        path=_job_path("/events"),
        plans={"GET": _of_job(lambda job, rules, tenant: jobs.events_call(job, rules, tenant=tenant))},
    ),
    Route(
        name=vectors.VECTORS_PATH,
        path=_own_path(vectors.VECTORS_PATH, one=False),
        plans={"GET": _of_model(lambda _, rules, tenant: vectors.list_call("vectors", rules, tenant=tenant))},
    ),
    Route(
        name=vectors.VECTORS_PATH + "/{id}",
        path=_own_path(vectors.VECTORS_PATH, one=True),
        plans={
            "GET": _of_model(lambda handle, rules, tenant: vectors.vector_call(handle, rules, tenant=tenant)),
            "DELETE": _of_model(
                lambda handle, rules, tenant: vectors.delete_call("vectors", handle, rules, tenant=tenant)
            ),
        },
    ),
    Route(
        name=vectors.DERIVED_PATH,
        path=_own_path(vectors.DERIVED_PATH, one=False),
        plans={"GET": _of_model(lambda _, rules, tenant: vectors.list_call("models", rules, tenant=tenant))},
    ),
    Route(
        name=vectors.DERIVED_PATH + "/{id}",
        path=_own_path(vectors.DERIVED_PATH, one=True),
        plans={
            "DELETE": _of_model(
                lambda handle, rules, tenant: vectors.delete_call("models", handle, rules, tenant=tenant)
            )
        },
    ),
)


PREFIXES = ("/v1/jobs/", vectors.VECTORS_PATH, vectors.DERIVED_PATH)  # of all paths that name something
ROUTE_NAMES = sorted({*(path for _, path in PLANS), *(route.name for route in ROUTES)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What stands at a path, for one method."""

    route: str
    plan: Plan
    named: Mapping[str, str] = field(default_factory=dict)


def _at_exact_paths() -> Mapping[str, Mapping[str, Found]]:
    at: dict[str, dict[str, Found]] = {}
    for (method, path), plan in PLANS.items():
        at.setdefault(path, {})[method] = Found(route=path, plan=plan)
    return at


_EXACT = _at_exact_paths()


def find(path: str) -> Mapping[str, Found]:
    """What stands at a path as it is written in the request line, by method; nothing stands nearly everywhere.

    A path of the table comes before one that names something: `POST .../combine` is no vector of that name.
    """
    exact = _EXACT.get(path, {})
    if not path.startswith(PREFIXES):
        return exact
    found: dict[str, Found] = {}
    for route in ROUTES:
        match = route.path.fullmatch(path)
        if match is not None:
            named = {name: value for name, value in match.groupdict().items() if value is not None}
            found |= {method: Found(route=route.name, plan=plan, named=named) for method, plan in route.plans.items()}
    return {**found, **exact}


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
