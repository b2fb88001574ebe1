"""Whether the agent still moves, in memory that it shares with its supervisor.

An agent that dies is noticed by the kernel. One that hangs (a system call that never returns, a loop without an end, a
process that somebody stopped) is noticed by nobody in the guest, and the host can do nothing but wait for it. So the
agent's event loop counts every `BEAT` seconds, and the supervisor looks every `LOOK`: two looks without a count between
them are one hang.

Two and not one, because time may jump: after a suspension both sleeps are over at once, and the supervisor may come
first. Counted and not timed, for the same reason.

Rejected: the host's pings as the measure (an agent whose host is away would be killed for it); systemd's WatchdogSec=
(it would end the supervisor as well, and know no jumps); `faulthandler.dump_traceback_later` (a thread for each beat).
"""

from __future__ import annotations

import mmap

BEAT = 20.0
"""Seconds between two counts."""

LOOK = 25.0
"""Seconds between two looks: each sees a count, unless the loop is 5 s late."""

MOST_MISSED = 2
"""Looks in a row without a count that are too many."""


class Heartbeat:
    """The count; make it before the fork."""

    def __init__(self) -> None:
        self._count = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")

    def beat(self) -> None:
        """The agent moves."""
        self._count[0] += 1

    @property
    def count(self) -> int:
        """How often it was seen moving."""
        return self._count[0]


class Watchdog:
    """What the supervisor knows from its looks. Pure."""

    def __init__(self) -> None:
        self._seen: int | None = None
        self._missed = 0

    def hangs(self, count: int) -> bool:
        """Whether the agent hangs, now that its count is `count`."""
        self._missed = self._missed + 1 if count == self._seen else 0
        self._seen = count
        return self._missed >= MOST_MISSED
