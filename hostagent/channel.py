"""The host's end of the channel: connects to QEMU's chardev socket again and again, and hands out streams.

Promises: there is one `Connection` for the life of the host agent. Whatever happens to the socket below it (QEMU not
there yet, the guest agent restarted, garbage on the line) ends the generation, tells the observer why, resets every
stream's handler, and leads to the next generation by itself.

A guest that keeps breaking the rules is not trusted to stop: the socket is closed for a while (`guest_conduct`), so
that it costs a bounded share of this process.

The socket's send buffer is kept small: what is in it can no longer be overtaken by a more urgent message.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import trio

from hostagent.guest_conduct import PAUSE, Conduct
from hostagent.waits import TRIO_WAITS
from protocol.connection import (
    Connection,
    Event,
    GenerationEnded,
    GenerationStarted,
    Incompatible,
    Role,
)
from protocol.errors import LocalProtocolError
from protocol.link import Link, PeerAwayError
from protocol.messages import Hello, Message
from protocol.stream_messages import (
    Data,
    EndOfData,
    ErrorOutput,
    Exit,
    Open,
    Opened,
    Refused,
    Reset,
    StreamKind,
    StreamMessage,
    Target,
)
from protocol.streams import Stream

READ_SIZE = 262_144
SEND_BUFFER = 65_536
RECONNECT_FIRST = 0.02
RECONNECT_MOST = 1.0


class StreamHandler:
    """What a stream's user wants to hear. Each call is made from the channel's reader and must not block."""

    def opened(self) -> None:
        """The target answered."""

    def refused(self, error: str, reason: str) -> None:
        """The target cannot be had; `error` is an errno name."""

    def receive_data(self, payload: bytes) -> None:
        """Bytes, or one datagram, came."""

    def receive_error_output(self, payload: bytes) -> None:
        """Bytes of a command's standard error came."""

    def receive_exit(self, status: int | None, signal: str | None) -> None:
        """The command ended."""

    def receive_end(self) -> None:
        """The far side finished sending."""

    def receive_reset(self, reason: str) -> None:
        """The stream is over, because of the far side or because the channel failed."""

    def unpaused(self) -> None:
        """`Stream.room` answered 0 before, and has room again."""


class ChannelObserver(Protocol):
    """Who is told about generations and about messages that belong to no stream."""

    def generation_started(self, peer: Hello) -> None:
        """The guest agent said hello."""

    def generation_ended(self, reason: str, *, fault: bool) -> None:
        """The guest agent is away; handlers of all streams have been reset."""

    def distrusted(self, reason: str) -> None:
        """The guest agent is left alone for a while, after it broke the rules or began anew too often."""

    def incompatible(self, peer: Hello) -> None:
        """The guest agent speaks no version that we speak."""

    def message(self, message: Message) -> None:
        """The guest says something that is not about a stream."""


class _ChardevSocket:
    """QEMU's chardev socket as the link's device."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def read(self) -> bytes:
        try:
            return self._sock.recv(READ_SIZE)
        except ConnectionError:
            return b""

    def write(self, data: memoryview) -> int:
        try:
            return self._sock.send(data)
        except ConnectionError:
            return len(data)  # nobody will read it; the reader notices that, and ends the generation


class _DistrustError(Exception):
    """The guest has gone too far; why, in words."""


class Channel:
    """One end of the channel, and the handlers of its streams."""

    def __init__(self, path: Path, hello: Hello, observer: ChannelObserver) -> None:
        self._path = path
        self._observer = observer
        self._connection = Connection(Role.HOST, hello, random=os.urandom)
        self._handlers: dict[int, StreamHandler] = {}
        self._capabilities: frozenset[str] = frozenset()
        self._link: Link | None = None
        self.accept: Callable[[Stream], StreamHandler | None] = _accept_nothing
        """Who serves a stream that the guest opened. With None, it is refused unless that has happened already."""
        self._conduct = Conduct()

    @property
    def connection(self) -> Connection:
        """The protocol's side of it, for relays."""
        return self._connection

    @property
    def running(self) -> bool:
        """Whether a guest agent is there."""
        return self._connection.running

    def open(self, kind: StreamKind, target: Target, handler: StreamHandler) -> Stream | None:
        """Ask for a stream; `handler` hears the rest. None when none can be had. `flush` afterwards."""
        if kind is StreamKind.UNIX and StreamKind.UNIX not in self._capabilities:
            return None
        try:
            stream = self._connection.open_stream(kind, target)
        except LocalProtocolError:
            return None
        self._handlers[stream.number] = handler
        return stream

    def forget(self, stream: Stream, handler: StreamHandler) -> None:
        """The stream's user is gone and wants to hear nothing more."""
        # In another generation the number is another stream's.
        if self._handlers.get(stream.number) is handler:
            del self._handlers[stream.number]

    def send(self, message: Message) -> bool:
        """Send a message that is not about a stream; False while no guest agent is there."""
        if not self._connection.running:
            return False
        self._connection.send(message)
        self.flush()
        return True

    def flush(self) -> None:
        """Write what may leave now."""
        if self._link is not None:
            self._link.flush()

    # ------------------------------------------------------------------ the socket

    async def run(self) -> None:
        """Connect, serve, and connect again; runs until cancelled."""
        try:
            await self._run()
        finally:
            self._dispatch(self._connection.disconnected("the channel was closed"))

    async def _run(self) -> None:
        pause = RECONNECT_FIRST
        while True:
            rest, distrust = RECONNECT_FIRST, ""
            try:
                sock = await self._connect()
            except OSError:
                await trio.sleep(pause)
                pause = min(2 * pause, RECONNECT_MOST)
                continue
            pause = RECONNECT_FIRST
            with sock:
                try:
                    reason = await self._serve(sock)
                except* _DistrustError as group:
                    reason = distrust = str(group.exceptions[0])
                    rest = PAUSE
                finally:
                    self._link = None
            self._dispatch(self._connection.disconnected(reason))
            if distrust:
                self._observer.distrusted(distrust)
            await trio.sleep(rest)

    async def _connect(self) -> socket.socket:
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            await sock.connect(str(self._path))
        except BaseException:
            sock.close()
            raise
        plain = socket.socket(fileno=sock.detach())
        plain.setblocking(False)
        return plain

    async def _serve(self, sock: socket.socket) -> str:
        """Serve one connection to its end; returns why it ended."""
        link = self._link = Link(
            self._connection, _ChardevSocket(sock), TRIO_WAITS, self._dispatch_judged, self._unpause
        )
        self._connection.connected(trio.current_time())
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.read)
                nursery.start_soon(link.write)
                nursery.start_soon(link.keep_time)
                link.flush()
        except* PeerAwayError:
            pass
        return "the channel's socket was closed"

    # ------------------------------------------------------------------ what came

    def _unpause(self, number: int) -> None:
        if (handler := self._handlers.get(number)) is not None:
            handler.unpaused()

    def _dispatch_judged(self, events: list[Event]) -> None:
        """Dispatch what the guest caused; raises `_DistrustError`."""
        self._dispatch(events)
        now = trio.current_time()
        for event in events:
            if isinstance(event, GenerationEnded):
                if event.fault and self._conduct.fault(now):
                    raise _DistrustError(f"the guest agent breaks the rules of the channel: {event.reason}")
                if not event.fault and self._conduct.restart(now):
                    raise _DistrustError(f"the guest agent begins anew without end: {event.reason}")

    def _dispatch(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, StreamMessage):
                self._dispatch_stream(event)
            elif isinstance(event, GenerationEnded):
                self._end_generation(event)
            elif isinstance(event, GenerationStarted):
                self._capabilities = event.peer.capabilities
                self._observer.generation_started(event.peer)
            elif isinstance(event, Incompatible):
                self._observer.incompatible(event.peer)
            else:
                self._observer.message(event)

    def _end_generation(self, event: GenerationEnded) -> None:
        handlers, self._handlers = self._handlers, {}
        for handler in handlers.values():
            handler.receive_reset(event.reason)
        self._observer.generation_ended(event.reason, fault=event.fault)

    def _dispatch_stream(self, message: StreamMessage) -> None:
        if isinstance(message, Open):
            self._offer(message)
            return
        handler = self._handlers.get(message.stream)
        if handler is None:
            return  # its user is gone; the stream's own state was kept by the connection
        match message:
            case ErrorOutput():
                handler.receive_error_output(message.payload)
            case Data():
                handler.receive_data(message.payload)
            case EndOfData():
                handler.receive_end()
            case Opened():
                handler.opened()
            case Refused():
                self._handlers.pop(message.stream)
                handler.refused(message.error, message.reason)
            case Reset():
                self._handlers.pop(message.stream)
                handler.receive_reset(message.reason)
            case Exit():
                handler.receive_exit(message.status, message.signal)
            case _:
                pass  # SIGNAL and RESIZE mean nothing in this direction

    def _offer(self, message: Open) -> None:
        """The guest can ask, the host decides: only what a listener of ours accepted leads anywhere."""
        if (stream := self._connection.stream(message.stream)) is None:
            return
        if (handler := self.accept(stream)) is None:
            self._connection.refuse_stream(stream, "EPERM", "the host does not offer this to the guest")
        else:
            self._handlers[stream.number] = handler


def _accept_nothing(_stream: Stream) -> StreamHandler | None:
    return None
