"""A guest in this process, at the other end of a unix socket that plays QEMU's chardev.

Its ports are what a test says; what the host asks for is done by the real guest agent's relays and commands, on this
machine. The line misbehaves on demand: it can be cut, say what nobody said, lose bytes, or go on in the middle of a
frame after the guest agent was killed.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path

import trio

from guestagent.channel import WAITS
from guestagent.command_groups import CommandGroups
from guestagent.datagram_relay import DatagramRelays
from guestagent.execution import Execution, Executions
from guestagent.listeners import Listeners
from guestagent.readiness import Readiness
from guestagent.relay import TcpRelays
from guestagent.stream_table import StreamTable
from protocol.connection import Connection, Event, GenerationEnded, GenerationStarted, Role
from protocol.limits import PORTS_PER_FRAME, PROTOCOL_VERSIONS
from protocol.link import Link, PeerAwayError
from protocol.listener_messages import Listen, Unlisten
from protocol.messages import Hello, Message, PortOwners, PortsChanged, PortsSnapshot
from protocol.ports import Port, PortOwner
from protocol.stream_messages import (
    CommandTarget,
    Data,
    EndOfData,
    ListenerTarget,
    Open,
    Opened,
    Refused,
    Reset,
    Resize,
    Signal,
    SocketTarget,
    StreamKind,
)

_READ_SIZE = 65_536
_BOUND = 10.0
"""Seconds that a test waits for something that this guest does."""

HALF_A_FRAME = bytes((0, 0, 200, 0, 0, 0, 0, 0)) + b"killed while writing"


class FakeGuest:
    """The guest agent, and the line to the host. Made by `fake_guest`."""

    def __init__(self, boot_id: str, versions: tuple[int, int]) -> None:
        self.boot_id = boot_id
        self.versions = versions
        self.capabilities = frozenset({"tcp", "udp", "unix", "listen", "exec"})
        self.ports: set[Port] = set()
        self.sends_ports = True
        """False: a generation begins without a snapshot, as when the guest agent is slow."""
        self.answers = True
        """False: OPENs wait in `unanswered` until `answer` is called."""
        self.unanswered: list[Open] = []
        self.opened: list[Open] = []
        """Every OPEN of every generation."""
        self.asked: list[Listen] = []
        """Every LISTEN of every generation."""
        self.taken_back: list[Unlisten] = []
        self.received: list[Message] = []
        """What the host said about other things than streams."""
        self.payload_received = 0
        """Bytes of streams and flows, of all generations."""
        self.stale = b""
        """Said at the beginning of each connection: what QEMU still had of an older one."""
        self.generations = 0
        self.connections = 0
        """How often the host connected to the chardev."""
        self.loses = 0
        """Bytes to the host that vanish from now on."""
        self.life: _Life | None = None
        self._sock: socket.socket | None = None
        self._scope = trio.CancelScope()
        self._stopped = False
        self._change = trio.Event()

    # ------------------------------------------------------------------ the line

    def cut(self) -> None:
        """QEMU closes its end; the host finds it open again at once."""
        assert self._sock is not None, "the host is not connected"
        self._sock.shutdown(socket.SHUT_RDWR)

    def say(self, data: bytes) -> None:
        """Put bytes on the line that no guest agent means."""
        assert self._sock is not None, "the host is not connected"
        sent = self._sock.send(data)
        assert sent == len(data), "the host does not read"

    def kill(self) -> None:
        """The guest agent dies as with SIGKILL; the line stays."""
        self._stopped = True
        self._scope.cancel()

    def restart(self, boot_id: str = "") -> None:
        """The next guest agent takes over the line, after a reboot when there is another `boot_id`."""
        self.boot_id = boot_id or self.boot_id
        self._stopped = False
        self._scope.cancel()
        self._changed()

    def stop_reading(self) -> None:
        """The guest takes nothing more from the line."""
        assert self.life is not None
        self.life.reading.cancel()

    def read_again(self) -> None:
        """The guest takes what is on the line."""
        assert self.life is not None
        self.life.read_again()

    # ------------------------------------------------------------------ what the guest says

    def open_ports(self, *ports: Port) -> None:
        """Guest programs opened these ports."""
        self.ports.update(ports)
        self._send(PortsChanged(part, ()) for part in in_frames(ports))

    def close_ports(self, *ports: Port) -> None:
        """Guest programs closed these ports."""
        self.ports.difference_update(ports)
        self._send(PortsChanged((), part) for part in in_frames(ports))

    def name_owner(self, port: Port, owner: PortOwner) -> None:
        """It became known who holds a port."""
        self._send([PortOwners(((port, owner),))])

    def answer(self) -> None:
        """Answer the OPENs that wait, and those to come."""
        self.answers = True
        waiting, self.unanswered = self.unanswered, []
        assert self.life is not None
        for message in waiting:
            self.life.open(message)
        self.life.link.flush()

    def _send(self, messages: Iterable[Message]) -> None:
        if self.life is not None and self.life.connection.running:
            for message in messages:
                self.life.connection.send(message)
            self.life.link.flush()

    # ------------------------------------------------------------------ what tests wait for

    async def generation(self, number: int) -> None:
        """Return when the generation with this number (from 1) has begun."""
        with trio.fail_after(_BOUND):
            while self.generations < number:
                await self._change.wait()

    async def opens(self, number: int) -> Open:
        """The OPEN with this number (from 1), when the host has sent it."""
        with trio.fail_after(_BOUND):
            while len(self.opened) < number:
                await self._change.wait()
        return self.opened[number - 1]

    async def streams_over(self) -> None:
        """Return when no stream is alive."""
        with trio.fail_after(_BOUND):
            while self.life is not None and (list(self.life.connection.streams) or len(self.life.table)):
                await self._change.wait()

    async def changed(self) -> None:
        """Return when the guest has done or heard something."""
        await self._change.wait()

    def _changed(self) -> None:
        self._change.set()
        self._change = trio.Event()

    # ------------------------------------------------------------------ life

    async def _serve(self, listener: socket.socket) -> None:
        """Serve one client after another, as a chardev does."""
        while True:
            await trio.lowlevel.wait_readable(listener)
            with listener.accept()[0] as sock:
                sock.setblocking(False)
                self.connections += 1
                self._sock = sock
                try:
                    if self.stale:
                        self.say(self.stale)
                    await self._use(sock)
                except* PeerAwayError:
                    pass
                finally:
                    self._sock = None

    async def _use(self, sock: socket.socket) -> None:
        """One guest agent after the other on one line; raises `PeerAwayError` in a group when the host has gone."""
        while True:
            while self._stopped:
                await self._change.wait()
            with trio.CancelScope() as self._scope:
                self.life = _Life(self, sock)
                try:
                    await self.life.run()
                finally:
                    self.life = None


class _Life:
    """One guest agent on one line."""

    def __init__(self, guest: FakeGuest, sock: socket.socket) -> None:
        self._guest = guest
        hello = Hello(*guest.versions, guest.capabilities, "1.0", guest.boot_id, "a fake")
        self.connection = Connection(Role.GUEST, hello, random=os.urandom)
        self.table = StreamTable(self.connection)
        self.link = Link(self.connection, _Line(guest, sock), WAITS, self._dispatch, self.table.unpaused)
        self._readiness = Readiness(settled=self._settled, failed=self.table.failed)
        self._udp = DatagramRelays(self.connection, self.table, self._readiness)
        self._tcp: TcpRelays | None = None
        self._commands: Executions | None = None
        self._listeners: Listeners | None = None
        self._nursery: trio.Nursery | None = None
        self.reading = trio.CancelScope()

    async def run(self) -> None:
        """Live until cancelled or until the host is away."""
        try:
            async with trio.open_nursery() as self._nursery:
                nursery = self._nursery
                self._tcp = TcpRelays(self.connection, self.table, self._readiness, nursery, self._settled)
                self._commands = Executions(self.connection, self.table, nursery, self._settled, CommandGroups())
                self._listeners = Listeners(self.connection, self.table, self._readiness, nursery, set(), self._settled)
                self.connection.connected(trio.current_time())
                self.link.flush()
                for task in (self._read, self.link.write, self.link.keep_time, self._readiness.run):
                    nursery.start_soon(task)
        finally:
            if self._listeners is not None:
                self._listeners.end_generation()
            self.table.end_generation()
            self._readiness.close()
            self._guest._changed()

    async def _read(self) -> None:
        with self.reading:
            await self.link.read()

    def read_again(self) -> None:
        """Read after `reading` was cancelled."""
        assert self._nursery is not None
        self.reading = trio.CancelScope()
        self._nursery.start_soon(self._read)

    def _settled(self) -> None:
        self.link.flush()
        self._guest._changed()

    def _dispatch(self, events: list[Event]) -> None:
        for event in events:
            self._act(event)
        self._guest._changed()

    def _act(self, event: Event) -> None:
        guest = self._guest
        match event:
            case GenerationStarted():
                guest.generations += 1
                guest.unanswered.clear()
                if guest.sends_ports:
                    self._send_snapshot()
            case GenerationEnded():
                self._tell_listeners(event)
                self.table.end_generation()
            case Opened() | Refused() | Listen() | Unlisten():
                self._tell_listeners(event)
            case Open():
                guest.opened.append(event)
                if guest.answers:
                    self.open(event)
                else:
                    guest.unanswered.append(event)
            case Data():
                guest.payload_received += len(event.payload)
                self.table.data(event)
            case EndOfData():
                self.table.end(event)
            case Reset():
                self.table.reset(event)
            case Signal() | Resize():
                self._tell_command(event)
            case Message():
                guest.received.append(event)

    def open(self, message: Open) -> None:
        """Do what the host asks for."""
        assert self._tcp is not None
        assert self._commands is not None
        stream = self.connection.stream(message.stream)
        if stream is None:
            return  # the host gave up meanwhile
        target = message.target
        if isinstance(target, CommandTarget):
            self._commands.open(stream, target)
        elif isinstance(target, SocketTarget) and message.kind is StreamKind.UDP:
            self._udp.open(stream, target)
        else:
            assert not isinstance(target, ListenerTarget), message
            self._tcp.open(stream, target)

    def _tell_command(self, message: Signal | Resize) -> None:
        command = self.table.get(message.stream)
        assert isinstance(command, Execution), message
        if isinstance(message, Signal):
            command.receive_signal(message.name)
        else:
            command.receive_size(message.size)

    def _tell_listeners(self, event: GenerationEnded | Opened | Refused | Listen | Unlisten) -> None:
        assert self._listeners is not None
        match event:
            case GenerationEnded():
                self._listeners.end_generation()
            case Opened():
                self._listeners.opened(event)
            case Refused():
                self._listeners.refused(event)
            case Listen():
                self._guest.asked.append(event)
                self._listeners.listen(event)
            case Unlisten():
                self._guest.taken_back.append(event)
                self._listeners.unlisten(event)

    def _send_snapshot(self) -> None:
        *parts, last = list(in_frames(sorted(self._guest.ports))) or [()]
        for part in parts:
            self.connection.send(PortsSnapshot(part, last=False))
        self.connection.send(PortsSnapshot(last, last=True))


class _Line:
    """The chardev as the guest agent's device."""

    def __init__(self, guest: FakeGuest, sock: socket.socket) -> None:
        self._guest = guest
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def read(self) -> bytes:
        try:
            return self._sock.recv(_READ_SIZE)
        except ConnectionError:
            return b""

    def write(self, data: memoryview) -> int:
        if lost := min(self._guest.loses, len(data)):
            self._guest.loses -= lost
            return lost
        try:
            return self._sock.send(data)
        except ConnectionError:
            return len(data)


def in_frames(ports: Sequence[Port]) -> Iterator[tuple[Port, ...]]:
    """`ports` in parts that fit a frame."""
    for start in range(0, len(ports), PORTS_PER_FRAME):
        yield tuple(ports[start : start + PORTS_PER_FRAME])


@contextlib.asynccontextmanager
async def fake_guest(
    path: Path, *, boot_id: str = "first boot", versions: tuple[int, int] = PROTOCOL_VERSIONS
) -> AsyncIterator[FakeGuest]:
    """A guest whose chardev listens on `path` until the end of the block."""
    guest = FakeGuest(boot_id, versions)
    with socket.socket(socket.AF_UNIX) as listener:
        path.unlink(missing_ok=True)
        listener.setblocking(False)
        listener.bind(str(path))
        listener.listen(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guest._serve, listener)
            try:
                yield guest
            finally:
                nursery.cancel_scope.cancel()
