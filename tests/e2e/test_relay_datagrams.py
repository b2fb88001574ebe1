"""UDP through a forward: one datagram is one datagram, each client is a peer of its own, and nobody is waited for."""

from __future__ import annotations

import os
from functools import partial

import pytest
import trio

from hostagent.forwards import Traffic
from protocol.ports import Port, Protocol
from tests.e2e.clients import LOOPBACKS, eventually, exchange, udp_client
from tests.e2e.host_side import HostSide
from tests.e2e.shared_guest import SharedGuest

pytestmark = pytest.mark.tiny_guest

SIZES = (0, 1, 512, 1472, 1473, 4096, 16_384, 32_768, 32_769, 65_000, 65_507)
BOUND_TO = ("127.0.0.1", "::1", "0.0.0.0", "::")
NUMBERS = iter(range(26_000, 32_000))
"""UDP ports from 32768 on belong to clients and are not forwarded, so the kernel must not choose."""


async def serve(tiny: SharedGuest, host: HostSide, kind: str, address: str = "127.0.0.1") -> int:
    """A forwarded UDP server in the guest; its port."""
    port = await tiny.server.udp(kind, address, next(NUMBERS))
    await host.listening(port, protocol=Protocol.UDP)
    return port


@pytest.mark.parametrize("loopback", LOOPBACKS)
@pytest.mark.parametrize("bound_to", BOUND_TO)
async def test_every_size_comes_back_whole(tiny: SharedGuest, host: HostSide, bound_to: str, loopback: str) -> None:
    port = await serve(tiny, host, "echo", bound_to)
    async with udp_client(port, loopback) as client:
        for size in SIZES:
            datagram = os.urandom(size)
            assert await exchange(client, datagram) == datagram
    await tiny.server.close(port)


async def test_two_clients_are_two_peers_and_one_client_stays_one(tiny: SharedGuest, host: HostSide) -> None:
    port = await serve(tiny, host, "peer")
    async with udp_client(port) as one, udp_client(port) as other:
        first, second = await exchange(one, b"who?"), await exchange(other, b"who?")
        assert first != second
        assert [await exchange(one, b"who?"), await exchange(other, b"who?")] == [first, second]
    await tiny.server.close(port)


async def test_a_server_that_connects_to_its_client_goes_on_answering(tiny: SharedGuest, host: HostSide) -> None:
    port = await serve(tiny, host, "connected")
    async with udp_client(port) as client:
        for number in range(20):
            assert await exchange(client, b"%d" % number) == b"%d" % number
            await trio.sleep(0.02)  # so that the port watch sees the socket in its connected state, and keeps it
    await host.listening(port, protocol=Protocol.UDP)
    await tiny.server.close(port)
    await host.gone(port, protocol=Protocol.UDP)


async def _had_flows(traffic: Traffic, count: int) -> bool:
    """Whether `count` flows have been, and none is."""
    return traffic.connections_total == count and not traffic.connections


async def test_an_unreachable_port_ends_the_flow_and_the_next_datagram_begins_another(
    tiny: SharedGuest, host: HostSide
) -> None:
    number = next(NUMBERS)
    assert host.forwarder.change([Port(Protocol.UDP, "127.0.0.1", number)], [])
    forward = host.forward(number, Protocol.UDP)
    assert forward is not None
    async with udp_client(number) as client:
        for flows in range(1, 4):
            await client.send(b"anybody?")
            await eventually(partial(_had_flows, forward.traffic, flows), 10)
        await tiny.server.udp("echo", "127.0.0.1", number)
        assert await exchange(client, b"now?") == b"now?"
    await tiny.server.close(number)
    await host.gone(number, protocol=Protocol.UDP)


async def test_a_flood_loses_datagrams_and_nothing_else(tiny: SharedGuest, host: HostSide) -> None:
    port = await serve(tiny, host, "silent")
    forward = host.forward(port, Protocol.UDP)
    assert forward is not None
    async with udp_client(port) as client:
        for _ in range(20_000):
            await client.send(bytes(1200))
    other = await serve(tiny, host, "echo")
    async with udp_client(other) as client:
        assert await exchange(client, b"still there?") == b"still there?"
    assert forward.traffic.datagrams_to_guest > 0
    for used in (port, other):
        await tiny.server.close(used)


async def test_200_clients_at_once_each_get_their_own_answer(tiny: SharedGuest, host: HostSide) -> None:
    port = await serve(tiny, host, "peer")
    peers = set()

    async def ask() -> None:
        async with udp_client(port) as client:
            peers.add(await exchange(client, b"who?", seconds=30))

    async with trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(ask)
    assert len(peers) == 200
    await tiny.server.close(port)


async def test_a_closed_port_is_free_on_the_host(tiny: SharedGuest, host: HostSide) -> None:
    port = await serve(tiny, host, "echo")
    await tiny.server.close(port)
    await host.gone(port, protocol=Protocol.UDP)
    for loopback in LOOPBACKS:
        family = trio.socket.AF_INET6 if ":" in loopback else trio.socket.AF_INET
        with trio.socket.socket(family, trio.socket.SOCK_DGRAM) as probe:
            await probe.bind((loopback, port))
