"""Names of a tenant's own things at a backend: vectors, derived models, jobs. Each tenant has a name space to itself."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated

from msgspec import Meta

HANDLE_CHARS_MAX = 63
HANDLE_PATTERN = rf"[a-z0-9][a-z0-9._-]{{0,{HANDLE_CHARS_MAX - 1}}}"
Handle = Annotated[str, Meta(pattern=rf"^{HANDLE_PATTERN}\Z")]

_HANDLE = re.compile(HANDLE_PATTERN)


def upstream_handle(tenant: str, handle: str) -> str:
    """A tenant's vectors live in a name space of their own: a handle of one tenant means nothing to another."""
    return f"{tenant_space(tenant)}-{handle}"


def own_handle(tenant: str, name: str) -> str | None:
    """The inverse: the handle of a name in the tenant's space; None for every other name, and for what is no handle."""
    handle = name.removeprefix(f"{tenant_space(tenant)}-")
    return handle if handle != name and _HANDLE.fullmatch(handle) else None


def model_mark(model: str) -> str:
    """Eight hex digits that lead from a job id back to its model."""
    return hashlib.sha256(model.encode()).hexdigest()[:8]


def tenant_space(tenant: str) -> str:
    """What a backend knows a tenant by: a digest of its name, 16 hex digits."""
    return hashlib.sha256(tenant.encode()).hexdigest()[:16]
