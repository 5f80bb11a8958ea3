"""A job's progress as a stream that may leave: how many steps it has come further, tick by tick, and at the end its result.

Progress only grows, so a stream of it is a walk up a ladder whose height the gateway knows: what leaves at a tick is the
number of steps since the last release, announced and charged like whole quanta of text, which happen to have no bytes. The
price of its timing is therefore that of any stream. Two backends that have come as far by the same tick give the same release.
"""

from __future__ import annotations

from policy.canonical import Answer, Event, Malformed, Reached
from policy.release import Release


class Progress(Answer):
    """How far a backend says that a job is, and how much of that has left. Driven like any other answer."""

    __slots__ = ("_reached", "_released", "_steps_max")

    def __init__(self, *, steps_max: int) -> None:
        super().__init__(quantum_bytes=0, answer_bytes_max=0, tools_declared=frozenset())
        self._steps_max = steps_max
        self._reached = 0
        self._released = 0

    def add(self, event: Event) -> None:
        """Take in one event. A step back is none: the furthest one counts. Raises `Malformed` for a step beyond the last."""
        if not isinstance(event, Reached):
            super().add(event)
        elif not 0 <= event.step <= self._steps_max:
            raise Malformed("progress beyond its end")
        elif not self.finished:
            self._reached = max(self._reached, event.step)

    @property
    def ready(self) -> bool:
        """See `Answer.ready`."""
        return self.finished or self.quanta_now > 0

    @property
    def quanta_now(self) -> int:
        """How many steps the next piece announces."""
        return self._reached - self._released

    def take(self, *, idle_ticks: int, quanta: int) -> Release:
        """Release `quanta` steps."""
        self._released += quanta
        return Release(idle_ticks=idle_ticks, quanta=quanta, text="")
