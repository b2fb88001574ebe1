"""Clients that wait: for a guest agent that is away, and for a program that does not exist yet."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from hostagent import tcp_listener
from hostagent.forward_plan import ListenerKey
from hostagent.forwards import Endpoint
from hostagent.stream_socket import listen
from protocol.ports import Protocol
from protocol.stream_messages import SocketTarget
from tests.fakes.connected_channel import BOUND, eventually
from tests.hostagent.test_tcp_listener import CHUNK, expect_reset, tunnel


async def test_clients_wait_for_a_guest_agent_that_is_away_for_a_moment(tmp_path: Path) -> None:
    async with tunnel(tmp_path) as through:
        through.ready = trio.Event()
        async with await through.connect() as client:
            await client.send_all(b"early")
            await trio.testing.wait_all_tasks_blocked()
            assert through.guest.opened == []
            through.ready.set()
            async with await through.server.accept() as server:
                assert await server.receive_some(CHUNK) == b"early"


async def test_clients_do_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_listener, "PATIENCE", 0.05)
    async with tunnel(tmp_path) as through:
        through.guest.kill()
        through.guest.cut()
        await through.observer.end(1)
        through.ready = trio.Event()
        async with await through.connect() as client:
            await expect_reset(client)
        assert through.traffic.connections == 0


async def test_each_client_has_its_own_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that came late does not share the fate of the one before it."""
    monkeypatch.setattr(tcp_listener, "PATIENCE", 0.1)
    async with tunnel(tmp_path) as through:
        through.ready = trio.Event()
        async with await through.connect() as first:
            await eventually(lambda: through.traffic.connections == 1)
            await trio.testing.wait_all_tasks_blocked()
            monkeypatch.setattr(tcp_listener, "PATIENCE", BOUND)
            async with await through.connect():
                await eventually(lambda: through.traffic.connections_total == 2)
                await expect_reset(first)
                through.ready.set()
                async with await through.server.accept():
                    assert through.traffic.connections == 1


def closed_number() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        number: int = sock.getsockname()[1]
        return number


@pytest.mark.parametrize("heard", [True, False])
async def test_a_client_may_wait_for_the_program(tmp_path: Path, heard: bool) -> None:
    """As long as the route says, whether the guest tells of the port or not."""
    async with tunnel(tmp_path) as through:
        number = closed_number()
        through.target, through.wait = SocketTarget("127.0.0.1", number), 60.0
        async with await through.connect() as client:
            await client.send_all(b"early")
            await eventually(lambda: len(through.guest.opened) > 0)
            sock = listen(ListenerKey(Protocol.TCP, Endpoint("127.0.0.1", number)))
            if heard:
                through.news.set()
            async with trio.SocketListener(trio.socket.from_stdlib_socket(sock)) as late:
                async with await late.accept() as server:
                    assert await server.receive_some(CHUNK) == b"early"
        await eventually(lambda: through.traffic.connections == 0)
        assert (through.traffic.connections_total, through.traffic.connections_refused) == (1, 0)


async def test_a_client_waits_for_the_program_no_longer_than_the_route_says(tmp_path: Path) -> None:
    async with tunnel(tmp_path) as through:
        through.target, through.wait = SocketTarget("127.0.0.1", closed_number()), 0.1
        async with await through.connect() as client:
            await expect_reset(client)
        await eventually(lambda: through.traffic.connections == 0)
        assert through.traffic.connections_refused == 1
        assert len(through.guest.opened) >= 2


async def test_a_client_that_waits_when_the_listener_is_closed_is_reset(tmp_path: Path) -> None:
    async with tunnel(tmp_path) as through:
        through.target, through.wait = SocketTarget("127.0.0.1", closed_number()), 60.0
        async with await through.connect() as client:
            await eventually(lambda: len(through.guest.opened) > 0)
            through.close_listener()
            await expect_reset(client)
