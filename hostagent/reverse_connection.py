"""One client in the guest of a reverse forward: the host is dialled, then bytes are relayed.

The guest reads nothing of its client before the dial has succeeded, and gives it a reset when it fails.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from hostagent.channel import Channel
from hostagent.forwards import HostEnd, Traffic
from hostagent.host_dial import dial
from hostagent.relayed_connection import RelayedConnection
from hostagent.stream_socket import reset_unless_finished
from protocol.streams import Stream

_NOT_THERE = {errno.ECONNREFUSED, errno.ENOENT}
"""Why what nobody serves refuses: a port, a socket's file."""


class ReverseConnection(RelayedConnection):
    """Dialling, then relaying, then over. `answered` hears whether somebody served `end`; nothing of other errors."""

    def __init__(
        self, channel: Channel, stream: Stream, end: HostEnd, traffic: Traffic, answered: Callable[[bool], None]
    ) -> None:
        super().__init__(channel, traffic)
        self._stream = stream
        self._end = end
        self._answered = answered
        traffic.connections += 1
        traffic.connections_total += 1

    async def run(self) -> None:
        """Serve the client to its end."""
        try:
            with self._scope:
                try:
                    sock = await dial(self._end)
                except OSError as exc:
                    self._refuse(exc)
                else:
                    await self._relay_with(sock)
        finally:
            if self._relay is not None:
                self._relay.abandon("the forwarder stopped")
            else:
                self._channel.connection.send_reset(self._stream, "the forwarder stopped")
            self._channel.flush()
            self._channel.forget(self._stream, self)
            self._traffic.connections -= 1

    async def _relay_with(self, sock: socket.socket) -> None:
        reset_unless_finished(sock)
        try:
            self._answered(True)
            self._channel.connection.accept_stream(self._stream)
            relay = self._begin(sock, self._stream)
            self._channel.flush()
            await self._serve(relay)
        finally:
            # Only now: the tasks above wait for this descriptor, and its number must not be used again meanwhile.
            self._close(sock)

    def _refuse(self, exc: OSError) -> None:
        self._traffic.connections_refused += 1
        if exc.errno in _NOT_THERE:
            self._answered(False)
        error = errno.errorcode.get(exc.errno or errno.EIO, "EIO")
        self._channel.connection.refuse_stream(self._stream, error, exc.strerror or type(exc).__name__)

    def receive_reset(self, reason: str) -> None:
        if self._relay is not None:
            self._relay.receive_reset()
        else:
            self._scope.cancel()
