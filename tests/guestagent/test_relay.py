from __future__ import annotations

import errno
import random
import select
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Self

import pytest
import trio
import trio.testing

from guestagent import relay
from guestagent.readiness import Readiness
from guestagent.relay import TcpRelay, destination, error_name
from guestagent.stream_table import StreamTable
from protocol.limits import SEND_QUEUE, STREAM_WINDOW
from protocol.stream_messages import Data, EndOfData, ListenerTarget, Reset, SocketTarget, StreamKind
from tests.guestagent.host_end import BOUND, HostEnd, HostStream, guest_and_host
from tests.protocol.pair import Pair


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[HostEnd]:
    async with guest_and_host(tmp_path) as (_agent, host):
        yield host


class Server:
    """A listener, and the sockets it accepted, which are closed with it."""

    def __init__(self, address: str = "127.0.0.1", backlog: int = 128) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = trio.socket.from_stdlib_socket(
            socket.create_server((address, 0), family=family, backlog=backlog)
        )
        self._accepted = ExitStack()
        self.port = int(self._listener.getsockname()[1])

    async def accept(self) -> trio.socket.SocketType:
        with trio.fail_after(BOUND):
            sock, _address = await self._listener.accept()
        return self._accepted.enter_context(sock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._listener.close()
        self._accepted.close()


async def connect(host: HostEnd, server: Server) -> tuple[HostStream, trio.socket.SocketType]:
    """An open stream and the server's end of its connection."""
    return await host.tcp(server.port).opened(), await server.accept()


def test_a_short_answer_and_its_end_leave_together() -> None:
    pair = Pair().start()
    ours, theirs = pair.open()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        client.setblocking(False)
        server, _address = listener.accept()
    with closing(Readiness(settled=lambda: None, failed=lambda _: None)) as readiness, client:
        connection = pair.guest.connection
        tcp = TcpRelay(client, connection, theirs, readiness, StreamTable(connection))
        with server:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)  # the end goes into the answer's segment
            server.send(b"answer")
        came = select.poll()
        came.register(client, select.POLLRDHUP)
        assert came.poll(BOUND * 1000)
        tcp.ready(select.EPOLLIN | select.EPOLLRDHUP)
        pair.leave(pair.guest)
        assert pair.arrive(pair.host) == [Data(ours.number, b"answer"), EndOfData(ours.number)]


async def receive_all(sock: trio.socket.SocketType) -> bytes:
    data = bytearray()
    with trio.fail_after(BOUND):
        while chunk := await sock.recv(65_536):
            data += chunk
    return bytes(data)


def abort(sock: trio.socket.SocketType) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize(
    ("address", "family", "reached"),
    [
        ("0.0.0.0", socket.AF_INET, "127.0.0.1"),
        ("::", socket.AF_INET6, "::1"),
        ("::1", socket.AF_INET6, "::1"),
        ("10.1.2.3", socket.AF_INET, "10.1.2.3"),
    ],
)
def test_all_addresses_are_reached_on_the_loopback(address: str, family: int, reached: str) -> None:
    assert destination(SocketTarget(address, 80)) == (family, (reached, 80))


def test_an_unknown_error_number_has_a_name() -> None:
    assert error_name(errno.ECONNREFUSED) == "ECONNREFUSED"
    assert error_name(99_999) == "EIO"


@pytest.mark.parametrize(("bound", "asked"), [("127.0.0.1", "0.0.0.0"), ("::1", "::"), ("::1", "::1")])
async def test_bytes_travel_both_ways_and_half_close_keeps_the_answer(host: HostEnd, bound: str, asked: str) -> None:
    question = random.Random(1).randbytes(1_500_000)
    with Server(bound) as server:
        stream = await host.tcp(server.port, asked).opened()
        conversation = await server.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, question)
            with trio.fail_after(BOUND):
                data = bytearray()
                while len(data) < len(question):
                    data += await conversation.recv(65_536)
        assert data == question
        stream.send_end()
        assert await receive_all(conversation) == b""
        answer = question[::-1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.SocketStream(conversation).send_all, answer)
            await host.until(lambda: True if len(stream.output()) == len(answer) else None)
        conversation.close()
        await stream.wait(EndOfData)
        assert stream.output() == answer


async def test_a_unix_socket_is_reached_by_its_path_and_half_close_keeps_the_answer(
    host: HostEnd, tmp_path: Path
) -> None:
    path = tmp_path / "server"
    with trio.socket.socket(socket.AF_UNIX) as listener:
        await listener.bind(str(path))
        listener.listen(1)
        stream = await host.unix(path).opened()
        with trio.fail_after(BOUND):
            conversation, _ = await listener.accept()
        with conversation:
            stream.send(b"question")
            stream.send_end()
            assert await receive_all(conversation) == b"question"
            await conversation.send(b"answer")
            conversation.shutdown(socket.SHUT_WR)
            await stream.wait(EndOfData)
            assert stream.output() == b"answer"


async def test_a_unix_socket_that_is_not_there_is_refused_with_its_errno(host: HostEnd, tmp_path: Path) -> None:
    assert await host.unix(tmp_path / "nothing").refusal() == "ENOENT"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    assert await host.unix(tmp_path / "dead").refusal() == "ECONNREFUSED"
    (tmp_path / "file").touch()
    assert await host.unix(tmp_path / "file").refusal() == "ECONNREFUSED"


async def test_a_dial_waits_while_a_unix_socket_has_a_full_queue(host: HostEnd, tmp_path: Path) -> None:
    with trio.socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        await listener.bind(str(tmp_path / "busy"))
        listener.listen(0)
        first.connect(str(tmp_path / "busy"))
        stream = host.unix(tmp_path / "busy")
        await trio.testing.wait_all_tasks_blocked()
        assert not stream.heard
        (await listener.accept())[0].close()
        await stream.opened()
        (await listener.accept())[0].close()


async def test_a_unix_socket_whose_queue_stays_full_is_given_up(
    host: HostEnd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "DIAL_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(tmp_path / "busy"))
        listener.listen(0)
        first.connect(str(tmp_path / "busy"))
        assert await host.unix(tmp_path / "busy").refusal() == "ETIMEDOUT"


async def test_a_stream_of_the_host_comes_from_no_listener(host: HostEnd) -> None:
    assert await host.open(StreamKind.TCP, ListenerTarget(1)).refusal() == "EPERM"


async def test_a_closed_port_is_refused_with_its_errno(host: HostEnd) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert await host.tcp(unused.getsockname()[1]).refusal() == "ECONNREFUSED"


async def test_an_unreachable_address_is_refused_with_its_errno(host: HostEnd) -> None:
    assert await host.tcp(80, "255.255.255.255").refusal() in ("ENETUNREACH", "EACCES")


async def test_a_server_that_aborts_resets_the_stream(host: HostEnd) -> None:
    with Server() as server:
        stream, conversation = await connect(host, server)
        abort(conversation)
        await stream.wait(Reset)


async def test_an_abort_is_noticed_after_the_server_finished_sending(host: HostEnd) -> None:
    with Server() as server:
        stream, conversation = await connect(host, server)
        conversation.shutdown(socket.SHUT_WR)
        await stream.wait(EndOfData)
        abort(conversation)
        await stream.wait(Reset)


async def test_an_abort_is_noticed_while_the_host_reads_nothing(host: HostEnd) -> None:
    with Server() as server:
        stream = await host.tcp(server.port, reads=False).opened()
        conversation = await server.accept()
        with trio.move_on_after(0.2):
            await trio.SocketStream(conversation).send_all(bytes(30_000_000))
        abort(conversation)
        await stream.wait(Reset)


@pytest.mark.parametrize("ending", ["reset", "cut"])
async def test_the_server_sees_a_reset(host: HostEnd, ending: str) -> None:
    with Server() as server:
        stream, conversation = await connect(host, server)
        stream.reset() if ending == "reset" else host.cut()
        with trio.fail_after(BOUND), pytest.raises(ConnectionResetError):
            await conversation.recv(1)


async def test_a_host_that_does_not_read_stops_the_server_and_goes_on_later(host: HostEnd) -> None:
    data = random.Random(2).randbytes(20_000_000)
    with Server() as server:
        stream = await host.tcp(server.port, reads=False).opened()
        conversation = await server.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.SocketStream(conversation).send_all, data)
            await host.until(lambda: True if len(stream.output()) == STREAM_WINDOW else None)
            other, second = await connect(host, server)  # a full round trip: nothing more came meanwhile
            await second.send(b"x")
            await other.until_output(b"x")
            assert len(stream.output()) == STREAM_WINDOW
            assert nursery.child_tasks
            stream.read_on()
            await host.until(lambda: True if len(stream.output()) == len(data) else None)
        assert stream.output() == data


async def test_a_server_that_finished_while_the_host_did_not_read_costs_no_cpu(host: HostEnd) -> None:
    """Both directions shut and data left: epoll says hung up for ever, whatever was asked for."""
    with Server() as server:
        stream = await host.tcp(server.port, reads=False).opened()
        conversation = await server.accept()
        stream.send_end()
        size = STREAM_WINDOW + SEND_QUEUE + 40_000  # the last part stays in the socket
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.SocketStream(conversation).send_all, bytes(size))
            await host.until(lambda: True if len(stream.output()) == STREAM_WINDOW else None)
        conversation.shutdown(socket.SHUT_WR)
        turns = Turns()
        trio.lowlevel.add_instrument(turns)
        await trio.sleep(0.1)
        trio.lowlevel.remove_instrument(turns)
        assert turns.count < 20
        stream.read_on()
        await stream.wait(EndOfData)
        assert len(stream.output()) == size


class Turns(trio.abc.Instrument):
    """Counts the turns of trio's loop."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


async def test_a_slow_server_stops_the_host(host: HostEnd) -> None:
    data = random.Random(3).randbytes(12_000_000)
    with Server() as server:
        stream, conversation = await connect(host, server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            await host.until(lambda: True if stream.stream.credit == 0 else None)
            received = bytearray()
            with trio.fail_after(BOUND):
                while len(received) < len(data):
                    received += await conversation.recv(1 << 20)
        assert received == data


@contextmanager
def full_backlog() -> Iterator[int]:
    """A port where dialling takes long: its accept queue is full, so SYNs are dropped."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        first = [socket.socket() for _ in range(2)]
        for sock in first:
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        try:
            yield listener.getsockname()[1]
        finally:
            for sock in first:
                sock.close()


async def test_a_dial_that_takes_too_long_is_refused(host: HostEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "DIAL_SECONDS", 0.05)
    with full_backlog() as port:
        assert await host.tcp(port).refusal() == "ETIMEDOUT"


async def test_a_dial_is_given_up_when_the_host_resets_it(tmp_path: Path) -> None:
    async with guest_and_host(tmp_path) as (agent, host):
        with full_backlog() as port:
            stream = host.tcp(port)
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert len(agent._table) == 1
            stream.reset()
            with Server() as server:
                await connect(host, server)
            assert len(agent._table) == 1
            assert not stream.heard


async def test_many_connections_at_once(tmp_path: Path) -> None:
    async with guest_and_host(tmp_path) as (agent, host):
        with Server(backlog=500) as server:
            streams = [host.tcp(server.port) for _ in range(500)]
            conversations = [await server.accept() for _ in streams]
            for number, conversation in enumerate(conversations):
                await conversation.send(b"%d" % number)
                conversation.close()
            for stream in streams:
                await stream.wait(EndOfData)
                stream.send_end()
            assert sorted(int(stream.output()) for stream in streams) == list(range(500))
            with trio.fail_after(BOUND):  # the last ENDs may leave later, and are answered by nothing
                while len(agent._table):
                    await trio.lowlevel.checkpoint()
            assert not host.connection.streams
