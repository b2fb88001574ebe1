"""TCP through the host's listener, the channel and a real server behind the guest: as if nothing were between."""

from __future__ import annotations

import hashlib
import os
import resource
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from hostagent import tcp_listener
from hostagent.channel import Channel
from hostagent.forward_plan import ListenerKey
from hostagent.forwards import Endpoint, Traffic
from hostagent.route import Route
from hostagent.stream_socket import listen
from hostagent.tcp_listener import TcpService, accept_connections
from protocol.ports import Protocol
from protocol.stream_messages import SocketTarget, StreamKind
from tests.fakes.connected_channel import (
    BOUND,
    RecordingObserver,
    connected_channel,
    eventually,
    nothing_left_open,
    open_descriptors,
    opened_since,
)
from tests.fakes.guest import FakeGuest

ADDRESSES = ["127.0.0.1", "::1"]
SIZES = [0, 1, 70_000, 10_000_000]
CHUNK = 65_536


class Tunnel:
    """A host listener, its channel and guest, and a server in the guest that a test plays itself."""

    def __init__(
        self, channel: Channel, observer: RecordingObserver, guest: FakeGuest, address: str, nursery: trio.Nursery
    ) -> None:
        self.channel = channel
        self.observer = observer
        self.guest = guest
        self.address = address
        self.traffic = Traffic()
        self.ready = trio.Event()
        self.ready.set()
        self.listener = listen(ListenerKey(Protocol.TCP, Endpoint(address, 0)))
        self.port: int = self.listener.getsockname()[1]
        self.server = guest_server(address)
        self.target = SocketTarget(address, self.server.socket.getsockname()[1])
        self.served = trio.Event()
        self.wait = 0.0
        self.news = trio.Event()
        nursery.start_soon(self._serve, nursery)

    async def _serve(self, nursery: trio.Nursery) -> None:
        service = TcpService(self.channel, self.route, nursery, lambda: self.ready, lambda: self.news)
        await accept_connections(self.listener, service)
        self.served.set()

    def route(self) -> Route | None:
        """Where clients are led: nowhere any more once the listener is closed."""
        if self.listener.fileno() < 0:
            return None
        return Route(StreamKind.TCP, self.target, self.traffic, self.wait)

    def close_listener(self) -> None:
        trio.lowlevel.notify_closing(self.listener)
        self.listener.close()

    async def connect(self) -> trio.SocketStream:
        """A client that was accepted by the host's kernel, and perhaps by nobody else yet."""
        return await trio.open_tcp_stream(self.address, self.port)

    async def pair(self) -> tuple[trio.SocketStream, trio.SocketStream]:
        """A client and the end of its connection in the guest."""
        client = await self.connect()
        return client, await self.server.accept()


def guest_server(address: str) -> trio.SocketListener:
    sock = listen(ListenerKey(Protocol.TCP, Endpoint(address, 0)))
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


@asynccontextmanager
async def tunnel(folder: Path, address: str = "127.0.0.1") -> AsyncIterator[Tunnel]:
    async with connected_channel(folder) as (channel, observer, guest), trio.open_nursery() as nursery:
        made = Tunnel(channel, observer, guest, address, nursery)
        with made.listener:
            async with made.server:
                with trio.fail_after(BOUND):
                    yield made
                nursery.cancel_scope.cancel()


def reset(stream: trio.SocketStream) -> None:
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def send_then_finish(stream: trio.SocketStream, data: bytes) -> None:
    await stream.send_all(data)
    await stream.send_eof()


async def receive_all(stream: trio.SocketStream) -> bytes:
    return b"".join([chunk async for chunk in stream])


async def expect_reset(stream: trio.SocketStream) -> None:
    """Read on until the reset; an end of data instead is what must never happen."""
    with pytest.raises(trio.BrokenResourceError) as caught:  # noqa: PT012 - whichever read it is
        while await stream.receive_some(CHUNK):
            pass
        raise AssertionError("an orderly end")
    assert isinstance(caught.value.__cause__, ConnectionResetError)


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("size", SIZES)
async def test_bytes_arrive_as_they_were_sent_in_both_directions_at_once(
    tmp_path: Path, address: str, size: int
) -> None:
    there, back = os.urandom(size), os.urandom(size)
    received: dict[str, str] = {}

    async def receive(name: str, stream: trio.SocketStream) -> None:
        received[name] = hashlib.sha256(await receive_all(stream)).hexdigest()

    async with tunnel(tmp_path, address) as through:
        client, server = await through.pair()
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(send_then_finish, client, there)
            nursery.start_soon(send_then_finish, server, back)
            nursery.start_soon(receive, "there", server)
            nursery.start_soon(receive, "back", client)
        assert received == {"there": hashlib.sha256(there).hexdigest(), "back": hashlib.sha256(back).hexdigest()}
        await eventually(lambda: through.traffic.connections == 0)
        counted = through.traffic
        assert (counted.bytes_to_guest, counted.bytes_to_host) == (size, size)
        assert (counted.connections_total, counted.connections_refused) == (1, 0)


@pytest.mark.parametrize("first", ["client", "server"])
async def test_one_direction_can_end_long_before_the_other(tmp_path: Path, first: str) -> None:
    async with tunnel(tmp_path) as through:
        client, server = await through.pair()
        early, late = (client, server) if first == "client" else (server, client)
        async with client, server:
            await send_then_finish(early, b"question")
            assert await receive_all(late) == b"question"
            await trio.testing.wait_all_tasks_blocked()
            await send_then_finish(late, bytes(1_000_000))
            assert await receive_all(early) == bytes(1_000_000)


@pytest.mark.parametrize("who", ["client", "server"])
async def test_an_abort_arrives_as_an_abort(tmp_path: Path, who: str) -> None:
    async with tunnel(tmp_path) as through:
        client, server = await through.pair()
        aborted, other = (client, server) if who == "client" else (server, client)
        async with client, server:
            await aborted.send_all(b"and then")
            assert await other.receive_some(CHUNK) == b"and then"
            reset(aborted)
            await expect_reset(other)
        await eventually(lambda: through.traffic.connections == 0)


@pytest.mark.parametrize("address", ADDRESSES)
async def test_a_refusal_is_a_reset_and_not_an_empty_connection(tmp_path: Path, address: str) -> None:
    async with tunnel(tmp_path, address) as through:
        await through.server.aclose()
        async with await through.connect() as client:
            await expect_reset(client)
        assert through.traffic == Traffic(connections=0, connections_total=1, connections_refused=1)


async def fill(stream: trio.SocketStream) -> int:
    """Send until nothing has moved for a while; how many bytes that were."""
    sent = 0
    while True:
        with trio.move_on_after(0.1) as scope:
            await trio.lowlevel.wait_writable(stream.socket)
            sent += await stream.socket.send(bytes(CHUNK))
        if scope.cancelled_caught:
            return sent


@pytest.mark.parametrize("slow", ["client", "server"])
async def test_a_slow_reader_stops_the_writer_and_nobody_else(tmp_path: Path, slow: str) -> None:
    async with tunnel(tmp_path) as through:
        for sock in (through.listener, through.server.socket):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CHUNK)  # what the kernel holds shall not hide ours
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK)
        client, server = await through.pair()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK)
        reader, writer = (client, server) if slow == "client" else (server, client)
        async with client, server:
            sent = await fill(writer)
            assert sent < 16_000_000  # most of it in the kernel's buffers (tcp_wmem, tcp_rmem), which grow
            other_client, other_server = await through.pair()
            async with other_client, other_server:
                await other_client.send_all(b"ping")
                assert await other_server.receive_some(CHUNK) == b"ping"
            await writer.send_eof()
            assert len(await receive_all(reader)) == sent


async def test_five_hundred_connections_are_held_and_let_go(tmp_path: Path) -> None:
    async with tunnel(tmp_path) as through:
        before = open_descriptors()
        clients = [await through.connect() for _ in range(500)]
        servers = [await through.server.accept() for _ in range(500)]
        assert through.traffic.connections == 500
        for client in clients:
            await client.send_all(b"x")
        for server in servers:
            assert await server.receive_some(1) == b"x"
        for stream in (*clients[:250], *servers[250:]):
            await stream.aclose()
        for stream in (*servers[:250], *clients[250:]):
            assert await stream.receive_some(1) == b""
            await stream.aclose()
        await eventually(lambda: through.traffic.connections == 0)
        await through.guest.streams_over()
        assert not opened_since(before)


async def test_connections_outlive_their_listener(tmp_path: Path) -> None:
    async with tunnel(tmp_path) as through:
        client, server = await through.pair()
        async with client, server:
            through.close_listener()
            with pytest.raises(OSError, match="all attempts to connect"):
                await through.connect()
            await through.served.wait()
            await send_then_finish(client, b"still there")
            assert await receive_all(server) == b"still there"
            await send_then_finish(server, b"indeed")
            assert await receive_all(client) == b"indeed"


async def test_a_listener_that_is_closed_while_clients_wait_for_the_guest_ends_quietly(tmp_path: Path) -> None:
    async with tunnel(tmp_path) as through:
        through.ready = trio.Event()
        async with await through.connect() as client:
            await trio.testing.wait_all_tasks_blocked()
            through.close_listener()
            through.ready.set()
            await through.served.wait()
            await expect_reset(client)


async def test_a_listener_that_is_closed_before_it_was_served_ends_quietly(tmp_path: Path) -> None:
    """A port that closes in the same batch of messages that opened it."""
    async with connected_channel(tmp_path) as (channel, observer, guest), trio.open_nursery() as nursery:
        through = Tunnel(channel, observer, guest, "127.0.0.1", nursery)
        async with through.server:
            through.close_listener()
            with trio.fail_after(BOUND):
                await through.served.wait()


async def test_another_guest_port_can_take_over_the_listener(tmp_path: Path) -> None:
    async with tunnel(tmp_path) as through, guest_server("127.0.0.1") as successor:
        client, server = await through.pair()
        through.target = SocketTarget("127.0.0.1", successor.socket.getsockname()[1])
        first_traffic, through.traffic = through.traffic, Traffic()
        async with client, server, await through.connect() as second, await successor.accept() as second_server:
            await second.send_all(b"new")
            assert await second_server.receive_some(CHUNK) == b"new"
            await client.send_all(b"old")
            assert await server.receive_some(CHUNK) == b"old"
        await eventually(lambda: first_traffic.connections == through.traffic.connections == 0)
        assert first_traffic.connections_total == through.traffic.connections_total == 1


@pytest.mark.parametrize("politely", [True, False])
async def test_a_client_that_leaves_while_the_guest_is_dialled(tmp_path: Path, politely: bool) -> None:
    async with tunnel(tmp_path) as through:
        through.guest.answers = False
        client = await through.connect()
        await through.guest.opens(1)
        if politely:
            await client.aclose()
        else:
            reset(client)
        through.guest.answer()
        async with await through.server.accept() as server:
            if politely:
                assert await server.receive_some(CHUNK) == b""
            else:
                await expect_reset(server)
        await eventually(lambda: through.traffic.connections == 0)
        await through.guest.streams_over()


async def test_a_guest_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_listener, "DIAL_BOUND", 0.05)
    async with tunnel(tmp_path) as through:
        through.guest.answers = False
        async with await through.connect() as client:
            await expect_reset(client)
        await through.guest.opens(1)
        await through.guest.streams_over()
        assert through.traffic.connections == 0


@pytest.mark.parametrize("dialled", [True, False])
async def test_a_lost_channel_is_a_reset_for_both_ends(tmp_path: Path, dialled: bool) -> None:
    async with tunnel(tmp_path) as through:
        through.guest.answers = dialled
        async with await through.connect() as client:
            if dialled:
                async with await through.server.accept() as server:
                    await server.send_all(b"the first half")
                    assert await client.receive_some(CHUNK) == b"the first half"
                    through.guest.cut()
                    await expect_reset(client)
                    await expect_reset(server)
            else:
                await through.guest.opens(1)
                through.guest.cut()
                await expect_reset(client)
        assert through.traffic.connections == 0
        await through.observer.generation(2)
        await through.guest.generation(2)
        through.guest.answers = True
        client, server = await through.pair()
        async with client, server:
            await client.send_all(b"as before")
            assert await server.receive_some(CHUNK) == b"as before"


async def test_without_descriptors_clients_wait(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with tunnel(tmp_path) as through:
        sock = trio.socket.socket()
        highest = max(open_descriptors())
        spares = [os.dup(0)]
        try:
            while spares[-1] < highest:
                spares.append(os.dup(0))
            resource.setrlimit(resource.RLIMIT_NOFILE, (spares[-1] + 1, limits[1]))  # no number below it is free
            await sock.connect(("127.0.0.1", through.port))
            await trio.testing.wait_all_tasks_blocked()
            assert through.traffic.connections_total == 0
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for spare in spares:
                os.close(spare)
        async with trio.SocketStream(sock) as client, await through.server.accept() as server:
            await client.send_all(b"patient")
            assert await server.receive_some(CHUNK) == b"patient"


def test_nothing_is_left_when_it_is_cancelled(tmp_path: Path) -> None:
    async def use() -> None:
        async with tunnel(tmp_path) as through:
            client, server = await through.pair()
            through.guest.answers = False
            dialling = await through.connect()
            await through.guest.opens(2)
            async with client, server, dialling:
                await trio.testing.wait_all_tasks_blocked()
                through.guest.stop_reading()

    trio.run(use)
    with nothing_left_open():
        trio.run(use)
