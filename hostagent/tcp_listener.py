"""One TCP port or unix socket of the host: each connection becomes a stream to the guest's port or socket behind it.

The guest is dialled before a byte of the client is read. If the guest refuses, the client gets a reset, not an empty
connection that closes. While the guest agent is away each client waits for it, `PATIENCE` seconds at most; then it is
reset. Where the route says so, a client also waits for a program in the guest: as long as it is refused, it is dialled
again when a port opened or closed, and every `REDIAL` seconds for what is open without our hearing of it.

All connections are reset when this process is killed: an orderly end is only ever the guest's own.

Connections outlive their listener: when the guest program closes its listening socket, what it has accepted goes on.
So they run in the forwarder's nursery, not in the listener's.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass

import trio

from hostagent.channel import Channel
from hostagent.forwards import Traffic
from hostagent.relayed_connection import RelayedConnection
from hostagent.route import Route
from hostagent.stream_socket import reset_unless_finished, wait_readable
from protocol.streams import Stream

PATIENCE = 5.0
"""Seconds that one client waits for the guest agent."""

REDIAL = 0.25
DIAL_BOUND = 15.0
"""Seconds that the guest may take to answer an OPEN. Its own bound on a dial is 10."""

DESCRIPTOR_PAUSE = 0.1
_NOT_THERE = {"ECONNREFUSED", "ENOENT"}
"""Why a target that nobody serves yet refuses: a port, a socket's file."""

_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


@dataclass(frozen=True, slots=True)
class TcpService:
    """What the connections of a listener need."""

    channel: Channel
    route: Callable[[], Route | None]
    """Where the next one leads."""
    connections: trio.Nursery
    """Where they live."""
    ready: Callable[[], trio.Event]
    """An event that is set while the guest agent is there."""
    news: Callable[[], trio.Event]
    """An event that is set when a port of the guest opened or closed."""


class TcpConnection(RelayedConnection):
    """One client's connection: dialling, then relaying, then over."""

    def __init__(self, client: socket.socket, service: TcpService) -> None:
        super().__init__(service.channel, Traffic())
        self._client = client
        self._service = service
        self._stream: Stream | None = None
        self._answered = trio.Event()
        self._refusal = ""
        self._route: Route | None = None
        """Of the last dial."""
        self._arrived = trio.current_time()

    def begin(self) -> None:
        """Ask the guest for the other end, at once when it is there."""
        if (route := self._service.route()) is None:
            self._client.close()
            return
        self._traffic = route.traffic
        self._traffic.connections += 1
        self._traffic.connections_total += 1
        if self._service.ready().is_set():
            self._dial(route)
        self._service.connections.start_soon(self._run)

    def _dial(self, route: Route) -> None:
        self._answered = trio.Event()
        self._refusal = ""
        self._route = route
        self._stream = self._channel.open(route.kind, route.target, self)
        self._channel.flush()

    def opened(self) -> None:
        assert self._stream is not None
        assert self._route is not None
        self._route.answered(True)
        self._begin(self._client, self._stream)
        self._answered.set()

    async def _run(self) -> None:
        try:
            with self._scope:
                while await self._dialled() and self._relay is None and await self._may_dial_again():
                    pass
                if self._relay is not None:
                    await self._serve(self._relay)
        finally:
            if self._relay is not None:
                self._relay.abandon("the forwarder stopped")
            elif self._stream is not None:
                self._channel.connection.send_reset(self._stream, "the guest did not answer in time")
                self._channel.flush()
            # Only now: the tasks above wait for this descriptor, and its number must not be used again meanwhile.
            self._over()

    async def _dialled(self) -> bool:
        """Wait for the guest agent and for its answer; False when there is none."""
        if self._stream is None:
            route = None
            with trio.move_on_at(self._arrived + PATIENCE):
                await self._service.ready().wait()
                route = self._service.route()
            if route is None:
                return False
            self._dial(route)
        if self._stream is None:
            return False
        with trio.move_on_after(DIAL_BOUND):
            await self._answered.wait()
            return True
        return False

    async def _may_dial_again(self) -> bool:
        """After a refusal: wait until another try makes sense; False when the client is to be refused as well."""
        route = self._service.route()
        until = self._arrived + (route.wait if route is not None else 0.0)
        if self._refusal in _NOT_THERE and trio.current_time() < until:
            self._stream = None
            with trio.move_on_at(min(until, trio.current_time() + REDIAL)):
                await self._service.news().wait()
            return True
        if self._refusal:
            self._traffic.connections_refused += 1
        return False

    def refused(self, error: str, reason: str) -> None:
        self._refusal = error or "?"
        if self._refusal in _NOT_THERE:
            assert self._route is not None
            self._route.answered(False)
        self._answered.set()

    def receive_reset(self, reason: str) -> None:
        if self._relay is not None:
            self._relay.receive_reset()
        else:
            self._answered.set()

    def _over(self) -> None:
        if self._stream is not None:
            self._channel.forget(self._stream, self)
        self._traffic.connections -= 1
        self._close(self._client)


async def accept_connections(listener: socket.socket, service: TcpService) -> None:
    """Accept until the listener is closed."""
    while await wait_readable(listener):
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
            if client.family is not socket.AF_UNIX:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            reset_unless_finished(client)
            TcpConnection(client, service).begin()
