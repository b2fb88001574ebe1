"""A wait whose end others may bring nearer, without waking the task that waits.

An event would wake it, so that it could see that there is nothing to do yet and wait again. Under emulation that is a
millisecond, spent just when whoever waited for the news of a port comes back with its first connection.
"""

from __future__ import annotations

import trio


class Timer:
    """One task waits, any other may hurry it."""

    def __init__(self) -> None:
        self._scope = trio.CancelScope()

    async def wait(self, until: float) -> None:
        """Return at `until` (trio's clock, may be infinite), or earlier if `hurry` said so meanwhile."""
        with trio.CancelScope(deadline=until) as self._scope:
            await trio.sleep_forever()

    def hurry(self, until: float) -> None:
        """The present wait ends at `until` at the latest; without one, nothing happens."""
        if until < self._scope.deadline:
            self._scope.deadline = until
