"""The channel's pump: one byte device, one `Connection`, and no decisions.

What was said since the last `flush` is written at once, without a task switch, as far as the device takes it; only
when it takes no more does `write` wait for room. So an event costs one system call, and a burst costs one too. A flush
belongs at the end of each batch of work, not behind every message.

Rejected: a writer task behind a queue. It costs a wake-up for each message, which under emulation is a large part of
the round trip, and it hides from `Connection` what has really left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from protocol.connection import Connection, Event
from protocol.waits import Waits


class Device(Protocol):
    """A non-blocking byte device. Both calls raise `BlockingIOError` when they would have to wait, and nothing else.

    A write to nobody blocks or takes the bytes: it is the reader who finds out, by reading nothing.
    """

    def fileno(self) -> int:
        """What to wait for."""

    def read(self) -> bytes:
        """Bytes that are there; empty when the peer is away."""

    def write(self, data: memoryview) -> int:
        """How many bytes were taken."""


class PeerAwayError(Exception):
    """The device says that nobody is at the other end."""


class Link:
    """Moves bytes between `device` and `connection`; `dispatch` gets each batch of events."""

    def __init__(
        self,
        connection: Connection,
        device: Device,
        waits: Waits,
        dispatch: Callable[[list[Event]], None],
        unpaused: Callable[[int], None],
    ) -> None:
        self._connection = connection
        self._device = device
        self._waits = waits
        self._dispatch = dispatch
        self._unpaused = unpaused
        self._pending = memoryview(b"")
        self._blocked = False
        self._work = waits.event()
        self._timer = float("inf")
        self._earlier = waits.event()

    def flush(self) -> None:
        """Write what may leave, as far as the device takes it now."""
        if self._blocked:
            return
        if not self._write_pending():
            self._blocked = True
            self._work.set()
        for number in self._connection.take_unpaused():
            self._unpaused(number)

    def _write_pending(self) -> bool:
        """Whether all that may leave has left."""
        more = True
        try:
            while True:
                while self._pending:
                    self._pending = self._pending[self._device.write(self._pending) :]
                if not more:
                    return True
                # One frame of bulk data, so that what is urgent waits for no more than that.
                limit = self._connection.frame_size
                data = self._connection.data_to_send(limit)
                self._pending = memoryview(data)
                more = len(data) >= limit
        except BlockingIOError:
            return False

    async def write(self) -> None:
        """Wait for room whenever the device took no more; runs until cancelled."""
        while True:
            while self._blocked:
                await self._waits.writable(self._device.fileno())
                self._blocked = False
                self.flush()
            self._work = self._waits.event()
            await self._work.wait()

    async def read(self) -> None:
        """Read and dispatch until cancelled, or until the peer is away: then raise `PeerAwayError`."""
        while True:
            self.read_turn()
            self.flush()
            # Also between reads that find data: others want their turn.
            await self._waits.readable(self._device.fileno())

    def read_turn(self) -> None:
        """Read once and dispatch, for whoever waits for the device by other means; `PeerAwayError` as above.

        `flush` must follow, behind the whole batch.
        """
        try:
            data = self._device.read()
        except BlockingIOError:
            return
        if not data:
            raise PeerAwayError
        self._handle(self._connection.receive_data(data, self._waits.now()))

    async def keep_time(self) -> None:
        """Tell the connection the time whenever it asks to be told; runs until cancelled."""
        while True:
            self._timer = self._connection.deadline
            self._earlier = self._waits.event()
            await self._waits.event_until(self._earlier, self._timer)
            self._handle(self._connection.handle_time(self._waits.now()))
            self.flush()

    def _handle(self, events: list[Event]) -> None:
        if events:
            self._dispatch(events)
        if self._connection.deadline < self._timer:
            self._earlier.set()
