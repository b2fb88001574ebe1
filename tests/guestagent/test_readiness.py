from __future__ import annotations

import queue
import select
import socket
from collections.abc import Callable, Iterator
from itertools import chain, repeat

import pytest
import trio
import trio.testing

from guestagent import readiness
from guestagent.readiness import Pollable, Readiness
from protocol.stream_messages import SocketTarget, StreamKind
from protocol.streams import Stream
from tests.guestagent.host_end import BOUND


class Reader:
    """A `Pollable` that does what a test says."""

    def __init__(self, act: Callable[[int], None]) -> None:
        self.stream = Stream(1, StreamKind.TCP, SocketTarget("::1", 1), ours=False, window=0, credit=0)
        self.ready = act

    def receive_data(self, payload: bytes) -> None: ...
    def receive_end(self) -> None: ...
    def receive_reset(self) -> None: ...
    def unpaused(self) -> None: ...


class Watched:
    """A `Readiness` that counts its batches and remembers what failed."""

    def __init__(self) -> None:
        self.batches = 0
        self.failed: list[Pollable] = []
        self.readiness = Readiness(settled=self._settled, failed=self.failed.append)
        self.news = trio.Event()

    def _settled(self) -> None:
        self.batches += 1
        self.news.set()
        self.news = trio.Event()

    async def batch(self) -> None:
        with trio.fail_after(BOUND):
            await self.news.wait()


@pytest.fixture
async def watched(nursery: trio.Nursery) -> Watched:
    watched = Watched()
    nursery.start_soon(watched.readiness.run)
    return watched


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    near.setblocking(False)
    with near, far:
        yield near, far


async def test_what_is_ready_is_called_and_the_batch_settled_once(watched: Watched) -> None:
    pairs = [socket.socketpair() for _ in range(10)]
    read: list[bytes] = []
    for near, far in pairs:
        reader = Reader(lambda _events, near=near: read.append(near.recv(10)))  # type: ignore[misc]
        watched.readiness.register(near.fileno(), select.EPOLLIN, reader)
        far.send(b"x")
    await watched.batch()
    assert (len(read), watched.batches) == (10, 1)
    for near, far in pairs:
        watched.readiness.unregister(near.fileno())
        near.close()
        far.close()


class Turns(trio.abc.Instrument):
    """Counts the turns of trio's loop."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


async def test_what_follows_soon_is_served_before_trio_gets_its_turn(
    watched: Watched, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = pair
    turns, served = Turns(), list[int]()
    asked: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    times = chain([0.0, 0.0], repeat(BOUND))  # begun, looked at again once, over
    monkeypatch.setattr(readiness, "monotonic", times.__next__)
    monkeypatch.setattr(readiness, "LINGER", BOUND)

    def act(_events: int) -> None:
        served.append(turns.count)
        asked.put(near.recv(10))

    watched.readiness.register(near.fileno(), select.EPOLLIN, Reader(act))
    trio.lowlevel.add_instrument(turns)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, lambda: far.send(asked.get()))
        await trio.testing.wait_all_tasks_blocked()  # the thread runs
        far.send(b"question")
        await watched.batch()
    trio.lowlevel.remove_instrument(turns)
    assert len(served) == 2
    assert served[0] == served[1]


async def test_a_bug_in_one_does_not_stop_the_others(
    watched: Watched, pair: tuple[socket.socket, socket.socket]
) -> None:
    def fail(_events: int) -> None:
        watched.readiness.unregister(pair[0].fileno())
        raise ZeroDivisionError

    bad = Reader(fail)
    read: list[bytes] = []
    near, far = socket.socketpair()
    with near, far:
        watched.readiness.register(pair[0].fileno(), select.EPOLLIN, bad)
        watched.readiness.register(near.fileno(), select.EPOLLIN, Reader(lambda _events: read.append(near.recv(10))))
        pair[1].send(b"x")
        far.send(b"y")
        await watched.batch()
    assert watched.failed == [bad]
    assert read == [b"y"]


async def test_what_is_not_waited_for_is_not_called(
    watched: Watched, pair: tuple[socket.socket, socket.socket]
) -> None:
    near, far = pair
    called: list[int] = []

    def act(events: int) -> None:
        called.append(events)
        watched.readiness.modify(near.fileno(), 0)

    watched.readiness.register(near.fileno(), select.EPOLLIN, Reader(act))
    far.send(b"x")
    await watched.batch()
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert called == [select.EPOLLIN]
    watched.readiness.modify(near.fileno(), select.EPOLLOUT)
    await watched.batch()
    assert called[-1] == select.EPOLLOUT


async def test_what_was_unregistered_in_the_same_batch_is_not_called(watched: Watched) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    called: list[int] = []

    def act(_events: int) -> None:
        called.append(1)
        for near, _far in pairs:
            watched.readiness.unregister(near.fileno())

    for near, far in pairs:
        watched.readiness.register(near.fileno(), select.EPOLLIN, Reader(act))
        far.send(b"x")
    await watched.batch()
    assert called == [1]
    for near, far in pairs:
        near.close()
        far.close()


def test_unregistering_twice_or_late_does_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    readiness = Readiness(settled=lambda: None, failed=lambda _pollable: None)
    number = pair[0].fileno()
    readiness.register(number, select.EPOLLIN, Reader(lambda _events: None))
    readiness.unregister(number)
    readiness.unregister(number)
    readiness.close()
