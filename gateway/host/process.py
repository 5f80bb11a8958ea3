"""A serving process: its limits, its event loop, its exit status."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
from collections.abc import Callable, Coroutine

import uvloop

from gateway import log
from gateway.ports import AuditFailed, LedgerUnavailable

GC_THRESHOLDS = (20_000, 20, 50)  # an answer makes a few hundred objects, nearly all freed by reference counts
CANNOT_SERVE = 1
AUDIT_FAILED = 74  # EX_IOERR of sysexits.h


class CannotServe(Exception):
    """It makes no sense to begin, or to go on."""


def run(serve: Callable[[], Coroutine[None, None, None]]) -> int:
    """Run it to its end; returns the exit status."""
    # A connection is a descriptor; the usual soft limit of 1024 would be reached long before the gateway's own cap.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    async def settled() -> None:
        gc.freeze()  # what start-up made stays: it need not be looked at again and again
        gc.set_threshold(*GC_THRESHOLDS)
        await serve()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(settled())
    except AuditFailed as fault:
        stop_unrecorded(fault)
    except (CannotServe, LedgerUnavailable, OSError) as fault:
        log.problem("cannot serve", error=str(fault))
        return CANNOT_SERVE
    return 0


def stop_unrecorded(fault: Exception) -> None:
    """End at once: nothing may leave that was not recorded, so there is no cleanup and no flushing of sockets."""
    log.problem("audit log failed; stopping", error=str(fault))
    os._exit(AUDIT_FAILED)
