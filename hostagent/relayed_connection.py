"""A stream socket on the host and its stream: relaying once both are there, then over.

Which of the two is there first is the difference between the directions: a client on the host dials the guest
(`hostagent.tcp_listener`), or a client in the guest dials the host (`hostagent.reverse_connection`).
"""

from __future__ import annotations

import socket

import trio

from hostagent.channel import Channel, StreamHandler
from hostagent.forwards import Traffic
from hostagent.stream_socket import finish
from hostagent.waits import TRIO_WAITS
from protocol.relay import SocketRelay
from protocol.streams import Stream


class RelayedConnection(StreamHandler):
    """What both directions have in common."""

    def __init__(self, channel: Channel, traffic: Traffic) -> None:
        self._channel = channel
        self._traffic = traffic
        self._scope = trio.CancelScope()
        self._relay: SocketRelay | None = None
        self._reset = True
        """Whether the socket is to be closed with a reset."""
        self._counted = 0

    def _begin(self, sock: socket.socket, stream: Stream) -> SocketRelay:
        """Both ends are there."""
        self._relay = SocketRelay(
            sock,
            self._channel.connection,
            stream,
            waits=TRIO_WAITS,
            flush=self._flush,
            finish=self._finish,
        )
        return self._relay

    async def _serve(self, relay: SocketRelay) -> None:
        """Relay; returns, or is cancelled by `_scope`, when that is over."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.write)
            await relay.read()

    def _flush(self) -> None:
        assert self._relay is not None
        self._traffic.bytes_to_guest += self._relay.sent - self._counted
        self._counted = self._relay.sent
        self._channel.flush()

    def _finish(self, reset: bool) -> None:
        self._reset = reset
        self._scope.cancel()

    def _close(self, sock: socket.socket) -> None:
        """Close `sock`, which was made with `reset_unless_finished`, as all of this ended."""
        if self._reset:
            sock.close()
        else:
            finish(sock)

    def receive_data(self, payload: bytes) -> None:
        self._traffic.bytes_to_host += len(payload)
        if self._relay is not None:
            self._relay.receive_data(payload)

    def receive_end(self) -> None:
        if self._relay is not None:
            self._relay.receive_end()

    def unpaused(self) -> None:
        if self._relay is not None:
            self._relay.unpaused()
