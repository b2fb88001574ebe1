"""The traffic notices what it is there for: an end that comes early, a wrong byte, one too few, one too many."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from tests.e2e.guest_server import BLOCK, NumberedStream, numbered_block
from tests.faults.traffic import Served, Traffic, traffic

START = numbered_block(0) + numbered_block(1)
BOUND = 10.0


@pytest.mark.parametrize("size", [1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK])
def test_the_stream_is_accepted_in_any_pieces(size: int) -> None:
    stream = NumberedStream()
    assert all(stream.accepts(START[begin : begin + size]) for begin in range(0, 3 * size, size))
    assert stream.position == min(3 * size, len(START))


@pytest.mark.parametrize(
    "broken",
    [
        START[:100] + START[101:],
        START[:100] + b"!" + START[100:],
        START[:100] + START[50:],
        START[BLOCK:],
        START[:BLOCK] + START[:BLOCK],
    ],
    ids=["lost byte", "made up byte", "doubled bytes", "lost block", "doubled block"],
)
def test_what_is_lost_doubled_or_moved_is_noticed(broken: bytes) -> None:
    assert not NumberedStream().accepts(broken)


Behaviour = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def server(behaviour: Behaviour) -> AsyncIterator[int]:
    """The port, on both loopback addresses, of a server that does `behaviour` to each client."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    async with trio.open_nursery() as nursery:
        listeners = [*await trio.open_tcp_listeners(port, host="127.0.0.1")]
        listeners += await trio.open_tcp_listeners(port, host="::1")
        nursery.start_soon(trio.serve_listeners, behaviour, listeners)
        yield port
        nursery.cancel_scope.cancel()


async def closes(stream: trio.SocketStream) -> None:
    await stream.aclose()


async def sends_nonsense(stream: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):  # the client need not read all of it
        await stream.send_all(START[1:])
    await stream.aclose()


async def answers_nonsense(stream: trio.SocketStream) -> None:
    async for _ in stream:
        pass
    await stream.send_all(b"0\n")
    await stream.aclose()


async def first_problem(clients: Traffic) -> str:
    with trio.fail_after(BOUND):
        while not clients.problems:  # noqa: ASYNC110 - it is told to nobody else
            await trio.sleep(0.01)
    return clients.problems[0]


@pytest.mark.parametrize(
    ("port", "behaviour", "problem"),
    [
        ("numbered", closes, "download: an end after 0 bytes"),
        ("numbered", sends_nonsense, "download: wrong bytes behind 0"),
        ("digest", answers_nonsense, "answered b'0"),
    ],
)
async def test_wrong_answers_are_told(port: str, behaviour: Behaviour, problem: str) -> None:
    refused = 1  # nobody listens there, and nobody may without being root
    async with server(behaviour) as number:
        ports = {"numbered": refused, "verify": refused, "digest": refused, "echo": refused} | {port: number}
        async with traffic(Served(**ports), 1, may_be_refused=True) as clients:
            assert problem in await first_problem(clients)


async def test_a_listener_that_is_gone_is_told_where_it_must_stay() -> None:
    async with traffic(Served(1, 1, 1, 1), 1, may_be_refused=False) as clients:
        assert "listener was gone" in await first_problem(clients)
