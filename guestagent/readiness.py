"""Many descriptors, one task: calls back whatever of them became ready, then lets the channel write once.

The channel's own port is one of them, so a message from the host and the answer to it pass through here alone.

trio's own way, a task per descriptor that waits in `wait_readable`, costs a task switch and two epoll_ctl calls for
each message, and two tasks to start and end for each connection. Under emulation that is most of the work of a short
connection. An epoll set is itself readable while something in it is ready (epoll(7)), so trio waits for the set alone.

While something comes, the set is waited for here, up to `LINGER` at a time and `TURN` in all, before trio gets its
turn: what is about to come is most often the answer of the program that was just given bytes, or the next question. One
turn of trio's loop is a third of the work of a round trip. What else waits in trio is that much later, and only while
bytes flow.

What is ready is level-triggered: a callback may leave data behind, others then get their turn first. A callback that
raises ends its own stream and nothing else.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any, NoReturn
from typing import Protocol as Seam

import trio

_BATCH = 64
"""Descriptors served before the channel gets its turn."""

LINGER = 0.002
"""Seconds without anything after which trio gets its turn."""

TURN = 0.01
"""Seconds after which trio gets its turn, whatever happens here."""


class Pollable(Seam):
    """Whoever waits for a descriptor: the handler of a stream, or the channel's port."""

    def ready(self, events: int) -> None:
        """Act on `events` (EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP) without blocking. They may be out of date."""


class Readiness:
    """The descriptors that are waited for. `settled` is called after each batch, `failed` in an except block."""

    def __init__(self, *, settled: Callable[[], None], failed: Callable[[Any], None]) -> None:
        self._settled = settled
        self._failed = failed
        self._epoll = select.epoll()
        self._pollables: dict[int, Pollable] = {}

    def close(self) -> None:
        """Give the epoll set back."""
        self._epoll.close()

    def register(self, descriptor: int, events: int, pollable: Pollable) -> None:
        """Call `pollable.ready` whenever `events`, an error or a hang-up are there."""
        self._epoll.register(descriptor, events)
        self._pollables[descriptor] = pollable

    def modify(self, descriptor: int, events: int) -> None:
        """Wait for other events; errors and hang-ups always count."""
        self._epoll.modify(descriptor, events)

    def unregister(self, descriptor: int) -> None:
        """Wait for nothing any more. Call before closing: a forked child may hold the same socket for a moment."""
        if self._pollables.pop(descriptor, None) is not None:
            with contextlib.suppress(FileNotFoundError):
                self._epoll.unregister(descriptor)

    async def run(self) -> NoReturn:
        """Call back until cancelled."""
        poll = self._epoll.poll
        while True:
            await trio.lowlevel.wait_readable(self._epoll)
            ready = poll(0, _BATCH)
            turn = monotonic() + TURN
            while ready:
                self._serve(ready)
                ready = poll(LINGER, _BATCH) if monotonic() < turn else []

    def _serve(self, ready: Iterable[tuple[int, int]]) -> None:
        pollables = self._pollables
        for descriptor, events in ready:
            pollable = pollables.get(descriptor)
            if pollable is None:
                continue  # closed by a callback of the same batch
            try:
                pollable.ready(events)
            except Exception:  # a bug in one stream must not end the others; `failed` logs it
                self._failed(pollable)
        self._settled()
