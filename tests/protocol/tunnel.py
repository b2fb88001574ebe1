"""Two agents reduced to their core: a `Link` and a `Connection` at each end of a fake link, and relays for sockets."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from protocol.connection import Connection, Event, GenerationEnded, GenerationStarted, Role
from protocol.link import Device, Link, PeerAwayError
from protocol.relay import SocketRelay
from protocol.stream_messages import Data, EndOfData, Open, Opened, Reset, StreamKind, StreamMessage
from protocol.streams import Stream
from tests.fakes.link import FakeLink
from tests.protocol.pair import HELLO, TARGET

AWAY_PAUSE = 0.1


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected TCP sockets, non-blocking, with small buffers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        one = socket.create_connection(listener.getsockname())
        other = listener.accept()[0]
    for sock in (one, other):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
    return one, other


def close_with_reset(sock: socket.socket) -> None:
    """Close so that the peer sees RST, not FIN (SO_LINGER with a time of 0, socket(7))."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Agent:
    """One end of the channel and the relays of its streams."""

    def __init__(self, link: FakeLink, role: Role, nursery: trio.Nursery) -> None:
        self.link = link
        self.role = role
        self.nursery = nursery
        self.connection = Connection(role, HELLO, random=os.urandom)
        self.pump: Link | None = None
        self.heard: list[Event] = []
        self.relays: dict[int, SocketRelay] = {}
        self.offers: list[socket.socket] = []
        self.waiting: dict[int, socket.socket] = {}
        self.news = trio.Event()
        self.aborted: list[bool] = []

    async def run(self) -> None:
        """Serve the device, away or there, until cancelled."""
        while True:
            device: Device = self.link.guest
            if self.role is Role.HOST:
                device = self.link.connect()
            pump = self.pump = Link(self.connection, device, self.link.waits, self.dispatch, self.unpaused)
            self.connection.connected(trio.current_time())
            try:
                async with trio.open_nursery() as nursery:
                    for task in (pump.read, pump.write, pump.keep_time):
                        nursery.start_soon(task)
                    pump.flush()
            except* PeerAwayError:
                pass
            self.dispatch(self.connection.disconnected("the peer is away"))
            self.pump = None
            await trio.sleep(AWAY_PAUSE)

    def flush(self) -> None:
        if self.pump is not None:
            self.pump.flush()

    def open(self, sock: socket.socket) -> None:
        """Tunnel `sock` to whatever the other agent offers next."""
        stream = self.connection.open_stream(StreamKind.TCP, TARGET)
        self.waiting[stream.number] = sock
        self.flush()

    def dispatch(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, StreamMessage):
                self._dispatch_stream(event)
            elif isinstance(event, GenerationEnded):
                relays, self.relays = self.relays, {}
                for relay in relays.values():
                    relay.receive_reset()
        self.heard += events
        self.news.set()
        self.news = trio.Event()

    def _dispatch_stream(self, event: StreamMessage) -> None:
        stream = self.connection.stream(event.stream)
        relay = self.relays.get(event.stream)
        if isinstance(event, Open) and stream is not None and self.offers:
            self._start(stream, self.offers.pop(0))
            self.connection.accept_stream(stream)
        elif isinstance(event, Opened) and stream is not None:
            self._start(stream, self.waiting.pop(event.stream))
        elif relay is not None and isinstance(event, Data):
            relay.receive_data(event.payload)
        elif relay is not None and isinstance(event, EndOfData):
            relay.receive_end()
        elif relay is not None and isinstance(event, Reset):
            relay.receive_reset()

    def unpaused(self, number: int) -> None:
        if (relay := self.relays.get(number)) is not None:
            relay.unpaused()

    def _start(self, stream: Stream, sock: socket.socket) -> None:
        scope = trio.CancelScope()
        reset = True

        def finish(abort: bool) -> None:
            nonlocal reset
            reset = abort
            self.aborted.append(abort)
            scope.cancel()

        relay = SocketRelay(sock, self.connection, stream, waits=self.link.waits, flush=self.flush, finish=finish)
        self.relays[stream.number] = relay

        async def serve() -> None:
            try:
                with scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(relay.write)
                        await relay.read()
            finally:
                relay.abandon("cancelled")
                self.flush()
                if reset:
                    close_with_reset(sock)
                else:
                    sock.close()

        self.nursery.start_soon(serve)

    async def until_started(self, count: int = 1) -> None:
        """Return when so many generations have started."""
        while len([event for event in self.heard if isinstance(event, GenerationStarted)]) < count:
            await self.news.wait()


class Tunnel:
    """Both agents, and sockets through them."""

    def __init__(self, link: FakeLink, nursery: trio.Nursery) -> None:
        self.link = link
        self.host = Agent(link, Role.HOST, nursery)
        self.guest = Agent(link, Role.GUEST, nursery)
        self.outer: list[socket.socket] = []
        """The sockets behind the streams that `sockets` made."""

    def close(self) -> None:
        """Close the outer ends of all sockets."""
        for sock in self.outer:
            sock.close()

    async def sockets(self) -> tuple[trio.SocketStream, trio.SocketStream]:
        """Two sockets that should behave as if they were connected with each other."""
        left, left_inner = tcp_pair()
        right, right_inner = tcp_pair()
        self.outer += (left, right)
        before = len(self.host.relays)
        self.guest.offers.append(right_inner)
        self.host.open(left_inner)
        while len(self.host.relays) == before:
            await self.host.news.wait()
        one, other = (trio.SocketStream(trio.socket.from_stdlib_socket(sock)) for sock in (left, right))
        return one, other


@asynccontextmanager
async def tunnel() -> AsyncIterator[Tunnel]:
    """Two agents in a running generation."""
    async with trio.open_nursery() as nursery:
        made = Tunnel(FakeLink(), nursery)
        nursery.start_soon(made.host.run)
        nursery.start_soon(made.guest.run)
        await made.host.until_started()
        await made.guest.until_started()
        try:
            yield made
        finally:
            made.close()
            nursery.cancel_scope.cancel()
