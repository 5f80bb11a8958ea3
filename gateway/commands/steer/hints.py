"""What to do about a refusal: the server's message says what was wrong, a hint says what helps."""

from __future__ import annotations

import difflib
import re

from gateway.commands.steer.following import JobFailed
from gateway.commands.steer.server import Refused, Server, Unreachable

_BY_CODE = {
    "invalid_api_key": "Give a key with --key or WEIR_KEY. `weir up` prints one and keeps it in keys.json.",
    "steering_not_allowed": "The key's tenant needs `steering: true` in the gateway's policy (docs/policy.md).",
    "model_not_found": "Choose one of the key's models with --model: GET /v1/models lists them.",
    "vector_exists": "Names are taken once: choose another, or free it with `weir steer delete`.",
    "conflict": "Names are taken once: choose another, or free it with `weir steer delete`.",
    "egress_budget_exhausted": "Everything that leaves is charged. GET /v1/budget and `weir status` show what is left.",
    "unknown_url": "A gateway does not have this route. Ask the model server directly with --url.",
    "upstream_error": "The model server behind the gateway is down, or says what the gateway does not let through.",
    "jobs_full": "Wait for the jobs that are queued: `weir steer jobs`.",
    "queue_full": "The model server is busy; try again.",
    "bad_layer": "Layers are block outputs and count from 0.",
    "bad_layers": "Layers are block outputs and count from 0.",
    "wrong_model": "The vector was made on another model: extract it on this one.",
    "wrong_kind": "`weir steer show` says what kind a vector is; docs/inference.md which operations take it.",
    "bad_scale": "Scales are -100 to 100; operations without a scale in their formula take none.",
    "no_scale": "Only add, ablate, scale_projection, head_add and sae have a scale to be found.",
    "unknown_mean": "`weir steer show` lists the means that were measured when the vector was made.",
    "not_eligible": "See docs/inference.md, Selection, for the rules and how --param loosens them.",
    "nothing_eligible": "See docs/inference.md, Selection, for the rules and how --param loosens them.",
    "unreachable": "Even the largest scale is too weak here: choose another layer, or a smaller --target-kl.",
    "steering_diverged": "Far too strong: `weir steer calibrate` finds a scale that the model survives.",
    "not_finite": "Far too strong: `weir steer calibrate` finds a scale that the model survives.",
}
_NAMELESS = ("unknown_vector", "vector_not_found", "not_found")
_NEAR_MAX = 3
_NEAR_CUTOFF = 0.5  # of difflib's likeness: "hapy" finds "happy", "sad" does not


def hint(server: Server, fault: Refused | JobFailed, names: list[str]) -> str | None:
    """What helps, if anything is known to. `names` are the vectors that the command line named."""
    if fault.code in _NAMELESS:
        return _vectors_near(server, [*_quoted(str(fault)), *names])
    return _BY_CODE.get(fault.code or "")


def _quoted(message: str) -> list[str]:
    """What a message quotes: the model server says which name it did not know."""
    return re.findall(r"'([^']+)'", message)


def _vectors_near(server: Server, names: list[str]) -> str | None:
    """Vectors that there are, those that look like the name first."""
    try:
        known = [str(vector["id"]) for vector in server.vectors()]
    except (Refused, Unreachable):
        return None
    missing = [name for name in names if name not in known]
    if not missing:
        return None
    if not known:
        return "There are no vectors yet: `weir steer extract NAME --dataset sentiment --layer 18` makes one."
    near = difflib.get_close_matches(missing[0], known, n=_NEAR_MAX, cutoff=_NEAR_CUTOFF)
    if near:
        return f"No vector is called {missing[0]}. Did you mean {' or '.join(near)}?"
    return f"No vector is called {missing[0]}. `weir steer list` shows those there are ({len(known)})."
