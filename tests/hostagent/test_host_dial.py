"""Reaching what runs on the host: at either loopback address, by a path, and refused as it is."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from hostagent import host_dial
from hostagent.forwards import Endpoint, SocketFile
from hostagent.host_dial import addresses, dial
from tests.fakes.connected_channel import BOUND, nothing_left_open


@pytest.mark.parametrize(
    ("address", "reached"),
    [
        ("127.0.0.1", ["127.0.0.1", "::1"]),
        ("::1", ["::1", "127.0.0.1"]),
        ("0.0.0.0", ["127.0.0.1", "::1"]),
        ("::", ["::1", "127.0.0.1"]),
        ("192.0.2.1", ["192.0.2.1"]),
    ],
)
def test_loopback_is_two_addresses(address: str, reached: list[str]) -> None:
    assert addresses(Endpoint(address, 80)) == [(one, 80) for one in reached]


@pytest.mark.parametrize(("bound", "asked"), [("127.0.0.1", "127.0.0.1"), ("::1", "127.0.0.1"), ("127.0.0.1", "::1")])
async def test_a_server_at_either_loopback_address_is_reached(bound: str, asked: str) -> None:
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    with socket.create_server((bound, 0), family=family) as server:
        with await dial(Endpoint(asked, server.getsockname()[1])) as sock:
            assert sock.getblocking() is False
            assert sock.getpeername()[0] == bound
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_closed_port_is_refused() -> None:
    with socket.socket() as unused, nothing_left_open():
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            await dial(Endpoint("127.0.0.1", unused.getsockname()[1]))


async def test_an_address_without_a_way_says_its_own_error() -> None:
    with nothing_left_open(), pytest.raises(OSError, match=r"unreachable|Permission denied"):
        await dial(Endpoint("255.255.255.255", 80))


async def test_a_unix_socket_and_why_it_cannot_be_reached(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await dial(SocketFile(str(tmp_path / "nothing")))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(ConnectionRefusedError):
            await dial(SocketFile(str(tmp_path / "s")))
        server.listen()
        (await dial(SocketFile(str(tmp_path / "s")))).close()


async def test_a_full_queue_of_a_unix_socket_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "busy"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as first:
        server.bind(str(path))
        server.listen(0)
        first.connect(str(path))
        reached = trio.Event()

        async def reach() -> None:
            (await dial(SocketFile(str(path)))).close()
            reached.set()

        with trio.fail_after(BOUND):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reach)
                await trio.sleep(3 * host_dial.UNIX_RETRY)
                assert not reached.is_set()
                server.accept()[0].close()


async def test_a_queue_that_stays_full_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_dial, "DIAL_BOUND", 0.05)
    path = tmp_path / "busy"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as first:
        server.bind(str(path))
        server.listen(0)
        first.connect(str(path))
        with nothing_left_open(), pytest.raises(OSError, match="timed out") as caught:
            await dial(SocketFile(str(path)))
    assert caught.value.errno == errno.ETIMEDOUT
