"""The seam between the protocol's pumps and an event loop.

The pumps (`protocol.link`, `protocol.relay`) are the same in both agents and know no event loop: an agent hands them
`Waits`, which trio fills with its own functions. That keeps this package free of trio, and lets a test wait for
whatever it likes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol


class Event(Protocol):
    """Happens once; like `trio.Event`."""

    def set(self) -> None:
        """Let all waiters go on."""

    async def wait(self) -> object:
        """Return once it is set."""


@dataclass(frozen=True, slots=True)
class Waits:
    """What the pumps wait with, as in `trio.lowlevel` and `trio`."""

    readable: Callable[[int], Awaitable[object]]
    writable: Callable[[int], Awaitable[object]]
    event: Callable[[], Event]
    now: Callable[[], float]
    event_until: Callable[[Event, float], Awaitable[object]]
    """Return once the event is set, or at that time."""
