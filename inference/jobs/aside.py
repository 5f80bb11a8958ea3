"""Long calculations beside the engine's thread, which goes on serving meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

POLL_S = 0.005
"""How long a step of everybody else may be held up by looking whether it is done."""

Result = TypeVar("Result")


def aside(work: Callable[[], Result]) -> Generator[float, None, Result]:
    """What `work` returns or raises, from a thread of its own; yields 0.0 until then.

    For what takes longer than a step and cannot be cut in pieces: a decomposition, a file that is parsed. Once begun it
    runs to its end, whoever closes the generator; it must touch nothing that changes.
    """
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="aside")
    future = executor.submit(work)
    executor.shutdown(wait=False)
    while not future.done():
        wait([future], timeout=POLL_S)
        yield 0.0
    return future.result()
