"""One TCP listener on the host: each connection becomes a stream to the guest port behind it.

The guest is dialled before a byte of the client is read. If the guest refuses, the client gets a reset, not an empty
connection that closes. While the guest agent is away, clients wait in the listener's own queue, for `PATIENCE`
seconds at most; then they are reset.

Connections outlive their listener: when the guest program closes its listening socket, what it has accepted goes on.
So they run in the forwarder's nursery, not in the listener's.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import trio

from hostagent.channel import Channel, StreamHandler
from hostagent.forwards import Traffic
from hostagent.stream_socket import abort, wait_readable
from hostagent.waits import TRIO_WAITS
from protocol.relay import SocketRelay
from protocol.stream_messages import SocketTarget, StreamKind
from protocol.streams import Stream

PATIENCE = 5.0
DIAL_BOUND = 15.0
"""Seconds that the guest may take to answer an OPEN. Its own bound on a dial is 10."""

DESCRIPTOR_PAUSE = 0.1
_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class TcpConnection(StreamHandler):
    """One client's connection: dialling, then relaying, then over."""

    def __init__(self, client: socket.socket, channel: Channel, traffic: Traffic, nursery: trio.Nursery) -> None:
        self._client = client
        self._channel = channel
        self._traffic = traffic
        self._nursery = nursery
        self._scope = trio.CancelScope()
        self._stream: Stream | None = None
        self._relay: SocketRelay | None = None
        self._answered = trio.Event()
        self._reset = True
        self._counted = 0

    def dial(self, target: SocketTarget) -> None:
        """Ask the guest for the other end."""
        self._stream = self._channel.open(StreamKind.TCP, target, self)
        if self._stream is None:
            abort(self._client)
            return
        self._traffic.connections += 1
        self._traffic.connections_total += 1
        self._nursery.start_soon(self._run, self._stream)
        self._channel.flush()

    def opened(self) -> None:
        assert self._stream is not None
        self._relay = SocketRelay(
            self._client,
            self._channel.connection,
            self._stream,
            waits=TRIO_WAITS,
            flush=self._flush,
            finish=self._finish,
        )
        self._answered.set()

    async def _run(self, stream: Stream) -> None:
        try:
            with self._scope:
                with trio.move_on_after(DIAL_BOUND):
                    await self._answered.wait()
                if self._relay is not None:
                    await self._serve(self._relay)
        finally:
            if self._relay is not None:
                self._relay.abandon("the forwarder stopped")
            else:
                self._channel.connection.send_reset(stream, "the guest did not answer in time")
                self._channel.flush()
            # Only now: the tasks above wait for this descriptor, and its number must not be used again meanwhile.
            self._over(stream)

    async def _serve(self, relay: SocketRelay) -> None:
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

    def refused(self, error: str, reason: str) -> None:
        self._traffic.connections_refused += 1
        self._answered.set()

    def receive_data(self, payload: bytes) -> None:
        self._traffic.bytes_to_host += len(payload)
        if self._relay is not None:
            self._relay.receive_data(payload)

    def receive_end(self) -> None:
        if self._relay is not None:
            self._relay.receive_end()

    def receive_reset(self, reason: str) -> None:
        if self._relay is not None:
            self._relay.receive_reset()
        else:
            self._answered.set()

    def unpaused(self) -> None:
        if self._relay is not None:
            self._relay.unpaused()

    def _over(self, stream: Stream) -> None:
        self._channel.forget(stream, self)
        self._traffic.connections -= 1
        if self._reset:
            abort(self._client)
        else:
            self._client.close()


async def accept_connections(
    listener: socket.socket,
    channel: Channel,
    target: Callable[[], SocketTarget],
    traffic: Callable[[], Traffic],
    connections: trio.Nursery,
    ready: Callable[[], trio.Event],
) -> None:
    """Accept until the listener is closed.

    `target` and `traffic` are asked for each connection, since another guest port may take over the listener. `ready`
    gives an event that is set while the guest agent is there.
    """
    while await wait_readable(listener):
        with trio.move_on_after(PATIENCE):
            await ready().wait()
        while True:
            try:
                client, _ = listener.accept()
            except BlockingIOError:
                break
            except OSError as exc:
                # accept(2): errors of the connection that was waiting are reported here, and mean nothing to others.
                if exc.errno == errno.EBADF:
                    return
                if exc.errno in _OUT_OF_RESOURCES:
                    await trio.sleep(DESCRIPTOR_PAUSE)
                continue
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            TcpConnection(client, channel, traffic(), connections).dial(target())
