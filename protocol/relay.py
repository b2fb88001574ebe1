"""Ties one connected stream socket to one tunnelled stream, so that it ends as it would without a tunnel.

What arrives on one side leaves on the other in order. The end of data (FIN) travels per direction; an abort (RST)
aborts the other side; a reader that stops reading stops the writer, by credit and by not reading the socket. Both
agents use this class, and tell it apart by nothing.

Bytes from the channel are given to the socket at once, without a task switch; only what it does not take waits here,
and that is never more than the stream's window, in one buffer, since a hostile peer may send single bytes. Bytes from
the socket are read only while the stream has room.

What can go wrong: the socket fails while nothing is read from it because there is no room. That is noticed with the
next write or read, not before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from protocol.connection import Connection
from protocol.streams import Stream
from protocol.waits import Waits

_SHUT_WR = 1  # the same number on every system with sockets (shutdown(2))


class Socket(Protocol):
    """A connected, non-blocking stream socket."""

    def fileno(self) -> int:
        """What to wait for."""

    def recv(self, size: int, /) -> bytes:
        """Bytes that are there; empty at the end of data."""

    def send(self, data: bytes | memoryview, /) -> int:
        """How many bytes were taken."""

    def shutdown(self, how: int, /) -> None:
        """Finish one direction."""


class SocketRelay:
    """Both directions of one socket and one open stream.

    `flush` sends what the connection has ready. `finish` is called once, with whether the socket should be closed
    with a reset; the caller closes the socket and ends the tasks that run `read` and `write`. Whoever waits for the
    socket by other means calls `read_turn` when it is readable and `drain` when it is writable, instead of those tasks.
    """

    def __init__(
        self,
        sock: Socket,
        connection: Connection,
        stream: Stream,
        *,
        waits: Waits,
        flush: Callable[[], None],
        finish: Callable[[bool], None],
    ) -> None:
        self._sock = sock
        self._connection = connection
        self._stream = stream
        self._waits = waits
        self._flush = flush
        self._finish = finish
        self.waiting = bytearray()
        """Bytes that the socket did not take yet."""
        self._end_received = False
        self._read_over = False
        self._write_over = False
        self.finished = False
        """Whether `finish` was called."""
        self._to_write = waits.event()
        self._room = waits.event()
        self.received = 0
        """Bytes from the channel."""
        self.sent = 0
        """Bytes to the channel."""

    # ------------------------------------------------------------------ from the channel

    def receive_data(self, payload: bytes) -> None:
        """Bytes came for the socket."""
        if self.finished:
            return
        self.received += len(payload)
        if self.waiting:
            self.waiting += payload
        elif (taken := self._give(payload)) < len(payload) and not self.finished:
            self.waiting += memoryview(payload)[taken:]
            self._to_write.set()

    def receive_end(self) -> None:
        """The far side finished sending."""
        self._end_received = True
        if not self.waiting:
            self._finish_writing()

    def receive_reset(self) -> None:
        """The far side aborted, or the channel did: so does the socket."""
        self._end(abort=True)

    def unpaused(self) -> None:
        """The stream has room again."""
        self._room.set()

    def abandon(self, reason: str) -> None:
        """The tasks that serve this relay are going away: abort both sides, unless all is over already."""
        if not self.finished:
            self._connection.send_reset(self._stream, reason)
            self._end(abort=True)

    def _give(self, data: bytes | memoryview) -> int:
        """Give the socket what it takes now; returns how many bytes that was."""
        try:
            taken = self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as exc:
            self.fail(exc)
            return 0
        self._connection.consumed(self._stream, taken)
        return taken

    def drain(self) -> None:
        """Give the socket what waits."""
        waiting = self.waiting
        with memoryview(waiting) as view:
            taken = self._give(view)
        del waiting[:taken]
        if self._end_received and not waiting:
            self._finish_writing()

    def _finish_writing(self) -> None:
        if self.finished:
            return
        try:
            if not self._read_over:  # else the socket is closed now, which says the same
                self._sock.shutdown(_SHUT_WR)
        except OSError as exc:
            self.fail(exc)
            return
        self._write_over = True
        self._end_if_over()

    async def write(self) -> None:
        """Wait for the socket whenever it took no more; runs until cancelled."""
        while True:
            while self.waiting:
                await self._waits.writable(self._sock.fileno())
                self.drain()
                self._flush()
            self._to_write = self._waits.event()
            await self._to_write.wait()

    # ------------------------------------------------------------------ from the socket

    async def read(self) -> None:
        """Read the socket while the stream has room; returns at the end of its data."""
        while not self.finished:
            if not self._stream.room():
                self._room = self._waits.event()
                await self._room.wait()
                continue
            await self._waits.readable(self._sock.fileno())
            if not self.read_turn():
                return

    def read_turn(self) -> bool:
        """Read once, as much as fits a frame; whether there may be more.

        Once, so that a full stream does not keep the others waiting for longer than one frame takes.
        """
        more = True
        try:
            if not self.finished and (room := self._stream.room()):
                data = self._sock.recv(min(room, self._connection.frame_size))
                if data:
                    self.sent += len(data)
                    self._connection.send_data(self._stream, data)
                else:
                    self._connection.send_end(self._stream)
                    self._read_over = True
                    self._end_if_over()
                    more = False
        except BlockingIOError:
            pass
        except OSError as exc:
            self.fail(exc)
            more = False
        self._flush()
        return more

    # ------------------------------------------------------------------ the end

    def fail(self, exc: OSError) -> None:
        """The socket failed: so does the stream."""
        self._connection.send_reset(self._stream, exc.strerror or type(exc).__name__)
        self._end(abort=True)

    def _end_if_over(self) -> None:
        # Not by the stream's state: that is ahead of what was handed to this relay.
        if self._read_over and self._write_over:
            self._end(abort=False)

    def _end(self, *, abort: bool) -> None:
        if not self.finished:
            self.finished = True
            self.waiting = bytearray()
            self._finish(abort)
