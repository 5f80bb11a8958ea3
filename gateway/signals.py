"""What an operator's signals mean: SIGTERM and SIGINT stop, SIGHUP takes the policy file again."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any


def handle_signals(*, stop: Callable[[], None], reload: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Call these from now on, in the running loop. Reloads may overlap; whoever reloads keeps them apart."""
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly

    def on_hangup() -> None:
        task = loop.create_task(reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, on_hangup)
