"""Reverse forwards against a fake guest: what runs on the host is reached in the guest, and heals."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trio

from guestagent import listeners
from hostagent import reverse_forwards
from hostagent.channel import Channel
from hostagent.forward_rules import StandingForward
from hostagent.forwards import Endpoint, Forward, ForwardState, SocketFile
from hostagent.reverse_forwards import ReverseForwards
from protocol.listener_messages import ListenFailed, Listening, UnixAddress
from protocol.messages import Message
from protocol.ports import Protocol
from protocol.stream_messages import ListenerTarget, SocketTarget, StreamKind
from tests.fakes.connected_channel import BOUND, RecordingObserver, connected_channel, eventually, nothing_left_open
from tests.fakes.guest import FakeGuest


@dataclass
class Setting:
    """Reverse forwards, their guest, and what was told about them."""

    channel: Channel
    observer: RecordingObserver
    guest: FakeGuest
    reverse: ReverseForwards
    told: list[tuple[str, str, bool]] = field(default_factory=list)

    async def state(self, state: ForwardState, number: int = 0) -> Forward:
        """The forward with that number, once it is in `state`."""
        with trio.fail_after(BOUND):
            while len(self.reverse.forwards) <= number or self.reverse.forwards[number].state is not state:
                await self.guest.changed()
        return self.reverse.forwards[number]


@contextlib.asynccontextmanager
async def setting(folder: Path, *wishes: StandingForward, most_connections: int = 1_024) -> AsyncIterator[Setting]:
    told: list[tuple[str, str, bool]] = []
    async with connected_channel(folder) as (channel, observer, guest), trio.open_nursery() as nursery:

        def changed(forward: Forward, present: bool) -> None:
            told.append((str(forward.guest), forward.state, present))
            guest._changed()

        reverse = ReverseForwards(channel, wishes, changed, most_connections=most_connections)

        def hear(message: Message) -> None:
            if isinstance(message, Listening | ListenFailed):
                reverse.answer(message)

        observer.on_started = lambda: reverse.start(observer.peers[-1])
        observer.on_ended = reverse.stall
        observer.on_message = hear
        await nursery.start(reverse.run)
        observer.on_started()
        yield Setting(channel, observer, guest, reverse, told)
        nursery.cancel_scope.cancel()


def free_port(kind: int = socket.SOCK_STREAM, address: str = "127.0.0.1") -> int:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as sock:
        sock.bind((address, 0))
        return int(sock.getsockname()[1])


class Ends:
    """A server of the host, the place in the guest where it is to be found, and clients there."""

    def __init__(self, kind: str, folder: Path) -> None:
        guest_kind, host_kind = kind.split(" to ")
        self.server = socket.socket(socket.AF_UNIX if host_kind == "unix" else socket.AF_INET)
        self.server.setblocking(False)
        host: Endpoint | SocketFile
        if host_kind == "unix":
            host = SocketFile(str(folder / "host.sock"))
            self.server.bind(host.path)
        else:
            self.server.bind(("127.0.0.1", 0))
            host = Endpoint(*self.server.getsockname())
        self.server.listen()
        guest: Endpoint | SocketFile
        self.family: int = socket.AF_UNIX
        self.address: object
        if guest_kind == "unix":
            guest = SocketFile(str(folder / "guest.sock"))
            self.address = guest.path
        else:
            guest = Endpoint("127.0.0.1", free_port())
            self.family, self.address = socket.AF_INET, (guest.address, guest.port)
        self.wish = StandingForward(Protocol.TCP, guest, host, "a rule", reverse=True)

    def serve_again(self) -> socket.socket:
        """The server, after it was closed."""
        place = self.wish.host
        self.server = socket.socket(socket.AF_UNIX if isinstance(place, SocketFile) else socket.AF_INET)
        self.server.setblocking(False)
        if isinstance(place, SocketFile):
            Path(place.path).unlink()
            self.server.bind(place.path)
        else:
            self.server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.server.bind((place.address, place.port))
        self.server.listen()
        return self.server

    async def client(self) -> trio.socket.SocketType:
        sock = trio.socket.socket(self.family)
        try:
            await sock.connect(self.address)
        except BaseException:
            sock.close()
            raise
        return sock

    async def accept(self) -> trio.socket.SocketType:
        with trio.fail_after(BOUND):
            await trio.lowlevel.wait_readable(self.server)
        return trio.socket.from_stdlib_socket(self.server.accept()[0])


@pytest.fixture(params=["tcp to tcp", "unix to unix", "tcp to unix", "unix to tcp"])
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Ends:
    return Ends(request.param, tmp_path)


async def receive_all(sock: trio.socket.SocketType) -> bytes:
    data = bytearray()
    with trio.fail_after(BOUND):
        while chunk := await sock.recv(65_536):
            data += chunk
    return bytes(data)


async def exchange(ends: Ends) -> None:
    """A question and an answer, with both half-closes."""
    with await ends.client() as client, await ends.accept() as server:
        await client.send(b"question")
        client.shutdown(socket.SHUT_WR)
        assert await receive_all(server) == b"question"
        await server.send(b"answer")
        server.shutdown(socket.SHUT_WR)
        assert await receive_all(client) == b"answer"


async def test_a_service_of_the_host_is_reached_in_the_guest(ends: Ends, tmp_path: Path) -> None:
    with ends.server, nothing_left_open():
        async with setting(tmp_path, ends.wish) as here:
            forward = await here.state(ForwardState.LISTENING)
            await exchange(ends)
            await here.guest.streams_over()
            await eventually(lambda: forward.traffic.connections == 0)
            assert (forward.traffic.connections_total, forward.traffic.connections_refused) == (1, 0)
            assert (forward.traffic.bytes_to_host, forward.traffic.bytes_to_guest) == (8, 6)
            assert (forward.kind, forward.guest, forward.host) == ("reverse", ends.wish.guest, (ends.wish.host,))


async def test_a_service_that_is_not_there_refuses(ends: Ends, tmp_path: Path) -> None:
    ends.server.close()
    async with setting(tmp_path, ends.wish) as here:
        forward = await here.state(ForwardState.LISTENING)
        with await ends.client() as client:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                await client.send(b"x")
            with trio.fail_after(BOUND), contextlib.suppress(ConnectionResetError):
                assert await client.recv(1) == b""
        await eventually(lambda: (forward.traffic.connections, forward.traffic.connections_refused) == (0, 1))
        assert forward.reason == f"nobody on the host served {ends.wish.host} when last tried: connections are reset"
        assert here.told[-1] == (str(ends.wish.guest), ForwardState.LISTENING, True)
        with ends.serve_again():
            await exchange(ends)
            assert (forward.state, forward.reason) == (ForwardState.LISTENING, "")


async def test_what_a_client_missed_brings_no_forward_back(tmp_path: Path) -> None:
    ends = Ends("tcp to unix", tmp_path)
    ends.server.listen(0)
    with ends.server, socket.socket(socket.AF_UNIX) as first:
        first.connect(ends.server.getsockname())  # the queue is full: the next dial is tried again and again
        async with setting(tmp_path, ends.wish) as here:
            forward = await here.state(ForwardState.LISTENING)
            with await ends.client():
                await eventually(lambda: forward.traffic.connections == 1)
                here.reverse.change([])
                ends.server.close()
                await eventually(lambda: forward.traffic.connections_refused == 1)
            assert here.told[-1][2] is False


async def test_a_client_that_goes_away_while_the_host_is_dialled(tmp_path: Path) -> None:
    ends = Ends("tcp to unix", tmp_path)
    ends.server.listen(0)
    with ends.server, socket.socket(socket.AF_UNIX) as first:
        first.connect(ends.server.getsockname())
        async with setting(tmp_path, ends.wish) as here:
            forward = await here.state(ForwardState.LISTENING)
            (await ends.client()).close()
            await eventually(lambda: forward.traffic.connections == 1)
            here.guest.cut()
            await eventually(lambda: forward.traffic.connections == 0)


async def test_it_heals_after_a_cut_and_after_the_guest_agent_died(ends: Ends, tmp_path: Path) -> None:
    with ends.server:
        async with setting(tmp_path, ends.wish) as here:
            await here.state(ForwardState.LISTENING)
            alive, server = await ends.client(), await ends.accept()
            with alive, server:
                here.guest.cut()
                with trio.fail_after(BOUND), contextlib.suppress(ConnectionResetError):
                    assert await server.recv(1) == b""
            await here.observer.generation(2)
            forward = await here.state(ForwardState.LISTENING)
            await exchange(ends)
            here.guest.kill()
            here.guest.restart("second boot")
            await here.observer.generation(3)
            await here.state(ForwardState.LISTENING)
            await exchange(ends)
            assert [state for _, state, _ in here.told].count(ForwardState.STALLED) >= 3
            assert "heals by itself" not in forward.reason
            assert len({message.listener for message in here.guest.asked}) == len(here.guest.asked)


async def test_a_socket_whose_file_somebody_removes_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "FILE_CHECK", 0.02)
    ends = Ends("unix to unix", tmp_path)
    with ends.server:
        async with setting(tmp_path, ends.wish) as here:
            await here.state(ForwardState.LISTENING)
            alive, server = await ends.client(), await ends.accept()
            with alive, server:
                Path(str(ends.address)).unlink()
                forward = await here.state(ForwardState.FAILED)
                assert forward.reason.startswith(f"in the guest {ends.address} was removed or replaced")
                await here.state(ForwardState.LISTENING)
                await exchange(ends)
                await server.send(b"still here")
                with trio.fail_after(BOUND):
                    assert await alive.recv(100) == b"still here"


async def test_while_the_guest_agent_is_away_it_is_stalled(tmp_path: Path) -> None:
    ends = Ends("tcp to tcp", tmp_path)
    with ends.server:
        async with setting(tmp_path, ends.wish) as here:
            await here.state(ForwardState.LISTENING)
            here.guest.kill()
            here.guest.cut()
            forward = await here.state(ForwardState.STALLED)
            assert "away" in forward.reason


async def test_what_is_in_the_way_is_said_and_waited_for(ends: Ends, tmp_path: Path) -> None:
    with ends.server:
        other = socket.socket(ends.family)
        other.bind(ends.address)  # type: ignore[arg-type]
        other.listen()
        async with setting(tmp_path, ends.wish) as here:
            # At 127.0.0.1 somebody else listens, and nobody at ::1.
            partly = isinstance(ends.wish.guest, Endpoint)
            forward = await here.state(ForwardState.LISTENING if partly else ForwardState.CONFLICT)
            with trio.fail_after(BOUND):
                while "taken" not in forward.reason:
                    await here.guest.changed()
            assert forward.reason.startswith("only partly") is partly
            other.close()
            with trio.fail_after(BOUND):
                while forward.reason:
                    await here.guest.changed()
            assert forward.state is ForwardState.LISTENING
            await exchange(ends)


async def test_states_of_what_the_guest_cannot_do(tmp_path: Path) -> None:
    server = Endpoint("127.0.0.1", 1)
    wishes = [
        StandingForward(Protocol.TCP, Endpoint("203.0.113.7", 80), server, "no such address", reverse=True),
        StandingForward(Protocol.TCP, SocketFile(str(tmp_path / "no" / "s")), server, "no such folder", reverse=True),
        StandingForward(Protocol.TCP, SocketFile("/\udcff"), server, "no text", reverse=True),
    ]
    async with setting(tmp_path, *wishes) as here:
        await eventually(lambda: all(forward.state is ForwardState.FAILED for forward in here.reverse.forwards))
        reasons = [forward.reason for forward in here.reverse.forwards]
        assert "EADDRNOTAVAIL" in reasons[0]
        assert f"there is no folder {tmp_path / 'no'}" in reasons[1]
        assert "cannot be sent" in reasons[2]
        asked = len(here.guest.asked)
        await eventually(lambda: len(here.guest.asked) >= asked + 2)


async def test_what_the_guest_does_not_allow(tmp_path: Path) -> None:
    wish = StandingForward(Protocol.TCP, SocketFile("/sys/s"), Endpoint("127.0.0.1", 1), "", reverse=True)
    async with setting(tmp_path, wish) as here:
        forward = await here.state(ForwardState.DENIED)
        assert "/sys/s" in forward.reason


async def test_a_guest_agent_that_knows_no_reverse_forwards(tmp_path: Path) -> None:
    ends = Ends("tcp to tcp", tmp_path)
    with ends.server:
        async with setting(tmp_path, ends.wish) as here:
            await here.state(ForwardState.LISTENING)
            here.guest.capabilities = frozenset({"tcp"})
            here.guest.restart()
            forward = await here.state(ForwardState.FAILED)
            assert "hostagent up" in forward.reason


async def test_rules_change_and_what_is_not_concerned_goes_on(tmp_path: Path) -> None:
    kept, gone, new = (Ends("tcp to tcp", tmp_path) for _ in range(3))
    with kept.server, gone.server, new.server:
        async with setting(tmp_path, kept.wish, gone.wish) as here:
            await here.state(ForwardState.LISTENING, 1)
            clients = [await ends.client() for ends in (kept, gone)]
            servers = [await ends.accept() for ends in (kept, gone)]
            asked = len(here.guest.asked)
            here.reverse.change([replace(kept.wish, rule="another number"), new.wish])
            await here.state(ForwardState.LISTENING, 1)
            assert [forward.rule for forward in here.reverse.forwards] == ["another number", "a rule"]
            assert len(here.guest.asked) == asked + 2  # at both loopback addresses
            assert len(here.guest.taken_back) == 2
            assert (str(gone.wish.guest), ForwardState.LISTENING, False) in here.told
            for client, server in zip(clients, servers, strict=True):
                with client, server:
                    await client.send(b"on")
                    with trio.fail_after(BOUND):
                        assert await server.recv(10) == b"on"
            with pytest.raises(ConnectionRefusedError):
                await gone.client()
            await exchange(new)


async def test_the_same_place_leads_elsewhere(tmp_path: Path) -> None:
    old, new = Ends("tcp to tcp", tmp_path), Ends("tcp to tcp", tmp_path)
    with old.server, new.server:
        async with setting(tmp_path, old.wish) as here:
            await here.state(ForwardState.LISTENING)
            here.reverse.change([replace(old.wish, host=new.wish.host)])
            await here.state(ForwardState.LISTENING)
            new.address = old.address
            await exchange(new)


async def test_changes_while_the_guest_agent_is_away(tmp_path: Path) -> None:
    ends = Ends("tcp to tcp", tmp_path)
    with ends.server:
        async with setting(tmp_path, ends.wish) as here:
            await here.state(ForwardState.LISTENING)
            here.guest.kill()
            here.guest.cut()
            await here.state(ForwardState.STALLED)
            here.reverse.change([])
            assert here.reverse.forwards == []
            here.reverse.change([ends.wish])
            here.guest.restart()
            await here.state(ForwardState.LISTENING)
            await exchange(ends)


# ---------------------------------------------------------------------- a guest that lies


async def refusal(here: Setting, kind: StreamKind, target: ListenerTarget | SocketTarget) -> None:
    """The guest opens a stream out of nothing; it is refused, and nothing else happens."""
    assert here.guest.life is not None
    connection = here.guest.life.connection
    stream = connection.open_stream(kind, target)
    here.guest.life.link.flush()
    await eventually(lambda: stream.finished)
    assert connection.running


async def test_a_guest_reaches_nothing_that_was_not_offered(tmp_path: Path) -> None:
    ends = Ends("tcp to tcp", tmp_path)
    with ends.server:
        async with setting(tmp_path, ends.wish) as here:
            await here.state(ForwardState.LISTENING)
            host = ends.wish.host
            assert isinstance(host, Endpoint)
            await refusal(here, StreamKind.TCP, SocketTarget(host.address, host.port))
            await refusal(here, StreamKind.TCP, ListenerTarget(2**32 - 1))
            number = here.guest.asked[0].listener
            await refusal(here, StreamKind.UDP, ListenerTarget(number))
            await refusal(here, StreamKind.UNIX, ListenerTarget(number))
            with pytest.raises(BlockingIOError):
                ends.server.accept()


async def test_answers_to_what_was_not_asked_mean_nothing(tmp_path: Path) -> None:
    async with setting(tmp_path) as here:
        here.reverse.answer(Listening(7))
        here.reverse.answer(ListenFailed(7, "EIO", ""))
        assert here.reverse.forwards == []


async def test_more_connections_than_allowed_are_refused(tmp_path: Path) -> None:
    ends = Ends("unix to unix", tmp_path)
    with ends.server:
        async with setting(tmp_path, ends.wish, most_connections=1) as here:
            await here.state(ForwardState.LISTENING)
            with await ends.client(), await ends.accept(), await ends.client() as second:
                with trio.fail_after(BOUND):
                    assert await second.recv(1) == b""


async def test_much_that_cannot_be_had_is_asked_for_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reverse_forwards, "ASKED_AT_ONCE", 2)
    monkeypatch.setattr(reverse_forwards, "RETRY", 0.02)
    server = Endpoint("127.0.0.1", 1)
    wishes = [
        StandingForward(Protocol.TCP, SocketFile(str(tmp_path / "no" / name)), server, name, reverse=True)
        for name in "abc"
    ]
    async with setting(tmp_path, *wishes) as here:
        await eventually(lambda: len(here.guest.asked) >= 9)
        names = [message.address.path[-1] for message in here.guest.asked if isinstance(message.address, UnixAddress)]
        assert names[:9] == list("abcabcabc")
        (tmp_path / "no").mkdir()
        await eventually(lambda: all(forward.state is ForwardState.LISTENING for forward in here.reverse.forwards))
