"""Two sockets through the whole core: as if they were connected with each other."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest
import trio
import trio.lowlevel
from trio.testing import check_half_closeable_stream, wait_all_tasks_blocked

from protocol import limits
from protocol.connection import GenerationStarted
from protocol.relay import SocketRelay
from protocol.stream_messages import Data, EndOfData, Reset
from tests.fakes.link import FakeLink
from tests.protocol.pair import Pair
from tests.protocol.tunnel import close_with_reset, tcp_pair, tunnel

BLOCK = bytes(range(256)) * 1_024


async def read_all(stream: trio.SocketStream) -> bytes:
    return b"".join([bytes(chunk) async for chunk in stream])


@pytest.mark.parametrize("size", [0, 1, 65_536, 3_000_000])
async def test_each_direction_ends_by_itself(size: int) -> None:
    request, answer = (BLOCK * (size // len(BLOCK) + 1))[:size], b"answer" * 1_000
    async with tunnel() as both:
        for turn in (False, True):
            client, server = await both.sockets()
            if turn:
                client, server = server, client
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def send(client: trio.SocketStream = client) -> None:
                    await client.send_all(request)
                    await client.send_eof()

                assert await read_all(server) == request
                await server.send_all(answer)
                await server.send_eof()
                assert await read_all(client) == answer
            await wait_all_tasks_blocked(0.01)
            assert list(both.host.connection.streams) == []
        assert both.host.aborted == both.guest.aborted == [False, False]


@pytest.mark.parametrize("from_client", [True, False])
async def test_a_reset_is_a_reset(from_client: bool) -> None:
    async with tunnel() as both:
        client, server = await both.sockets()
        if not from_client:
            client, server = server, client
        await client.send_all(b"hello")
        assert await server.receive_some() == b"hello"
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await client.aclose()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await server.receive_some()
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        assert both.host.aborted == both.guest.aborted == [True]


async def test_a_slow_reader_stops_its_writer_and_memory_is_bounded() -> None:
    async with tunnel() as both:
        client, server = await both.sockets()
        sent = 0
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def send() -> None:
                    nonlocal sent
                    while True:
                        sent += await client.socket.send(BLOCK)

                await wait_all_tasks_blocked(0.05)
                scope.cancel()
        held = len(both.guest.relays[1].waiting) + both.host.connection.stream(1)._queued  # type: ignore[union-attr]
        assert held <= limits.STREAM_WINDOW + limits.SEND_QUEUE
        await client.send_eof()
        assert len(await read_all(server)) == sent


async def test_the_channel_fails_and_sockets_are_reset_not_ended() -> None:
    async with tunnel() as both:
        client, server = await both.sockets()
        await client.send_all(b"half of some")
        assert await server.receive_some() == b"half of some"
        both.link.cut()
        for stream in (client, server):
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        await both.host.until_started(2)
        assert isinstance(both.host.heard[-1], GenerationStarted)


async def test_cancelling_the_tasks_resets_both_ends() -> None:
    async with tunnel() as both:
        _, server = await both.sockets()
        both.host.relays[1].abandon("the forwarder stopped")
        both.host.relays[1].abandon("again")
        both.host.flush()
        with pytest.raises(trio.BrokenResourceError):
            await server.receive_some()


async def test_as_trio_wants_a_stream() -> None:
    async with tunnel() as both:

        async def clogged() -> tuple[trio.SocketStream, trio.SocketStream]:
            left, right = await both.sockets()
            full = 0
            while full < 5:  # the kernels and the tunnel may still move something
                full += 1
                for sock in both.outer[-2:]:
                    # Not by poll, which calls a socket full while it still takes a few bytes.
                    with suppress(BlockingIOError):
                        while sock.send(BLOCK):
                            full = 0
                await wait_all_tasks_blocked(0.03)
            return left, right

        await check_half_closeable_stream(both.sockets, clogged)


# ---------------------------------------------------------------------- without tasks


class Alone:
    """A relay between a real socket and a pair of connections, moved by hand."""

    def __init__(self) -> None:
        self.pair = Pair().start()
        self.ours, self.theirs = self.pair.open()
        self.client, inner = tcp_pair()
        self.finished: list[bool] = []
        self.relay = SocketRelay(
            inner,
            self.pair.host.connection,
            self.ours,
            waits=FakeLink().waits,
            flush=lambda: None,
            finish=self._finish,
        )
        self.inner = inner

    def _finish(self, abort: bool) -> None:
        self.finished.append(abort)
        self.inner.close()

    def hear(self) -> None:
        """What the guest said arrives in one batch, as a link delivers it."""
        self.pair.leave(self.pair.guest)
        for event in self.pair.arrive(self.pair.host):
            if isinstance(event, Data):
                self.relay.receive_data(event.payload)
            elif isinstance(event, EndOfData):
                self.relay.receive_end()
            elif isinstance(event, Reset):
                self.relay.receive_reset()

    def close(self) -> None:
        self.client.close()
        self.inner.close()


@pytest.fixture
def alone() -> Iterator[Alone]:
    made = Alone()
    yield made
    made.close()


def test_data_and_end_in_one_batch_are_all_delivered(alone: Alone) -> None:
    """The stream is over before its relay has heard of it."""
    alone.client.shutdown(socket.SHUT_WR)
    assert alone.relay.read_turn() is False
    alone.pair.settle()
    guest = alone.pair.guest.connection
    for payload in (b"first ", b"second ", b"third"):
        guest.send_data(alone.theirs, payload)
    guest.send_end(alone.theirs)
    alone.hear()
    assert alone.finished == [False]
    assert alone.client.recv(100) == b"first second third"
    assert alone.client.recv(100) == b""


def test_data_and_reset_in_one_batch_are_a_reset(alone: Alone) -> None:
    alone.client.shutdown(socket.SHUT_WR)
    alone.relay.read_turn()
    alone.pair.settle()
    guest = alone.pair.guest.connection
    guest.send_data(alone.theirs, b"part")
    alone.pair.leave(alone.pair.guest)
    guest.send_reset(alone.theirs, "broken")
    alone.hear()
    assert alone.finished == [True]


def test_single_bytes_for_a_socket_that_does_not_read_cost_single_bytes(alone: Alone) -> None:
    alone.inner.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    while not alone.relay.waiting:
        alone.relay.receive_data(BLOCK)
    before = len(alone.relay.waiting)
    for _ in range(1_000):
        alone.relay.receive_data(b"x")
    assert len(alone.relay.waiting) == before + 1_000
    assert isinstance(alone.relay.waiting, bytearray)


def test_a_socket_that_was_reset_resets_the_stream(alone: Alone) -> None:
    close_with_reset(alone.client)
    assert alone.relay.read_turn() is False
    alone.relay.receive_data(b"late")
    alone.relay.receive_end()
    alone.pair.settle()
    assert alone.finished == [True]
    assert alone.pair.guest.heard == [Reset(1, "Connection reset by peer")]


@pytest.mark.parametrize("end", [True, False])
def test_writing_to_a_socket_that_was_reset_resets_the_stream(alone: Alone, end: bool) -> None:
    close_with_reset(alone.client)
    if end:
        alone.relay.receive_end()
    else:
        alone.relay.receive_data(b"late")
    alone.pair.settle()
    alone.relay.receive_reset()
    assert alone.finished == [True]
    assert [type(event) for event in alone.pair.guest.heard] == [Reset]


def test_an_end_behind_bytes_that_wait_comes_behind_them(alone: Alone) -> None:
    sent = 0
    while not alone.relay.waiting:
        alone.relay.receive_data(BLOCK)
        sent += len(BLOCK)
    alone.relay.receive_end()
    got = bytearray()
    while True:
        try:
            chunk = alone.client.recv(1 << 20)
        except BlockingIOError:
            alone.relay.drain()
            continue
        if not chunk:
            break
        got += chunk
    assert len(got) == sent
    assert alone.relay.received == sent
    assert alone.finished == []


def test_a_socket_that_fails_while_bytes_wait(alone: Alone) -> None:
    while not alone.relay.waiting:
        alone.relay.receive_data(BLOCK)
    close_with_reset(alone.client)
    alone.relay.receive_end()
    alone.relay.drain()
    assert alone.finished == [True]
    alone.relay.receive_data(b"late")
    assert not alone.relay.waiting


def test_what_a_full_socket_does_not_take_waits(alone: Alone) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            alone.relay._sock.send(BLOCK)
    alone.relay.receive_data(b"later")
    assert alone.relay.waiting == b"later"


def test_nothing_is_read_while_the_stream_has_no_room(alone: Alone) -> None:
    alone.client.send(b"x")
    alone.pair.host.connection.send_data(alone.ours, bytes(limits.SEND_QUEUE))
    assert alone.relay.read_turn() is True
    assert alone.relay.sent == 0


def test_one_turn_reads_what_the_stream_has_room_for(alone: Alone) -> None:
    while True:
        try:
            alone.client.send(bytes(limits.MAX_PAYLOAD))
        except BlockingIOError:
            break
    assert alone.relay.read_turn() is True
    assert limits.MAX_PAYLOAD <= alone.relay.sent <= limits.SEND_QUEUE


@pytest.mark.parametrize("task", ["read", "read without room", "write", "write while the socket is full"])
async def test_cancelled_at_each_await_and_started_again(alone: Alone, task: str) -> None:
    relay = alone.relay
    if task == "read without room":
        alone.pair.host.connection.send_data(alone.ours, bytes(limits.SEND_QUEUE + limits.STREAM_WINDOW))
    if task == "write while the socket is full":
        while not relay.waiting:
            relay.receive_data(BLOCK)
    run = relay.read if task.startswith("read") else relay.write
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert alone.finished == []
    alone.client.send(b"still read")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.read)
        nursery.start_soon(relay.write)
        await wait_all_tasks_blocked()
        alone.pair.settle()
        for number in alone.pair.host.connection.take_unpaused():
            assert number == 1
            relay.unpaused()
        alone.pair.guest.connection.consumed(alone.theirs, limits.STREAM_WINDOW)
        alone.pair.settle()
        for _ in alone.pair.host.connection.take_unpaused():
            relay.unpaused()
        while not relay.sent:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert relay.sent == len(b"still read")


def test_reading_nothing_is_no_end(alone: Alone) -> None:
    assert alone.relay.read_turn() is True
    assert alone.finished == []
