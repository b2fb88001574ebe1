"""When a guest agent has broken the rules, or begun anew, too often to be listened to. Pure.

One fault is an accident (a reset link loses bytes); a guest that goes on is either broken or hostile, and must cost a
bounded share of the host agent. So after `FAULTS` faults, or `RESTARTS` new beginnings of its own, within `PERIOD` it
is left alone for `PAUSE` seconds. Afterwards it is on probation: the next fault is enough, until a `PERIOD` went well.
"""

from __future__ import annotations

from collections import deque
from typing import Final

FAULTS: Final = 8
RESTARTS: Final = 100
"""An honest agent that dies ten times a second is no use either."""

PERIOD: Final = 10.0
PAUSE: Final = 5.0


class Conduct:
    """The record of one guest. `now` is in seconds of any steady clock."""

    def __init__(self) -> None:
        self._faults = deque[float](maxlen=FAULTS)
        self._restarts = deque[float](maxlen=RESTARTS)
        self._probation_ends = 0.0

    def fault(self, now: float) -> bool:
        """The guest broke a rule; whether that was once too often."""
        self._faults.append(now)
        return self._judged(now, now < self._probation_ends or _too_many(self._faults))

    def restart(self, now: float) -> bool:
        """The guest ended a generation without a fault; whether that was once too often."""
        self._restarts.append(now)
        return self._judged(now, _too_many(self._restarts))

    def _judged(self, now: float, too_often: bool) -> bool:
        if too_often:
            self._faults.clear()
            self._restarts.clear()
            self._probation_ends = now + PAUSE + PERIOD
        return too_often


def _too_many(times: deque[float]) -> bool:
    return len(times) == times.maxlen and times[-1] - times[0] <= PERIOD
