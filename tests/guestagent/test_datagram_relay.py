from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from guestagent.agent import GuestAgent
from protocol.messages import Status, StatusRequest
from protocol.stream_messages import Data, EndOfData, Reset
from tests.guestagent.host_end import BOUND, HostEnd, HostStream, guest_and_host


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[tuple[GuestAgent, HostEnd]]:
    async with guest_and_host(tmp_path) as both:
        yield both


@pytest.fixture
async def server() -> AsyncIterator[trio.socket.SocketType]:
    with trio.socket.socket(type=socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", 0))
        yield sock


def datagrams(stream: HostStream) -> list[bytes]:
    return [said.payload for said in stream.heard if isinstance(said, Data)]


async def receive(sock: trio.socket.SocketType) -> tuple[bytes, tuple[str, int]]:
    with trio.fail_after(BOUND):
        data, address = await sock.recvfrom(65_535)
    return data, address


@pytest.mark.parametrize("asked", ["127.0.0.1", "0.0.0.0"])
async def test_every_size_arrives_as_one_datagram(
    both: tuple[GuestAgent, HostEnd], server: trio.socket.SocketType, asked: str
) -> None:
    _agent, host = both
    stream = await host.udp(server.getsockname()[1], asked).opened()
    for size in (0, 1, 1_200, 32_769, 65_506, 65_507):
        stream.send(bytes(size))
        data, address = await receive(server)
        assert len(data) == size
        await server.sendto(b"\1" * size, address)
        await host.until(lambda: datagrams(stream) or None)
        assert datagrams(stream) == [b"\1" * size]
        del stream.heard[:]


async def test_flows_are_distinct_peers(both: tuple[GuestAgent, HostEnd], server: trio.socket.SocketType) -> None:
    _agent, host = both
    flows = [await host.udp(server.getsockname()[1]).opened() for _ in range(5)]
    addresses = []
    for number, flow in enumerate(flows):
        flow.send(b"%d" % number)
        data, address = await receive(server)
        addresses.append(address)
        await server.sendto(data * 2, address)
    assert len(set(addresses)) == 5
    for number, flow in enumerate(flows):
        await flow.until_output(b"%d" % number * 2)
        assert len(datagrams(flow)) == 1


async def test_nobody_there_resets_the_flow(both: tuple[GuestAgent, HostEnd]) -> None:
    agent, host = both
    with socket.socket(type=socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    stream = await host.udp(port).opened()
    stream.send(b"anybody?")
    assert (await stream.wait(Reset)).reason == "Connection refused"
    assert len(agent._table) == 0


async def test_a_datagram_that_cannot_be_sent_is_counted_and_the_flow_lives(
    both: tuple[GuestAgent, HostEnd], server: trio.socket.SocketType
) -> None:
    _agent, host = both
    stream = await host.udp(server.getsockname()[1]).opened()
    stream.send(bytes(65_536))
    stream.send(b"next")
    assert (await receive(server))[0] == b"next"
    host.messages.clear()
    host.say(StatusRequest())
    assert dict((await host.message(Status)).counters)["datagrams dropped"] == 1


async def test_a_burst_arrives_in_order(both: tuple[GuestAgent, HostEnd], server: trio.socket.SocketType) -> None:
    _agent, host = both
    stream = await host.udp(server.getsockname()[1]).opened()
    stream.send(b"hello")
    _data, address = await receive(server)
    for number in range(60):
        await server.sendto(b"%d" % number, address)
    await host.until(lambda: True if len(datagrams(stream)) == 60 else None)
    assert datagrams(stream) == [b"%d" % number for number in range(60)]


async def test_the_host_ends_a_flow(both: tuple[GuestAgent, HostEnd], server: trio.socket.SocketType) -> None:
    agent, host = both
    first, second = [await host.udp(server.getsockname()[1]).opened() for _ in range(2)]
    first.send_end()
    await first.wait(EndOfData)
    second.reset()
    third = await host.udp(server.getsockname()[1]).opened()
    assert len(agent._table) == 1
    host.cut()
    await host.generation(2)
    assert len(agent._table) == 0
    assert not host.streams
    assert third.stream.number not in host.streams


async def test_an_address_that_cannot_be_had_is_refused(both: tuple[GuestAgent, HostEnd]) -> None:
    _agent, host = both
    assert await host.udp(80, "255.255.255.255").refusal() in ("EACCES", "ENETUNREACH")
