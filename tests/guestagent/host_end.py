"""A whole guest agent at one end of a unix socket, and at the other the protocol's core playing the host."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import trio

from guestagent.agent import GuestAgent
from guestagent.channel import WAITS, Port
from guestagent.command_groups import CommandGroups
from guestagent.nat_contents import RawRules
from guestagent.port_watch import PortSink, PortWatch
from protocol.connection import Connection, Event, GenerationEnded, GenerationStarted, Role
from protocol.limits import PROTOCOL_VERSIONS
from protocol.link import Link, PeerAwayError
from protocol.messages import Hello, Message
from protocol.stream_messages import (
    CommandTarget,
    Data,
    EndOfData,
    ErrorOutput,
    Exit,
    Open,
    Opened,
    Refused,
    Resize,
    Signal,
    SocketTarget,
    StreamKind,
    StreamMessage,
    Target,
    TerminalSize,
    UnixTarget,
)
from protocol.streams import Stream

USER = pwd.getpwuid(os.geteuid()).pw_name
"""Who runs the tests: the only user as whom a command can run when that is not root."""

BOUND = 30.0
"""Seconds that anything here may take on a busy machine."""


Answer = TypeVar("Answer")
Said = TypeVar("Said", bound=Message)


class HostStream:
    """One stream as the host has it, and all that the guest said about it."""

    def __init__(self, host: HostEnd, stream: Stream, *, reads: bool = True) -> None:
        self.host = host
        self.reads = reads
        self.heard: list[StreamMessage] = []
        self.stream = stream
        self.room = trio.Event()
        host.streams[self.stream.number] = self
        host.link.flush()

    def hear(self, message: StreamMessage) -> None:
        self.heard.append(message)
        if isinstance(message, Data) and self.reads:
            self.host.connection.consumed(self.stream, len(message.payload))

    async def wait(self, kind: type[Said]) -> Said:
        """The first message of that kind."""
        return await self.host.until(lambda: next((said for said in self.heard if isinstance(said, kind)), None))

    def accept(self) -> None:
        """Say that what the guest's client wants is there."""
        self.host.connection.accept_stream(self.stream)
        self.host.link.flush()

    def refuse(self, error: str) -> None:
        """Say that it is not."""
        self.host.connection.refuse_stream(self.stream, error, "the test says so")
        self.host.link.flush()

    async def opened(self) -> HostStream:
        """This stream, once it is open."""
        answer = await self.host.until(lambda: self.heard[0] if self.heard else None)
        assert isinstance(answer, Opened), answer
        return self

    async def refusal(self) -> str:
        """The errno name with which it was refused."""
        answer = await self.host.until(lambda: self.heard[0] if self.heard else None)
        assert isinstance(answer, Refused), answer
        return answer.error

    def output(self, kind: type[Data] = Data) -> bytes:
        """All that came so far."""
        return b"".join(said.payload for said in self.heard if type(said) is kind and isinstance(said, Data))

    async def until_output(self, wanted: bytes) -> None:
        """Wait until `wanted` is in the output."""
        await self.host.until(lambda: wanted in self.output() or None)

    async def ended(self) -> tuple[bytes, bytes, Exit]:
        """Output, error output and exit of a command, after its END."""
        await self.wait(EndOfData)
        (exit_message,) = (said for said in self.heard if isinstance(said, Exit))
        assert [type(said) for said in self.heard[-2:]] == [Exit, EndOfData]
        return self.output(), self.output(ErrorOutput), exit_message

    def send(self, payload: bytes) -> None:
        self.host.connection.send_data(self.stream, payload)
        self.host.link.flush()

    async def send_all(self, data: bytes) -> None:
        """Send as fast as the guest takes it."""
        view = memoryview(data)
        with trio.fail_after(BOUND):
            while view:
                if size := self.stream.room():
                    self.send(bytes(view[:size]))
                    view = view[size:]
                else:
                    self.room = trio.Event()
                    await self.room.wait()

    def send_end(self) -> None:
        self.host.connection.send_end(self.stream)
        self.host.link.flush()

    def reset(self) -> None:
        self.host.connection.send_reset(self.stream, "the test says so")
        self.host.link.flush()

    def read_on(self) -> None:
        """Grant what was not read until now, and read from now on."""
        self.reads = True
        self.host.connection.consumed(self.stream, len(self.output()))
        self.host.link.flush()


class _Port(Port):
    """Calls `wrote` after each write: what leaves changes what the host knows, and is answered by nothing."""

    def __init__(self, descriptor: int, wrote: Callable[[], None]) -> None:
        super().__init__(descriptor)
        self._wrote = wrote

    def write(self, data: memoryview) -> int:
        try:
            return super().write(data)
        finally:
            self._wrote()


class HostEnd:
    """The host's end. `generations` counts those that started."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.connection = Connection(
            Role.HOST, Hello(*PROTOCOL_VERSIONS, frozenset(), "test", "", "host"), random=os.urandom
        )
        self.link: Link
        self.streams: dict[int, HostStream] = {}
        self.messages: list[Message] = []
        self.generations = 0
        self.guest: Hello | None = None
        self.last_end = ""
        self.agent_scope = trio.CancelScope()
        self._news = trio.Event()
        self._cut = trio.CancelScope()

    async def run(self) -> None:
        """Serve the guest, again after each `cut`."""
        while True:
            await trio.lowlevel.wait_readable(self._listener)
            sock = self._listener.accept()[0]
            sock.setblocking(False)
            port = _Port(sock.detach(), self._tell)
            self.link = Link(self.connection, port, WAITS, self._dispatch, self._unpaused)
            self.connection.connected(trio.current_time())
            try:
                with trio.CancelScope() as self._cut:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self.link.write)
                        nursery.start_soon(self.link.keep_time)
                        self.link.flush()
                        await self.link.read()
            except* PeerAwayError:
                pass
            finally:
                port.close()
                self._dispatch(self.connection.disconnected("cut"))

    def cut(self) -> None:
        """Go away, as a host agent that was killed."""
        self._cut.cancel()

    async def until(self, answer: Callable[[], Answer | None]) -> Answer:
        """What `answer` gives as soon as that is not None, asked after each batch of events and each write."""
        with trio.fail_after(BOUND):
            while (found := answer()) is None:
                await self._news.wait()
        return found

    async def generation(self, number: int) -> None:
        """Wait for that generation."""
        await self.until(lambda: True if self.generations >= number and self.connection.running else None)

    async def message(self, kind: type[Said]) -> Said:
        """The first message of that kind since `messages` was cleared."""
        return await self.until(lambda: next((said for said in self.messages if isinstance(said, kind)), None))

    def say(self, message: Message) -> None:
        if isinstance(message, Signal | Resize):
            self.connection.send_about(message)
        else:
            self.connection.send(message)
        self.link.flush()

    def open(self, kind: StreamKind, target: Target, *, reads: bool = True) -> HostStream:
        """Ask the guest for a stream."""
        return HostStream(self, self.connection.open_stream(kind, target), reads=reads)

    async def offered(self, number: int) -> HostStream:
        """The stream with that number, when the guest has opened it."""
        return await self.until(lambda: self.streams.get(number))

    def tcp(self, port: int, address: str = "127.0.0.1", *, reads: bool = True) -> HostStream:
        return self.open(StreamKind.TCP, SocketTarget(address, port), reads=reads)

    def unix(self, path: Path) -> HostStream:
        return self.open(StreamKind.UNIX, UnixTarget(str(path)))

    def udp(self, port: int, address: str = "127.0.0.1") -> HostStream:
        return self.open(StreamKind.UDP, SocketTarget(address, port))

    def command(
        self,
        *arguments: str,
        environment: Sequence[tuple[str, str]] = (),
        user: str = USER,
        directory: str = "",
        terminal: TerminalSize | None = None,
        reads: bool = True,
    ) -> HostStream:
        target = CommandTarget(arguments, tuple(environment), user, directory, terminal)
        return self.open(StreamKind.EXEC, target, reads=reads)

    def _dispatch(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, GenerationStarted):
                self.generations += 1
                self.guest = event.peer
            elif isinstance(event, GenerationEnded):
                self.last_end = event.reason
                self.streams.clear()
            elif isinstance(event, Open):
                if (stream := self.connection.stream(event.stream)) is not None:
                    HostStream(self, stream)
            elif isinstance(event, StreamMessage):
                self.streams[event.stream].hear(event)
            elif isinstance(event, Message):
                self.messages.append(event)
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    def _unpaused(self, number: int) -> None:
        if stream := self.streams.get(number):
            stream.room.set()


async def _run(agent: GuestAgent, scope: trio.CancelScope) -> None:
    with scope:
        await agent.run()


@asynccontextmanager
async def guest_and_host(folder: Path) -> AsyncIterator[tuple[GuestAgent, HostEnd]]:
    """An agent that watches ports by its tick alone, connected to a host, in its first generation."""
    path = folder / "channel"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(4)
        listener.setblocking(False)
        async with trio.open_nursery() as nursery:
            host = HostEnd(listener)
            agent = GuestAgent(str(path), "1.2.3", nursery, CommandGroups(), _quiet_watch)
            nursery.start_soon(host.run)
            nursery.start_soon(_run, agent, host.agent_scope)
            await host.generation(1)
            yield agent, host
            nursery.cancel_scope.cancel()


class NoRules:
    """A kernel without address translation rules, which are read without any descriptor."""

    async def read(self) -> tuple[RawRules, float]:
        await trio.lowlevel.checkpoint()
        return RawRules(), 0.0


def _quiet_watch(sink: PortSink) -> PortWatch:
    return PortWatch(sink, sources=(), nat_reader=NoRules())


def open_descriptors() -> set[str]:
    """This process's descriptors, to see that none was left behind."""
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}
