"""The system's clocks. The only place that reads them."""

from __future__ import annotations

import asyncio
import time


class SystemClock:
    """CLOCK_REALTIME for calendars, CLOCK_BOOTTIME for everything that must not step back or skip a suspend."""

    def wall_s(self) -> float:
        """Seconds since the Unix epoch."""
        return time.time()

    def monotonic_s(self) -> float:
        """Seconds since boot, suspend included."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep_until(self, deadline_s: float) -> None:
        """Return at or after `deadline_s`."""
        while (left_s := deadline_s - self.monotonic_s()) > 0:  # noqa: ASYNC110  the loop's clock stops in suspend
            await asyncio.sleep(left_s)
