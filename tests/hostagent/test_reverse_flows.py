"""Reverse UDP forwards against a fake guest: each client is a flow, and the host decides when it is over."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio

from hostagent import reverse_flows
from hostagent.forward_rules import StandingForward
from hostagent.forwards import Endpoint, ForwardState
from protocol.ports import Protocol
from tests.fakes.connected_channel import BOUND, eventually, nothing_left_open
from tests.hostagent.test_reverse_forwards import free_port, setting


class UdpEnds:
    """A UDP server of the host and its place in the guest."""

    def __init__(self) -> None:
        self.server = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.address = ("127.0.0.1", free_port(socket.SOCK_DGRAM))

    async def bind(self) -> StandingForward:
        await self.server.bind(("127.0.0.1", 0))
        host = Endpoint(*self.server.getsockname())
        return StandingForward(Protocol.UDP, Endpoint(*self.address), host, "a rule", reverse=True)

    async def client(self) -> trio.socket.SocketType:
        sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        await sock.connect(self.address)
        return sock

    async def echo(self, client: trio.socket.SocketType, payload: bytes) -> object:
        """Send `payload` through and back; the address by which the server knows the client."""
        with trio.fail_after(BOUND):
            await client.send(payload)
            heard, address = await self.server.recvfrom(65_536)
            assert heard == payload
            await self.server.sendto(payload[::-1], address)
            assert await client.recv(65_536) == payload[::-1]
        return address


async def test_each_client_is_a_peer_of_its_own_and_datagrams_are_whole(tmp_path: Path) -> None:
    ends = UdpEnds()
    with ends.server, await ends.client() as first, await ends.client() as second:
        async with setting(tmp_path, await ends.bind()) as here:
            forward = await here.state(ForwardState.LISTENING)
            peers = set()
            for payload in (b"", b"x", bytes(65_507)):
                peers |= {await ends.echo(first, payload), await ends.echo(second, payload)}
            assert len(peers) == 2
            traffic = forward.traffic
            assert (traffic.connections, traffic.datagrams_to_host, traffic.datagrams_to_guest) == (2, 6, 6)


async def test_flows_heal_after_a_cut(tmp_path: Path) -> None:
    ends = UdpEnds()
    with ends.server, await ends.client() as client:
        async with setting(tmp_path, await ends.bind()) as here:
            forward = await here.state(ForwardState.LISTENING)
            await ends.echo(client, b"before")
            here.guest.cut()
            await here.observer.generation(2)
            assert forward.traffic.connections == 0
            await here.state(ForwardState.LISTENING)
            await ends.echo(client, b"after")


async def test_a_flow_ends_when_nobody_listens_on_the_host(tmp_path: Path) -> None:
    ends = UdpEnds()
    with await ends.client() as client:
        async with setting(tmp_path, await ends.bind()) as here:
            forward = await here.state(ForwardState.LISTENING)
            ends.server.close()
            await client.send(b"nobody hears")
            await eventually(lambda: forward.traffic.connections_total == 1 and forward.traffic.connections == 0)
            await here.guest.streams_over()


async def test_an_idle_flow_ends_and_a_busy_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reverse_flows, "IDLE", 0.3)
    ends = UdpEnds()
    with ends.server, await ends.client() as client:
        async with setting(tmp_path, await ends.bind()) as here:
            forward = await here.state(ForwardState.LISTENING)
            for _ in range(4):
                await ends.echo(client, b"busy")
                await trio.sleep(0.1)
            await eventually(lambda: forward.traffic.connections == 0)
            await here.guest.streams_over()
            await ends.echo(client, b"again")


async def test_the_longest_idle_flow_leaves_for_a_new_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reverse_flows, "FLOWS", 2)
    ends = UdpEnds()
    with ends.server, await ends.client() as first, await ends.client() as second, await ends.client() as third:
        async with setting(tmp_path, await ends.bind()) as here:
            forward = await here.state(ForwardState.LISTENING)
            old = await ends.echo(first, b"1")
            stays = await ends.echo(second, b"2")
            await ends.echo(third, b"3")
            assert forward.traffic.connections == 2
            assert await ends.echo(second, b"2") == stays
            assert await ends.echo(first, b"1") != old


async def test_flows_end_with_their_forward(tmp_path: Path) -> None:
    ends = UdpEnds()
    with ends.server, await ends.client() as client, nothing_left_open():
        async with setting(tmp_path, await ends.bind()) as here:
            forward = await here.state(ForwardState.LISTENING)
            await ends.echo(client, b"x")
            here.reverse.change([])
            assert forward.traffic.connections == 0
            await here.guest.streams_over()
