"""The system's clocks. The only place that reads them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path


class SystemClock:
    """CLOCK_REALTIME for calendars, CLOCK_BOOTTIME for everything that must not step back or skip a suspend."""

    def wall_s(self) -> float:
        """Seconds since the Unix epoch."""
        return time.time()

    def monotonic_s(self) -> float:
        """Seconds since boot, suspend included."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def suspended_s(self) -> float:
        """Seconds of `monotonic_s` that the machine was suspended for."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)

    def boot_id(self) -> str:
        """The kernel's random name of this boot."""
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    async def sleep_until(self, deadline_s: float) -> None:
        """Return at or after `deadline_s`."""
        while (left_s := deadline_s - self.monotonic_s()) > 0:  # noqa: ASYNC110  the loop's clock stops in suspend
            await asyncio.sleep(left_s)
