"""When to look at the sockets of one protocol. Pure: time comes in as seconds of any monotonic clock.

- The first wake-up after quiet means a look at once: it is what makes a port usable within milliseconds.
- Wake-ups that come sooner than `gap` after the last look wait for it to pass; each one that had to wait doubles the
  gap from `SHORTEST_GAP` to `LONGEST_GAP`. So a storm of n binds costs at most one look per 50 ms, and the first and
  last of it are still seen in time.
- A look that costs much (many sockets, emulation) lengthens the gap, so that looking takes a bounded share of a CPU.
  It is CPU time that counts: on a busy machine a look that was only interrupted must not delay the next one.
- Events come a few microseconds before a dump can show them. After a look that found nothing, further looks follow at
  `RESCANS`; after one that found something, one does, since another event may have come with it.
- A tick looks without being asked: slowly when events cover the opening and closing of ports, quickly when they do not.
  What a slow tick finds was missed by the events, and is counted as soon as no late event has explained it.
"""

from __future__ import annotations

import enum
import math

SHORTEST_GAP, LONGEST_GAP = 0.005, 0.05
"""Seconds between two looks that wake-ups ask for."""

RESCANS = (0.002, 0.01, 0.05)
"""Seconds after a wake-up's look at which to look again."""

RESCAN_AFTER_FIND = 0.03
"""Seconds after a look that found something until the next: when whoever waited for the port has been let through."""

SAFETY_TICK, IDLE_TICK, POLL_TICK = 5.0, 30.0, 0.25
"""Seconds between looks that nothing asks for: with live events, after long quiet, and without live events.

Under emulation one tick costs 18 ms of CPU, so a guest in which nothing happens is looked at ever more rarely."""

LATE = 0.2
"""Seconds that an event may come after the tick that found its change: destroyed sockets wait for RCU."""

REST = 4
"""The next wake-up's look waits this many times the CPU time of the last one: at most a fifth of a CPU is spent."""

LONGEST_REST = 0.5
"""Seconds: however long a look takes, nobody waits longer than this for the next."""

_MAX_DOUBLINGS = 8
_ROUNDING = 1e-6


class Cause(enum.StrEnum):
    """Why a look is taken."""

    WAKEUP = "wakeup"
    RESCAN = "rescan"
    TICK = "tick"


class DumpSchedule:
    """Decides the time of every look at one protocol."""

    def __init__(self, now: float) -> None:
        self._covered = False
        self._quiet_ticks = 0
        self._woken = False
        self._had_to_wait = False
        self._gap = SHORTEST_GAP
        self._earliest = now
        self._rescans: list[float] = []
        self._tick = now
        self._unexplained = 0
        self._unexplained_until = math.inf
        self.misses = 0
        """Changes that only the safety tick found although events were live."""

    def cover(self, covered: bool, now: float) -> None:
        """Say whether live events see both the opening and the closing of ports."""
        if covered != self._covered:
            self._covered = covered
            self._tick = min(self._tick, now + self._interval)

    @property
    def covered(self) -> bool:
        """Whether live events see both the opening and the closing of ports."""
        return self._covered

    def wake(self, now: float) -> None:
        """An event came: look soon."""
        self._unexplained = self._quiet_ticks = 0
        if not self._woken:
            self._woken = True
            self._had_to_wait = now < self._earliest

    def wait(self, now: float) -> float:
        """Seconds during which further events change nothing: until the look that waits already."""
        return max(self._earliest - now, 0.0) if self._woken else 0.0

    def due(self) -> float:
        """Time of the next look."""
        wanted = min(self._rescans[0] if self._rescans else math.inf, self._tick)
        return min(self._earliest, wanted) if self._woken else wanted

    def begin(self, now: float) -> Cause | None:
        """Start the look that is due, None if none is. `finish` must follow."""
        self._settle(now)
        if now + _ROUNDING < self.due():
            return None
        if self._woken:
            self._woken = False
            self._gap = min(self._gap * 2, LONGEST_GAP) if self._had_to_wait else SHORTEST_GAP
            return Cause.WAKEUP
        if self._rescans and self._rescans[0] <= now + _ROUNDING:
            return Cause.RESCAN
        return Cause.TICK

    def finish(self, cause: Cause, changes: int, cost: float, now: float) -> None:
        """The look that `begin` started found `changes` and took `cost` seconds of CPU."""
        if cause is Cause.TICK:
            self._quiet_ticks = 0 if changes else self._quiet_ticks + 1
        self._tick = now + self._interval
        match cause:
            case Cause.WAKEUP:
                self._earliest = now + max(self._gap, min(REST * cost, LONGEST_REST))
                busy = self._gap > SHORTEST_GAP
                steps = (RESCAN_AFTER_FIND,) if changes and not busy else RESCANS
                self._rescans = [now + step for step in steps if not busy or step >= self._gap]
            case Cause.RESCAN:
                self._rescans = [time for time in self._rescans if time > now]
            case Cause.TICK:
                if changes and self._covered:
                    self._unexplained += changes
                    self._unexplained_until = now + LATE

    def failed(self, now: float) -> None:
        """The look that `begin` started gave no answer: nothing is known, so look again, but not at once."""
        self._gap = LONGEST_GAP
        self._earliest = now + self._gap
        self._woken = self._had_to_wait = True
        self._tick = now + self._interval

    @property
    def _interval(self) -> float:
        if not self._covered:
            return POLL_TICK
        return min(SAFETY_TICK * (1 << min(self._quiet_ticks, _MAX_DOUBLINGS)), IDLE_TICK)

    def _settle(self, now: float) -> None:
        if self._unexplained and now >= self._unexplained_until:
            self.misses += self._unexplained
            self._unexplained = 0
