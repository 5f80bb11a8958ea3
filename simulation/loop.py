"""An event loop in virtual time: sleeping takes none, nothing is read from the system, the same program runs the same way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualLoop(asyncio.BaseEventLoop):
    """`time()` moves only when every task waits, and then straight to the next timer. Threads are run in line."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._selector = self  # BaseEventLoop asks it how long to wait

    def time(self) -> float:
        """Virtual seconds."""
        return self._now_s

    def select(self, timeout_s: float | None) -> list[Any]:
        """Instead of waiting, it is later."""
        if timeout_s is None:
            raise RuntimeError("every task waits for something that will never happen")
        self._now_s += timeout_s
        return []

    def run_in_executor(  # type: ignore[override]  # typeshed writes it with type variable tuples
        self, executor: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """A thread whose work is over at once."""
        done: asyncio.Future[T] = self.create_future()
        done.set_result(func(*args))
        return done

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run to its end in a virtual loop; tasks that are left over are cancelled."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left))
        loop.close()
