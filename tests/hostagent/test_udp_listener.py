"""Datagrams through the host's listener, the channel and a real server behind the guest."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from hostagent import udp_listener
from hostagent.channel import Channel
from hostagent.forward_plan import ListenerKey
from hostagent.forwards import Endpoint, Traffic
from hostagent.route import Route
from hostagent.stream_socket import listen
from hostagent.udp_listener import UdpListener
from protocol.limits import FLOW_QUEUE
from protocol.ports import Protocol
from protocol.stream_messages import SocketTarget, StreamKind
from tests.fakes.connected_channel import (
    BOUND,
    RecordingObserver,
    connected_channel,
    eventually,
    nothing_left_open,
)
from tests.fakes.guest import FakeGuest

ADDRESSES = ["127.0.0.1", "::1"]
SIZES = [0, 1, 1_472, 1_473, 32_768, 65_507]
LARGEST = 65_535


def bound(address: str) -> trio.socket.SocketType:
    return trio.socket.from_stdlib_socket(listen(ListenerKey(Protocol.UDP, Endpoint(address, 0))))


class Tunnel:
    """A host listener, its channel and guest, and a server in the guest that a test plays itself."""

    def __init__(
        self, channel: Channel, observer: RecordingObserver, guest: FakeGuest, address: str, nursery: trio.Nursery
    ) -> None:
        self.channel = channel
        self.observer = observer
        self.guest = guest
        self.traffic = Traffic()
        self.server = bound(address)
        self.target = SocketTarget(address, self.server.getsockname()[1])
        self.sock = listen(ListenerKey(Protocol.UDP, Endpoint(address, 0)))
        self.address = self.sock.getsockname()[:2]
        self.listener = UdpListener(self.sock, channel, self.route)
        self.served = trio.Event()
        nursery.start_soon(self._serve)

    def route(self) -> Route:
        return Route(StreamKind.UDP, self.target, self.traffic)

    async def _serve(self) -> None:
        await self.listener.run()
        self.served.set()

    def close_listener(self) -> None:
        trio.lowlevel.notify_closing(self.sock)
        self.sock.close()

    async def client(self) -> trio.socket.SocketType:
        sock = bound(self.address[0])
        await sock.connect(self.address)
        return sock

    async def server_received(self, payload: bytes) -> tuple[str, int]:
        """Who sent `payload`, which must be what the guest's server receives next."""
        received, sender = await self.server.recvfrom(LARGEST)
        assert received == payload
        return sender  # type: ignore[no-any-return]


@asynccontextmanager
async def tunnel(folder: Path, address: str = "127.0.0.1", seconds: float = BOUND) -> AsyncIterator[Tunnel]:
    async with connected_channel(folder) as (channel, observer, guest), trio.open_nursery() as nursery:
        made = Tunnel(channel, observer, guest, address, nursery)
        with made.server, made.sock:
            with trio.fail_after(seconds):
                yield made
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("size", SIZES)
async def test_a_datagram_stays_one_datagram(tmp_path: Path, address: str, size: int) -> None:
    async with tunnel(tmp_path, address) as through:
        with await through.client() as client:
            there, back = os.urandom(size), os.urandom(size)
            await client.send(there)
            sender = await through.server_received(there)
            await through.server.sendto(back, sender)
            assert await client.recv(LARGEST) == back
        assert through.traffic == Traffic(
            connections=1,
            connections_total=1,
            bytes_to_guest=size,
            bytes_to_host=size,
            datagrams_to_guest=1,
            datagrams_to_host=1,
        )


async def test_each_client_is_a_peer_of_its_own(tmp_path: Path) -> None:
    async with tunnel(tmp_path) as through:
        with await through.client() as first, await through.client() as second:
            senders = []
            for client, name in ((first, b"first"), (second, b"second")):
                await client.send(name)
                senders.append(await through.server_received(name))
            assert senders[0] != senders[1]
            await through.server.sendto(b"for the second", senders[1])
            await through.server.sendto(b"for the first", senders[0])
            assert await first.recv(LARGEST) == b"for the first"
            assert await second.recv(LARGEST) == b"for the second"
            await first.send(b"again")
            assert await through.server_received(b"again") == senders[0]
        assert through.traffic.connections_total == 2


LONG = 10 * udp_listener.IDLE


async def pass_time(clock: trio.testing.MockClock, seconds: float) -> None:
    """Let time pass for the flows, and everybody do what is due then."""
    clock.jump(seconds)
    await trio.testing.wait_all_tasks_blocked()


async def test_an_idle_flow_ends_and_the_next_datagram_begins_another(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with tunnel(tmp_path, seconds=LONG) as through:
        with await through.client() as client:
            await client.send(b"one")
            before = await through.server_received(b"one")
            await pass_time(mock_clock, udp_listener.IDLE - 1)
            assert through.traffic.connections == 1
            await pass_time(mock_clock, 1)
            assert through.traffic.connections == 0
            await through.guest.streams_over()
            await client.send(b"two")
            assert await through.server_received(b"two") != before
            await pass_time(mock_clock, udp_listener.IDLE)
            assert through.traffic.connections == 0


@pytest.mark.parametrize("who", ["client", "server"])
async def test_a_datagram_of_either_side_keeps_a_flow_alive(
    tmp_path: Path, mock_clock: trio.testing.MockClock, who: str
) -> None:
    async with tunnel(tmp_path, seconds=LONG) as through:
        with await through.client() as client:
            await client.send(b"subscribe")
            sender = await through.server_received(b"subscribe")
            for _ in range(3):
                await pass_time(mock_clock, udp_listener.IDLE * 0.7)
                if who == "client":
                    await client.send(b"still here")
                    assert await through.server_received(b"still here") == sender
                else:
                    await through.server.sendto(b"news", sender)
                    assert await client.recv(LARGEST) == b"news"
        assert through.traffic.connections_total == through.traffic.connections == 1


async def test_the_flow_that_was_idle_longest_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_listener, "FLOWS", 2)
    async with tunnel(tmp_path) as through:
        with await through.client() as first, await through.client() as second, await through.client() as third:
            await first.send(b"1")
            first_sender = await through.server_received(b"1")
            await second.send(b"2")
            second_sender = await through.server_received(b"2")
            await first.send(b"3")
            await through.server_received(b"3")
            await third.send(b"4")
            await through.server_received(b"4")
            assert through.traffic.connections == 2
            await first.send(b"5")
            assert await through.server_received(b"5") == first_sender
            await second.send(b"6")
            assert await through.server_received(b"6") != second_sender


async def test_nobody_listens_in_the_guest(tmp_path: Path) -> None:
    """The port unreachable ends the flow; when the server is there, the next datagram begins another."""
    async with tunnel(tmp_path) as through:
        port = through.server.getsockname()[1]
        through.server.close()
        with await through.client() as client:
            await client.send(b"anybody?")
            await through.guest.opens(1)
            await through.guest.streams_over()
            await eventually(lambda: through.traffic.connections == 0)
            with listen(ListenerKey(Protocol.UDP, Endpoint("127.0.0.1", port))) as server:
                await client.send(b"now?")
                await trio.lowlevel.wait_readable(server)
                assert server.recv(LARGEST) == b"now?"


async def test_flows_end_with_their_generation_and_heal(tmp_path: Path) -> None:
    async with tunnel(tmp_path) as through:
        with await through.client() as client:
            await client.send(b"before")
            await through.server_received(b"before")
            through.guest.kill()
            through.guest.cut()
            await through.observer.end(1)
            assert through.traffic.connections == 0
            await client.send(b"lost")
            await eventually(lambda: through.traffic.datagrams_dropped == 1)
            through.guest.restart()
            await through.observer.generation(2)
            await client.send(b"after")
            await through.server_received(b"after")
            assert through.traffic.connections == 1


async def test_what_finds_no_room_is_dropped_and_counted(tmp_path: Path) -> None:
    async with tunnel(tmp_path) as through:
        through.guest.stop_reading()
        with await through.client() as client:
            size, number = 20_000, 4 * FLOW_QUEUE
            for _ in range(number):
                await client.send(bytes(size))
                await trio.testing.wait_all_tasks_blocked()
            counted = through.traffic
            assert counted.datagrams_to_guest + counted.datagrams_dropped == number
            assert counted.datagrams_dropped > number / 2
            assert counted.bytes_to_guest == size * counted.datagrams_to_guest
            through.guest.read_again()
            await eventually(lambda: through.guest.payload_received == counted.bytes_to_guest)


async def test_an_answer_that_the_client_cannot_get_is_counted(tmp_path: Path) -> None:
    """A guest may say more than a datagram can hold."""
    async with tunnel(tmp_path) as through:
        with await through.client() as client:
            await client.send(b"?")
            await through.server_received(b"?")
            assert through.guest.life is not None
            connection = through.guest.life.connection
            (stream,) = connection.streams
            connection.send_data(stream, bytes(65_536))
            connection.send_data(stream, b"!")
            through.guest.life.link.flush()
            assert await client.recv(LARGEST) == b"!"
        assert through.traffic.datagrams_dropped == 1


async def test_another_guest_port_takes_over_with_the_next_flow(tmp_path: Path) -> None:
    """Each flow stays counted where it began."""
    async with tunnel(tmp_path) as through:
        with bound("127.0.0.1") as successor, await through.client() as first, await through.client() as second:
            await first.send(b"old")
            await through.server_received(b"old")
            first_traffic, through.traffic = through.traffic, Traffic()
            through.target = SocketTarget("127.0.0.1", successor.getsockname()[1])
            await second.send(b"new")
            assert await successor.recv(LARGEST) == b"new"
            await first.send(b"still old")
            await through.server_received(b"still old")
            through.close_listener()
            await through.served.wait()
        await through.guest.streams_over()
        assert (first_traffic.connections, through.traffic.connections) == (0, 0)
        assert (first_traffic.datagrams_to_guest, through.traffic.datagrams_to_guest) == (2, 1)


async def test_a_listener_that_is_closed_before_it_was_served_ends_quietly(tmp_path: Path) -> None:
    async with connected_channel(tmp_path) as (channel, observer, guest), trio.open_nursery() as nursery:
        through = Tunnel(channel, observer, guest, "127.0.0.1", nursery)
        with through.server:
            through.close_listener()
            with trio.fail_after(BOUND):
                await through.served.wait()


async def test_a_datagram_in_the_moment_of_the_closing_harms_nobody(tmp_path: Path) -> None:
    """The kernel names both descriptors at once; some listeners are woken before the task that closes them."""
    closing, close = socket.socketpair()
    async with connected_channel(tmp_path) as (channel, observer, guest), trio.open_nursery() as nursery:
        tunnels = [Tunnel(channel, observer, guest, "127.0.0.1", nursery) for _ in range(8)]

        async def close_all() -> None:
            await trio.lowlevel.wait_readable(closing)
            for through in tunnels:
                through.close_listener()

        nursery.start_soon(close_all)
        await trio.testing.wait_all_tasks_blocked()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client, close, closing:
            for number, through in enumerate(tunnels):
                if number == 4:
                    close.send(b"x")
                client.sendto(b"late", through.address)
            with trio.fail_after(BOUND):
                for through in tunnels:
                    await through.served.wait()
                    through.server.close()


def test_nothing_is_left_when_it_is_cancelled(tmp_path: Path) -> None:
    async def use() -> None:
        async with tunnel(tmp_path) as through:
            with await through.client() as client:
                await client.send(b"hello")
                await through.server_received(b"hello")

    trio.run(use)
    with nothing_left_open():
        trio.run(use)


async def test_on_all_addresses_the_answer_comes_from_the_one_that_was_asked(tmp_path: Path) -> None:
    async with tunnel(tmp_path, "0.0.0.0") as through:
        with bound("127.0.0.9") as client:
            await client.connect(("127.0.0.7", through.address[1]))
            await client.send(b"question")
            sender = await through.server_received(b"question")
            await through.server.sendto(b"answer", sender)
            assert await client.recv(LARGEST) == b"answer"


async def test_what_the_kernel_dropped_because_we_were_late_is_counted(tmp_path: Path) -> None:
    count = 2_000
    async with tunnel(tmp_path) as through:
        through.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for _ in range(count):  # without a pause in which the listener could read
                client.sendto(bytes(1_000), through.address)

        def accounted_for() -> bool:
            return through.traffic.datagrams_to_guest + through.traffic.datagrams_dropped == count

        await eventually(accounted_for)
        assert 0 < through.traffic.datagrams_to_guest < 100
