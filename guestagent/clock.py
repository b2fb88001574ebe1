"""The guest's clock after a jump: a host that slept, or a guest that was paused, leaves it far behind.

Small differences are left alone. They are NTP's, which slews the clock, while a step makes time stand still or run
backwards for every program.
"""

from __future__ import annotations

import logging
import time

MOST_NANOSECONDS = 1_000_000_000
"""Difference above which the clock is stepped."""

_log = logging.getLogger(__name__)


def difference_to_step(guest: int, host: int) -> int:
    """Nanoseconds to step the guest's clock by; 0 when it is near enough."""
    difference = host - guest
    return difference if abs(difference) > MOST_NANOSECONDS else 0


def follow_host(host: int) -> int:
    """Step the clock to the host's (nanoseconds since the epoch) if it is far off; returns by how much.

    Where that is not allowed (a container), this is logged and the clock stays.
    """
    step = difference_to_step(time.time_ns(), host)
    if step:
        try:
            time.clock_settime_ns(time.CLOCK_REALTIME, time.time_ns() + step)
        except OSError as exc:
            _log.warning("the clock is off by %.1f s and cannot be set: %s", step / 1e9, exc.strerror)
            return 0
        _log.info("stepped the clock by %.1f s", step / 1e9)
    return step
