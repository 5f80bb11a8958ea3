"""Watches the clocks that leases rest on. A wall clock that jumped, or a machine that slept or was restored, is told once."""

from __future__ import annotations

from gateway.ports import Clock
from policy.limits import CLOCK_STEP_S_MAX


class Vigil:
    """Compares every look with the one before, so that clocks that drift apart slowly are no alarm."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._boot_id = clock.boot_id()
        self._offset_s, self._suspended_s = self._reading()

    def look(self) -> str | None:
        """What happened to the clocks since the last look, in words; None if nothing did. Cheap: every tick asks."""
        before_s, slept_before_s = self._offset_s, self._suspended_s
        self._offset_s, self._suspended_s = self._reading()
        if abs(self._offset_s - before_s) > CLOCK_STEP_S_MAX:
            return f"the wall clock stepped by {self._offset_s - before_s:.1f} s"
        if self._suspended_s - slept_before_s > CLOCK_STEP_S_MAX:
            return f"the machine was suspended for {self._suspended_s - slept_before_s:.1f} s"
        return None

    def look_at_boot(self) -> str | None:
        """Whether this process was carried into another boot, as a restored machine may do."""
        before, self._boot_id = self._boot_id, self._clock.boot_id()
        return None if before == self._boot_id else "the machine has booted anew under this process"

    def _reading(self) -> tuple[float, float]:
        return self._clock.wall_s() - self._clock.monotonic_s(), self._clock.suspended_s()
