"""trio's functions in the form in which the protocol's pumps ask for them."""

from __future__ import annotations

import trio

from protocol.waits import Event, Waits


async def _event_until(event: Event, deadline: float) -> None:
    with trio.move_on_at(deadline):
        await event.wait()


TRIO_WAITS = Waits(
    readable=trio.lowlevel.wait_readable,
    writable=trio.lowlevel.wait_writable,
    event=trio.Event,
    now=trio.current_time,
    event_until=_event_until,
)
