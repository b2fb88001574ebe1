"""The channel's core: bytes in, events out; calls in, bytes out. No I/O, no clock, no randomness of its own.

Theory of operation
-------------------
One `Connection` lives as long as its agent. Below it the byte stream comes, goes and lies (see `protocol.framing`);
above it there is at most one *generation* at a time. A generation starts with both markers known (see
`protocol.handshake`) and both HELLOs exchanged, and ends for a reason in words; with it end all of its streams, and
the next one begins with nothing: the guest sends all ports again.

What leaves first: what concerns the connection and the ports, then what concerns the life and credit of streams, then
data, one frame from each stream in turn. Frames are made when bytes can leave, so an event never waits behind a
download longer than the transport's own buffer.

Every call that takes bytes or time returns the events they caused. Bytes of the peer never raise: what breaks the
rules ends the generation, with the rule in the event's reason. Calls about a stream that is over, because the peer
reset it or the generation ended, do nothing: the caller cannot know yet. A stream's number means another stream in
the next generation, so what counts is the `Stream` itself.

What a peer can make us hold is bounded: one frame, the windows it was granted, and `MAX_QUEUED` messages about
streams that it does not read.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from protocol import limits
from protocol.codec import check_sendable, decode_untrusted, encode
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.framing import HEADER_SIZE, PeerGaveUpError, Preamble
from protocol.handshake import Handshake
from protocol.handshake import Role as Role  # part of this module's interface
from protocol.listener_messages import Listen, ListenFailed, Listening, Unlisten
from protocol.messages import (
    Clock,
    Hello,
    Message,
    Ping,
    Pong,
    PortOwners,
    PortsChanged,
    PortsSnapshot,
    PowerOff,
    Status,
    StatusRequest,
)
from protocol.stream_messages import (
    Credit,
    Data,
    Exit,
    Open,
    Opened,
    Refused,
    Reset,
    Resize,
    Signal,
    StreamKind,
    StreamMessage,
    Target,
)
from protocol.stream_set import StreamSet
from protocol.streams import Stream, StreamInput
from protocol.wire_values import MAX_U32


@dataclass(frozen=True, slots=True)
class GenerationStarted:
    """Both sides have said hello; streams and messages may flow."""

    peer: Hello
    version: int


@dataclass(frozen=True, slots=True)
class GenerationEnded:
    """All streams are gone, without a RESET of their own."""

    reason: str
    fault: bool
    """Whether the peer broke a rule, rather than went away."""


@dataclass(frozen=True, slots=True)
class Incompatible:
    """The peer speaks no version that we speak. Nothing follows until a new generation begins."""

    peer: Hello


Event = GenerationStarted | GenerationEnded | Incompatible | Message

_FROM_GUEST = (PortsSnapshot, PortsChanged, PortOwners, Status, Listening, ListenFailed)
_FROM_HOST = (StatusRequest, Clock, PowerOff, Listen, Unlisten)


class _Phase(enum.Enum):
    DOWN = enum.auto()
    """The transport is not connected."""
    HUNTING = enum.auto()
    """No generation; waiting for a preamble."""
    GREETING = enum.auto()
    """Markers are known, the peer's HELLO is not."""
    RUNNING = enum.auto()
    INCOMPATIBLE = enum.auto()


class Connection:
    """One end of the channel. `random(n)` gives n unguessable bytes; `now` is in seconds of any steady clock."""

    def __init__(self, role: Role, hello: Hello, *, random: Callable[[int], bytes]) -> None:
        self._role = role
        self._hello = hello
        self._foreign = _FROM_HOST if role is Role.HOST else _FROM_GUEST
        self._phase = _Phase.DOWN
        self._handshake = Handshake(role, random)
        self._heard = 0.0
        self._pinged: float | None = None
        self._tokens = 0
        self._streams = StreamSet(role.first_stream)
        self._control: deque[Message] = deque()
        self._pong: Pong | None = None
        self._shared = 0

    # ------------------------------------------------------------------ the transport

    def connected(self, now: float) -> None:
        """The transport is there (again). The host begins a generation, the guest asks for one."""
        if self._phase is not _Phase.DOWN:
            raise LocalProtocolError("the transport is connected already")
        self._phase = _Phase.HUNTING
        self._handshake.connected(now)

    def disconnected(self, reason: str) -> list[Event]:
        """The transport is gone. Bytes not taken yet are forgotten."""
        events = self._end(reason, fault=False)
        self._phase = _Phase.DOWN
        self._handshake.disconnected()
        return events

    def receive_data(self, data: bytes, now: float) -> list[Event]:
        """Take bytes from the peer; returns what they say."""
        events: list[Event] = []
        if self._phase is _Phase.DOWN:
            return events
        decoder = self._handshake.decoder
        decoder.receive_data(data)
        while True:
            try:
                for item in decoder.items_untrusted():
                    self._heard = now
                    self._pinged = None
                    if isinstance(item, Preamble):
                        self._receive_preamble(item, events, now)
                    else:
                        self._receive_body(item, events)
                self._streams.check_said()
            except PeerGaveUpError as exc:
                events += self._end(str(exc), fault=False)
                self._handshake.peer_gave_up(now)
            except RemoteProtocolError as exc:
                events += self._end(str(exc), fault=True)
                self._handshake.give_up(now)
            else:
                return events

    def handle_time(self, now: float) -> list[Event]:
        """Do what is due at `now`; returns what follows from it. Call again at `deadline`."""
        events: list[Event] = []
        if now < self.deadline:
            return events
        if self._phase is not _Phase.RUNNING:
            self._phase = _Phase.HUNTING
            self._handshake.ask_again(now)
        elif self._pinged is None:
            self._tokens = (self._tokens + 1) & MAX_U32
            self._control.append(Ping(self._tokens))
            self._pinged = now
        else:
            events += self._end("the peer has been silent", fault=False)
            self._handshake.give_up(now)
        return events

    @property
    def deadline(self) -> float:
        """When `handle_time` is due; infinity while there is nothing to wait for."""
        if self._phase is _Phase.RUNNING:
            if self._pinged is None:
                return self._heard + self._role.ping_after
            # Counted from the question: this process, too, may have been asleep.
            return self._pinged + limits.PONG_WITHIN
        if self._phase is _Phase.HUNTING or (self._phase is _Phase.GREETING and self._role is Role.HOST):
            return self._handshake.retry
        return math.inf

    @property
    def running(self) -> bool:
        """Whether messages may be sent."""
        return self._phase is _Phase.RUNNING

    def data_to_send(self, limit: int = limits.MAX_PAYLOAD) -> bytes:
        """Bytes for the transport, most urgent first: all that may leave, or `limit` and up to one frame more.

        So whoever got fewer than `limit` need not ask again.
        """
        handshake, streams = self._handshake, self._streams
        if not (streams.said or streams.waiting or self._control or self._pong or handshake.unsaid):
            return b""  # every second time: what came in was for a socket alone
        parts = [handshake.take_unsaid()]
        if (encoder := handshake.encoder) is None:
            return parts[0]
        if self._pong is not None:
            parts += encoder.parts(encode(self._pong))
            self._pong = None
        while self._control:
            parts += encoder.parts(encode(self._control.popleft()))
        left = limit - sum(map(len, parts))
        while left > 0 and (message := streams.next_message()) is not None:
            header, body = encoder.parts(encode(message))
            parts += (header, body)
            left -= HEADER_SIZE + len(body)
        return b"".join(parts)

    # ------------------------------------------------------------------ what we say

    def send(self, message: Message) -> None:
        """Send a message that is not about a stream."""
        if self._phase is not _Phase.RUNNING:
            raise LocalProtocolError("there is no generation to send in")
        self._control.append(message)

    def open_stream(self, kind: StreamKind, target: Target) -> Stream:
        """Ask the peer for a stream; OPENED or REFUSED will answer.

        Raises `LocalProtocolError` when there is no generation, all streams are taken, the peer does not read, or the
        target cannot be said (a command that is too long, text that is not UTF-8).
        """
        if self._phase is not _Phase.RUNNING:
            raise LocalProtocolError("there is no generation to open a stream in")
        check_sendable(Open(self._role.first_stream, kind, target, 0))
        stream = self._streams.open(kind, target)
        self._streams.said.append(Open(stream.number, kind, target, stream.window))
        return stream

    def accept_stream(self, stream: Stream) -> None:
        """Answer the peer's OPEN: the target is there."""
        if self._streams.owns(stream):
            stream.accept()
            self._streams.said.append(Opened(stream.number, stream.window))

    def refuse_stream(self, stream: Stream, error: str, reason: str) -> None:
        """Answer the peer's OPEN: the target cannot be had. `error` is an errno name."""
        if self._streams.owns(stream):
            stream.change(StreamInput.SEND_REFUSED)
            self._streams.said.append(Refused(stream.number, error, reason))
            self._streams.forget_finished(stream)

    def send_data(self, stream: Stream, payload: bytes, *, error_output: bool = False) -> bool:
        """Queue bytes or one datagram; False when a full flow dropped it or the stream is over. Mind `Stream.room`."""
        if not self._streams.owns(stream):
            return False
        if len(payload) <= limits.SMALL_PAYLOAD:
            self._shared = limits.SHARED_FRAMES
        elif self._shared:
            self._shared -= 1
        taken = stream.queue_payload(payload, error_output=error_output)
        self._streams.wake(stream)
        return taken

    def send_exit(self, stream: Stream, status: int | None, signal: str | None) -> None:
        """Say how the command ended, behind all of its output."""
        if self._streams.owns(stream):
            stream.queue_exit(Exit(stream.number, status, signal))
            self._streams.wake(stream)

    def send_end(self, stream: Stream) -> None:
        """Finish our direction behind everything queued."""
        if self._streams.owns(stream):
            stream.queue_end()
            self._streams.wake(stream)

    def send_reset(self, stream: Stream, reason: str) -> None:
        """End the stream at once, in both directions."""
        if self._streams.owns(stream):
            stream.change(StreamInput.SEND_RESET)
            stream.drop_queue()
            self._streams.said.append(Reset(stream.number, reason))
            self._streams.forget_finished(stream)

    def send_about(self, message: Signal | Resize) -> None:
        """Tell the command of a stream something."""
        if self._streams.get(message.stream) is not None:
            self._streams.said.append(message)

    def consumed(self, stream: Stream, size: int) -> None:
        """Say that `size` received bytes have left this side, so that the peer may send more."""
        if (grant := stream.consume(size)) and self._streams.owns(stream):
            self._streams.said.append(Credit(stream.number, grant))

    @property
    def frame_size(self) -> int:
        """Bytes that a source should read at once: as many as a frame takes, or fewer while others wait for answers."""
        return limits.SHARED_PAYLOAD if self._shared else limits.MAX_PAYLOAD

    def take_unpaused(self) -> list[int]:
        """Streams whose source was told to pause and has room again, each once."""
        return self._streams.take_unpaused()

    @property
    def streams(self) -> Iterable[Stream]:
        """The streams of this generation."""
        return self._streams.alive

    def stream(self, number: int) -> Stream | None:
        """The stream with this number, while it lives."""
        return self._streams.get(number)

    # ------------------------------------------------------------------ generations

    def _end(self, reason: str, *, fault: bool) -> list[Event]:
        """All that belongs to the present generation, if there is one, is over.

        A fault is told even where the generation had not started: a peer that never gets as far must not be free.
        """
        was_running = self._phase is _Phase.RUNNING
        self._phase = _Phase.HUNTING
        self._streams.end()
        self._streams = StreamSet(self._role.first_stream)
        self._control.clear()
        self._pong = None
        return [GenerationEnded(reason, fault)] if was_running or fault else []

    def _receive_preamble(self, preamble: Preamble, events: list[Event], now: float) -> None:
        turn = self._handshake.receive_preamble(preamble, now)
        if turn is None:
            return
        events += self._end(turn.reason, fault=False)
        if turn.begun:
            self._phase = _Phase.GREETING
            self._control.append(self._hello)

    # ------------------------------------------------------------------ what the peer says

    def _receive_body(self, body: bytes, events: list[Event]) -> None:
        message = decode_untrusted(body)
        if self._phase is _Phase.RUNNING and isinstance(message, StreamMessage):
            self._receive_about_stream(message, events)
        elif self._phase is _Phase.GREETING:
            self._receive_hello(message, events)
        elif self._phase is _Phase.INCOMPATIBLE or isinstance(message, Pong):
            return
        elif isinstance(message, Ping):
            self._pong = Pong(message.token)  # one is enough: it answers all that came before
        elif isinstance(message, Hello):
            if self._handshake.decoder.received != 1:
                raise RemoteProtocolError("the peer said hello twice")
        elif isinstance(message, self._foreign):
            raise RemoteProtocolError(f"{type(message).__name__} is not the peer's to say")
        else:
            events.append(message)

    def _receive_hello(self, message: Message, events: list[Event]) -> None:
        if not isinstance(message, Hello):
            raise RemoteProtocolError("the peer did not say hello first")
        version = min(self._hello.highest_version, message.highest_version)
        if version < max(self._hello.lowest_version, message.lowest_version):
            self._phase = _Phase.INCOMPATIBLE
            events.append(Incompatible(message))
            return
        self._phase = _Phase.RUNNING
        events.append(GenerationStarted(message, version))

    def _receive_about_stream(self, message: StreamMessage, events: list[Event]) -> None:
        if isinstance(message, Open):
            self._streams.offer_untrusted(message)
            events.append(message)
            return
        stream = self._streams.get(message.stream)
        if stream is None:
            if not self._streams.was_known(message.stream):
                raise RemoteProtocolError(f"stream {message.stream} was never opened")
            return  # it ended here while the message was under way
        if isinstance(message, Data):  # changes nothing about whether the stream may send, or is over
            stream.receive_payload_untrusted(message)
            if len(message.payload) <= limits.SMALL_PAYLOAD:
                self._shared = limits.SHARED_FRAMES
            events.append(message)
            return
        if stream.receive_untrusted(message):
            events.append(message)
        self._streams.wake(stream)
        self._streams.forget_finished(stream)
