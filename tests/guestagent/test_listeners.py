"""Listeners that the host asked for: what connects to them becomes a stream, and they end with the host's wish."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from guestagent import listeners
from guestagent.agent import GuestAgent
from protocol.listener_messages import Listen, ListenFailed, Listening, UnixAddress, Unlisten
from protocol.messages import PortsChanged
from protocol.ports import Port, Protocol
from protocol.stream_messages import Data, EndOfData, ListenerTarget, Open, Reset, SocketTarget, StreamKind
from tests.fakes.connected_channel import eventually
from tests.guestagent.host_end import BOUND, USER, HostEnd, HostStream, guest_and_host, open_descriptors
from tests.guestagent.test_relay import abort, receive_all


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[tuple[GuestAgent, HostEnd]]:
    async with guest_and_host(tmp_path) as both:
        yield both


@pytest.fixture
def host(both: tuple[GuestAgent, HostEnd]) -> HostEnd:
    return both[1]


def free_port(kind: int = socket.SOCK_STREAM, address: str = "127.0.0.1") -> int:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as sock:
        sock.bind((address, 0))
        return int(sock.getsockname()[1])


async def listening(host: HostEnd, listener: int) -> None:
    await host.until(lambda: Listening(listener) in host.messages or None)


async def failure(host: HostEnd, listener: int) -> ListenFailed:
    return await host.until(
        lambda: next((m for m in host.messages if isinstance(m, ListenFailed) and m.listener == listener), None)
    )


class Place:
    """A listener of one kind in the guest, and clients of it."""

    def __init__(self, kind: str, folder: Path) -> None:
        address = "::1" if kind.endswith("6") else "127.0.0.1"
        self.path = folder / "guest.sock"
        self.message: Listen
        if kind == "unix":
            self.family: int = socket.AF_UNIX
            self.address: object = str(self.path)
            self.message = Listen(1, StreamKind.UNIX, UnixAddress(str(self.path), 0o600, USER))
        else:
            self.family = socket.AF_INET6 if ":" in address else socket.AF_INET
            port = free_port(address=address)
            self.address = (address, port)
            self.message = Listen(1, StreamKind.TCP, SocketTarget(address, port))

    async def client(self) -> trio.socket.SocketType:
        sock = trio.socket.socket(self.family)
        try:
            await sock.connect(self.address)
        except BaseException:
            sock.close()
            raise
        return sock


@pytest.fixture(params=["tcp", "tcp6", "unix"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(request.param, tmp_path)


async def connected(host: HostEnd, place: Place, number: int = 2) -> tuple[trio.socket.SocketType, HostStream]:
    """A client, and the host's end of its stream, which is open."""
    client = await place.client()
    stream = await host.offered(number)
    stream.accept()
    return client, stream


async def test_a_client_is_a_stream_and_half_close_keeps_the_answer(host: HostEnd, place: Place) -> None:
    host.say(place.message)
    await listening(host, 1)
    client, stream = await connected(host, place)
    with client:
        assert stream.stream.target == ListenerTarget(1)
        assert stream.stream.kind is place.message.kind
        await client.send(b"question")
        client.shutdown(socket.SHUT_WR)
        await stream.wait(EndOfData)
        assert stream.output() == b"question"
        stream.send(b"answer")
        stream.send_end()
        assert await receive_all(client) == b"answer"


async def test_nothing_is_read_before_the_host_has_answered(host: HostEnd, place: Place) -> None:
    host.say(place.message)
    await listening(host, 1)
    with await place.client() as client:
        await client.send(b"early")
        stream = await host.offered(2)
        assert stream.heard == []
        stream.accept()
        await stream.until_output(b"early")


async def test_a_refusal_is_a_reset_of_the_client(host: HostEnd, place: Place) -> None:
    host.say(place.message)
    await listening(host, 1)
    with await place.client() as client:
        await client.send(b"x")  # what was not read makes a unix socket's close a reset, too
        stream = await host.offered(2)
        stream.refuse("ECONNREFUSED")
        with trio.fail_after(BOUND), pytest.raises(ConnectionResetError):
            await client.recv(1)
    await host.until(lambda: not list(host.connection.streams) or None)


async def test_a_client_that_aborts_resets_the_stream(host: HostEnd, tmp_path: Path) -> None:
    place = Place("tcp", tmp_path)
    host.say(place.message)
    await listening(host, 1)
    client, stream = await connected(host, place)
    abort(client)
    await stream.wait(Reset)


async def test_what_was_accepted_outlives_the_listener(host: HostEnd, place: Place) -> None:
    host.say(place.message)
    await listening(host, 1)
    client, stream = await connected(host, place)
    with client:
        host.say(Unlisten(1))
        stream.send(b"still here")
        with trio.fail_after(BOUND):
            assert await client.recv(100) == b"still here"
        with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
            await place.client()
        assert not place.path.exists()


async def test_the_end_of_the_generation_is_the_end_of_listeners_and_of_clients(host: HostEnd, place: Place) -> None:
    descriptors = open_descriptors()
    host.say(place.message)
    await listening(host, 1)
    client, _ = await connected(host, place)
    waiting = await place.client()
    await host.offered(4)
    with client, waiting:
        host.cut()
        for sock in (client, waiting):
            with trio.fail_after(BOUND):
                with contextlib.suppress(ConnectionResetError):
                    assert await sock.recv(1) == b""
    await host.generation(2)
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        await place.client()
    assert not place.path.exists()
    assert open_descriptors() <= descriptors  # the port watch may have been looking for owners when they were counted
    host.messages.clear()
    host.say(place.message)
    await listening(host, 1)
    (await connected(host, place))[0].close()


async def test_a_port_that_is_taken_and_one_that_is_not_there(host: HostEnd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host.say(Listen(1, StreamKind.TCP, SocketTarget("127.0.0.1", server.getsockname()[1])))
        assert (await failure(host, 1)).error == "EADDRINUSE"
        host.say(Listen(2, StreamKind.TCP, SocketTarget("203.0.113.1", 80)))
        assert (await failure(host, 2)).error == "EADDRNOTAVAIL"
    host.say(Unlisten(2))
    host.say(Unlisten(99))


async def test_a_file_in_the_way(host: HostEnd, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    host.say(Listen(1, StreamKind.UNIX, UnixAddress(str(tmp_path / "file"), 0o600, USER)))
    failed = await failure(host, 1)
    assert (failed.error, "no socket" in failed.reason) == ("EADDRINUSE", True)
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
async def test_a_socket_whose_file_is_gone_ends_and_can_be_asked_for_again(
    host: HostEnd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, replaced: bool
) -> None:
    monkeypatch.setattr(listeners, "FILE_CHECK", 0.02)
    place = Place("unix", tmp_path)
    for number in (1, 2):  # the second one is watched as the first one was
        host.say(replace(place.message, listener=number))
        await listening(host, number)
        client, stream = await connected(host, place, 2 * number)
        place.path.unlink()
        if replaced:
            place.path.write_text("somebody else's")
        with client:
            failed = await failure(host, number)
            assert (failed.error, failed.reason) == ("ENOENT", f"{place.path} was removed or replaced")
            stream.send(b"still here")
            with trio.fail_after(BOUND):
                assert await client.recv(100) == b"still here"
        if replaced:
            assert place.path.read_text() == "somebody else's"
            place.path.unlink()


async def test_files_are_looked_for_only_while_there_are_any(
    both: tuple[GuestAgent, HostEnd], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    agent, host = both
    monkeypatch.setattr(listeners, "FILE_CHECK", 0.0)
    host.say(Place("tcp", tmp_path).message)
    await listening(host, 1)
    assert not agent._listeners._watched
    host.say(replace(Place("unix", tmp_path).message, listener=2))
    await listening(host, 2)
    assert agent._listeners._watched
    host.say(Unlisten(2))
    await eventually(lambda: not agent._listeners._watched)


async def test_a_number_twice_and_too_many(host: HostEnd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(listeners, "MAX_LISTENERS", 1)
    place = Place("tcp", tmp_path)
    host.say(place.message)
    await listening(host, 1)
    host.say(place.message)
    assert (await failure(host, 1)).error == "EEXIST"
    host.say(Listen(2, StreamKind.TCP, SocketTarget("127.0.0.1", free_port())))
    assert (await failure(host, 2)).error == "EMFILE"
    (await place.client()).close()


class StarvedSocket(socket.socket):
    """A listener of a process that has no descriptor left, as often as `failures` says."""

    failures = 3

    def accept(self) -> tuple[socket.socket, object]:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


async def test_without_descriptors_clients_wait(
    both: tuple[GuestAgent, HostEnd], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, host = both
    monkeypatch.setattr(listeners, "DESCRIPTOR_PAUSE", 0.02)
    with StarvedSocket() as sock, socket.socket() as client:
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        message = Listen(1, StreamKind.TCP, SocketTarget(*sock.getsockname()))
        listener = listeners.StreamListener(sock, None, message, agent._listeners._around)
        client.connect(sock.getsockname())
        await host.offered(2)
        assert sock.failures == 0
        sock.failures = 1
        with socket.socket() as second:
            second.connect(sock.getsockname())
            await eventually(lambda: sock.failures == 0)
            listener.close()
        await trio.sleep(0.03)  # the pause ends with the listener gone


async def test_clients_for_whom_no_stream_is_left_are_dropped(
    host: HostEnd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("protocol.limits.MAX_STREAMS", 1)
    place = Place("tcp", tmp_path)
    host.say(place.message)
    await listening(host, 1)
    first, _ = await connected(host, place)
    with first, await place.client() as second, trio.fail_after(BOUND):
        assert await second.recv(1) == b""


async def datagrams(host: HostEnd, flow: HostStream, count: int) -> list[bytes]:
    """What the guest's client sent, once that is so many."""
    await host.until(lambda: len(flow.heard) >= count or None)
    return [said.payload for said in flow.heard if isinstance(said, Data)]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_each_client_of_a_udp_port_is_a_flow(host: HostEnd, address: str) -> None:
    port = free_port(socket.SOCK_DGRAM, address)
    host.say(Listen(1, StreamKind.UDP, SocketTarget(address, port)))
    await listening(host, 1)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    clients = [trio.socket.socket(family, socket.SOCK_DGRAM) for _ in range(2)]
    for number, client in enumerate(clients, start=1):
        await client.connect((address, port))
        for payload in (b"", b"%d" % number, bytes(65_000)):
            await client.send(payload)
        flow = await host.offered(2 * number)
        assert flow.stream.kind is StreamKind.UDP
        flow.accept()
        assert [len(payload) for payload in await datagrams(host, flow, 3)] == [0, 1, 65_000]
        flow.send(b"answer %d" % number)
        flow.send(b"")
        with trio.fail_after(BOUND):
            assert await client.recv(100) == b"answer %d" % number
            assert await client.recv(100) == b""
    for client in clients:
        client.close()


async def test_the_host_ends_flows_in_every_way(host: HostEnd) -> None:
    port = free_port(socket.SOCK_DGRAM)
    host.say(Listen(1, StreamKind.UDP, SocketTarget("127.0.0.1", port)))
    await listening(host, 1)
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        await client.connect(("127.0.0.1", port))
        for number, end in enumerate(("refuse", "reset", "send_end"), start=1):
            await client.send(b"x")
            flow = await host.offered(2 * number)
            if end == "refuse":
                flow.refuse("EPERM")
            else:
                flow.accept()
                getattr(flow, end)()
            await host.until(lambda: not list(host.connection.streams) or None)
        await client.send(b"x")
        flow = await host.offered(8)
        flow.accept()
        host.say(Unlisten(1))
        await flow.wait(Reset)


async def test_datagrams_that_find_no_stream_are_counted(
    both: tuple[GuestAgent, HostEnd], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, host = both
    monkeypatch.setattr("protocol.limits.MAX_STREAMS", 0)
    port = free_port(socket.SOCK_DGRAM)
    host.say(Listen(1, StreamKind.UDP, SocketTarget("127.0.0.1", port)))
    await listening(host, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"x", ("127.0.0.1", port))
        await eventually(lambda: agent._listeners.counters["datagrams dropped"] == 1)


async def test_the_agents_own_listeners_are_nobodys_ports(both: tuple[GuestAgent, HostEnd]) -> None:
    """What is announced is forwarded: the host would reach itself."""
    agent, host = both
    own, theirs = free_port(), free_port()
    host.say(Listen(1, StreamKind.TCP, SocketTarget("127.0.0.1", own)))
    await listening(host, 1)
    with socket.create_server(("127.0.0.1", theirs)):
        await host.until(lambda: Port(Protocol.TCP, "127.0.0.1", theirs) in opened_ports(host) or None)
        assert own not in {port.number for port in opened_ports(host)}
        host.say(Unlisten(1))
        await eventually(lambda: not agent._watch.own_inodes)
        with socket.create_server(("127.0.0.1", own)):
            await host.until(lambda: Port(Protocol.TCP, "127.0.0.1", own) in opened_ports(host) or None)


def opened_ports(host: HostEnd) -> set[Port]:
    return {port for message in host.messages if isinstance(message, PortsChanged) for port in message.opened}


def test_a_guest_opens_only_what_names_a_listener() -> None:
    assert Open(2, StreamKind.TCP, ListenerTarget(1), 0).to_wire()[2] == 1
