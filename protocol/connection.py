"""The channel's core: bytes in, events out; calls in, bytes out. No I/O, no clock, no randomness of its own.

Theory of operation
-------------------
One `Connection` lives as long as its agent. Below it the byte stream comes, goes and lies (see `protocol.framing`);
above it there is at most one *generation* at a time. A generation starts with both markers known and both HELLOs
exchanged, and ends for a reason in words; with it end all of its streams, and the next one begins with nothing:
the guest sends all ports again.

The host begins generations: it sends SYNC when its transport is connected, when the guest says LOST, and when it sees
that bytes are missing; an unanswered SYNC is repeated. The guest answers each SYNC with a new marker.

What leaves first: what concerns the connection and the ports, then what concerns the life and credit of streams, then
data, one frame from each stream in turn. Frames are made when bytes can leave, so an event never waits behind a
download longer than the transport's own buffer.

Every call that takes bytes or time returns the events they caused. Bytes of the peer never raise: what breaks the
rules ends the generation, with the rule in the event's reason.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from protocol import limits
from protocol.codec import decode_untrusted, encode
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.framing import (
    FLUSH,
    MARKER_SIZE,
    NO_MARKER,
    FrameDecoder,
    FrameEncoder,
    Preamble,
    PreambleKind,
    generation_seed,
)
from protocol.messages import Hello, Message, Ping, Pong
from protocol.stream_messages import (
    Credit,
    Data,
    EndOfData,
    Exit,
    Open,
    Opened,
    Refused,
    Reset,
    StreamKind,
    StreamMessage,
    Target,
)
from protocol.streams import Stream, StreamInput, StreamState


class Role(enum.Enum):
    """Which end of the channel this is."""

    HOST = 1
    GUEST = 0

    @property
    def first_stream(self) -> int:
        """The host opens odd streams, the guest even ones."""
        return 1 if self is Role.HOST else 2


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

_STREAM_RULES: dict[type[Message], StreamInput] = {
    Opened: StreamInput.RECEIVE_OPENED,
    Refused: StreamInput.RECEIVE_REFUSED,
    EndOfData: StreamInput.RECEIVE_END,
    Reset: StreamInput.RECEIVE_RESET,
}


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
        self._random = random
        self._phase = _Phase.DOWN
        self._decoder = FrameDecoder()
        self._encoder: FrameEncoder | None = None
        self._marker = NO_MARKER
        self._raw = bytearray()
        self._heard = 0.0
        self._asked: float | None = None
        self._tokens = 0
        self._begin_streams()

    def _begin_streams(self) -> None:
        self._streams: dict[int, Stream] = {}
        self._control: deque[Message] = deque()
        self._lifecycle: deque[Message] = deque()
        self._ready: deque[Stream] = deque()
        self._unpaused: list[int] = []
        self._next_stream = self._role.first_stream
        self._highest_offered = 0
        self._windows = 0
        self._alive = [0, 0]  # even and odd streams

    # ------------------------------------------------------------------ the transport

    def connected(self, now: float) -> None:
        """The transport is there (again). The host begins a generation, the guest asks for one."""
        self._decoder.clear()
        self._raw.clear()
        self._hunt(now)
        self._raw += FLUSH
        if self._role is Role.HOST:
            self._synchronise(now)
        else:
            self._raw += Preamble(PreambleKind.LOST, self._random(MARKER_SIZE)).encode()

    def disconnected(self, reason: str) -> list[Event]:
        """The transport is gone. Bytes not taken yet are forgotten."""
        events = self._end(reason, fault=False)
        self._phase = _Phase.DOWN
        self._decoder.clear()
        self._raw.clear()
        return events

    def receive_data(self, data: bytes, now: float) -> list[Event]:
        """Take bytes from the peer; returns what they say."""
        events: list[Event] = []
        if self._phase is _Phase.DOWN:
            return events
        self._heard = now
        self._decoder.receive_data(data)
        while True:
            try:
                for item in self._decoder.items_untrusted():
                    if isinstance(item, Preamble):
                        self._receive_preamble(item, events, now)
                    else:
                        self._receive_body(item, events)
            except RemoteProtocolError as exc:
                self._fail(str(exc), events, now)
            else:
                return events

    def handle_time(self, now: float) -> list[Event]:
        """Do what is due at `now`; returns what follows from it. Call again at `deadline`."""
        events: list[Event] = []
        if now < self.deadline:
            return events
        match self._phase:
            case _Phase.HUNTING | _Phase.GREETING if self._role is Role.HOST:
                # With the same marker: an answer that is only late must still count.
                self._hunt(now)
                self._raw += Preamble(PreambleKind.SYNC, self._marker).encode()
            case _Phase.RUNNING if now >= self._heard + limits.AWAY_AFTER:
                self._fail("the peer has been silent", events, now, fault=False)
            case _Phase.RUNNING:
                self._tokens = (self._tokens + 1) & 0xFFFFFFFF
                self._control.append(Ping(self._tokens))
                self._asked = now
            case _:
                pass
        return events

    @property
    def deadline(self) -> float:
        """When `handle_time` is due; infinity while there is nothing to wait for."""
        match self._phase:
            case _Phase.RUNNING:
                quiet = self._heard if self._asked is None else max(self._heard, self._asked)
                return min(quiet + limits.PING_AFTER, self._heard + limits.AWAY_AFTER)
            case _Phase.HUNTING | _Phase.GREETING if self._role is Role.HOST and self._asked is not None:
                return self._asked + limits.SYNC_RETRY
            case _:
                return float("inf")

    @property
    def running(self) -> bool:
        """Whether messages may be sent."""
        return self._phase is _Phase.RUNNING

    def data_to_send(self, limit: int = limits.MAX_PAYLOAD) -> bytes:
        """Bytes for the transport, about `limit` of them, most urgent first; empty when nothing may leave."""
        out = self._raw
        self._raw = bytearray()
        if self._encoder is None:
            return bytes(out)
        while self._control:
            out += self._encoder.encode(encode(self._control.popleft()))
        while len(out) < limit and (message := self._next_message()) is not None:
            out += self._encoder.encode(encode(message))
        return bytes(out)

    def _next_message(self) -> Message | None:
        if self._lifecycle:
            return self._lifecycle.popleft()
        while self._ready:
            stream = self._ready.popleft()
            stream.in_turn = False
            if not stream.sendable:
                continue
            message = stream.next_message()
            self._wake(stream)
            if stream.source_paused and stream.room():
                self._unpaused.append(stream.number)
            self._forget_finished(stream)
            return message
        return None

    # ------------------------------------------------------------------ what we say

    def send(self, message: Message) -> None:
        """Send a message that is not about a stream."""
        if self._phase is not _Phase.RUNNING:
            raise LocalProtocolError("there is no generation to send in")
        self._control.append(message)

    def open_stream(self, kind: StreamKind, target: Target) -> Stream:
        """Ask the peer for a stream; OPENED or REFUSED will answer. Raises `LocalProtocolError` when all are taken."""
        if self._phase is not _Phase.RUNNING:
            raise LocalProtocolError("there is no generation to open a stream in")
        number = self._next_stream
        if number > 0xFFFFFFFF or self._alive[number % 2] >= limits.MAX_STREAMS:
            raise LocalProtocolError(f"all {limits.MAX_STREAMS} streams are in use")
        self._next_stream += 2
        stream = self._add_stream(number, kind, target, ours=True, credit=0)
        self._lifecycle.append(Open(number, kind, target, stream.window))
        return stream

    def accept_stream(self, stream: Stream) -> None:
        """Answer the peer's OPEN: the target is there."""
        stream.change(StreamInput.SEND_OPENED)
        self._lifecycle.append(Opened(stream.number, stream.window))
        self._wake(stream)

    def refuse_stream(self, stream: Stream, error: str, reason: str) -> None:
        """Answer the peer's OPEN: the target cannot be had. `error` is an errno name."""
        stream.change(StreamInput.SEND_REFUSED)
        self._lifecycle.append(Refused(stream.number, error, reason))
        self._forget_finished(stream)

    def send_data(self, stream: Stream, payload: bytes, *, error_output: bool = False) -> bool:
        """Queue bytes or one datagram; False when a full flow dropped it. Mind `Stream.room`."""
        taken = stream.queue_payload(payload, error_output=error_output)
        self._wake(stream)
        return taken

    def send_exit(self, stream: Stream, status: int | None, signal: str | None) -> None:
        """Say how the command ended, behind all of its output."""
        stream.queue_exit(Exit(stream.number, status, signal))
        self._wake(stream)

    def send_end(self, stream: Stream) -> None:
        """Finish our direction behind everything queued."""
        stream.queue_end()
        self._wake(stream)

    def send_reset(self, stream: Stream, reason: str) -> None:
        """End the stream at once, in both directions. A stream that is over already stays so."""
        if stream.number not in self._streams:
            return
        stream.change(StreamInput.SEND_RESET)
        stream.drop_queue()
        self._lifecycle.append(Reset(stream.number, reason))
        self._forget_finished(stream)

    def send_about(self, message: StreamMessage) -> None:
        """Send a SIGNAL or RESIZE."""
        if message.stream in self._streams:
            self._lifecycle.append(message)

    def consumed(self, stream: Stream, size: int) -> None:
        """Say that `size` received bytes have left this side, so that the peer may send more."""
        if (grant := stream.consume(size)) and stream.number in self._streams:
            self._lifecycle.append(Credit(stream.number, grant))

    def take_unpaused(self) -> list[int]:
        """Streams whose source was told to pause and has room again, each once."""
        unpaused, self._unpaused = self._unpaused, []
        return unpaused

    @property
    def streams(self) -> Iterable[Stream]:
        """The streams of this generation."""
        return self._streams.values()

    def stream(self, number: int) -> Stream | None:
        """The stream with this number, while it lives."""
        return self._streams.get(number)

    def _wake(self, stream: Stream) -> None:
        if stream.sendable and not stream.in_turn:
            stream.in_turn = True
            self._ready.append(stream)

    # ------------------------------------------------------------------ generations

    def _hunt(self, now: float) -> None:
        self._phase = _Phase.HUNTING
        self._encoder = None
        self._decoder.hunt()
        self._asked = now

    def _synchronise(self, now: float) -> None:
        """Host: ask for a generation. With a new marker, answers to older questions mean nothing."""
        self._hunt(now)
        self._marker = self._random(MARKER_SIZE)
        self._raw += Preamble(PreambleKind.SYNC, self._marker).encode()

    def _end(self, reason: str, *, fault: bool) -> list[Event]:
        was_running = self._phase is _Phase.RUNNING
        self._begin_streams()
        self._encoder = None
        return [GenerationEnded(reason, fault)] if was_running else []

    def _fail(self, reason: str, events: list[Event], now: float, *, fault: bool = True) -> None:
        """The generation makes no sense any more. The peer may be in the middle of a frame, hence the flush."""
        events += self._end(reason, fault=fault)
        self._hunt(now)
        self._raw += FLUSH
        if self._role is Role.HOST:
            self._synchronise(now)
        else:
            self._raw += Preamble(PreambleKind.LOST, self._random(MARKER_SIZE)).encode()

    def _receive_preamble(self, preamble: Preamble, events: list[Event], now: float) -> None:
        match self._role, preamble.kind:
            case Role.GUEST, PreambleKind.SYNC:
                events += self._end("the host began a new generation", fault=False)
                self._marker = self._random(MARKER_SIZE)
                self._raw.clear()
                self._raw += Preamble(PreambleKind.ANSWER, self._marker, preamble.marker).encode()
                self._greet(generation_seed(preamble.marker, self._marker))
            case Role.HOST, PreambleKind.ANSWER if preamble.echo == self._marker:
                events += self._end("the guest began a new generation", fault=False)
                self._greet(generation_seed(self._marker, preamble.marker))
            case Role.HOST, PreambleKind.LOST:
                events += self._end("the guest agent restarted or lost its place", fault=False)
                self._synchronise(now)
            case _:
                pass  # an answer to somebody else's question, or our own bytes

    def _greet(self, seed: int) -> None:
        self._phase = _Phase.GREETING
        self._decoder.begin(seed)
        self._encoder = FrameEncoder(seed)
        self._control.append(self._hello)

    # ------------------------------------------------------------------ what the peer says

    def _receive_body(self, body: bytes, events: list[Event]) -> None:
        message = decode_untrusted(body)
        if self._phase is _Phase.GREETING:
            self._receive_hello(message, events)
        elif self._phase is _Phase.INCOMPATIBLE:
            return
        elif isinstance(message, StreamMessage):
            self._receive_about_stream(message, events)
        elif isinstance(message, Hello):
            raise RemoteProtocolError("the peer said hello twice")
        elif isinstance(message, Pong):
            return
        elif isinstance(message, Ping):
            self._control.append(Pong(message.token))
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
        self._asked = None
        events.append(GenerationStarted(message, version))

    def _receive_about_stream(self, message: StreamMessage, events: list[Event]) -> None:
        if isinstance(message, Open):
            self._receive_open(message, events)
            return
        stream = self._streams.get(message.stream)
        if stream is None:
            if not self._was_ours_or_offered(message.stream):
                raise RemoteProtocolError(f"stream {message.stream} was never opened")
            return  # it ended here while the message was under way
        if isinstance(message, Data):
            if stream.state is StreamState.CLOSED:
                return
            stream.receive_payload(len(message.payload))
        elif isinstance(message, Credit):
            stream.receive_credit(message.credit)
            self._wake(stream)
            return
        elif (rule := _STREAM_RULES.get(type(message))) is not None:
            stream.change(rule)
            self._apply(message, stream)
        events.append(message)

    def _apply(self, message: StreamMessage, stream: Stream) -> None:
        if isinstance(message, Opened):
            stream.receive_credit(message.credit)
            self._wake(stream)
        elif isinstance(message, Refused | Reset):
            stream.drop_queue()
        self._forget_finished(stream)

    def _receive_open(self, message: Open, events: list[Event]) -> None:
        number = message.stream
        if number % 2 == self._role.first_stream % 2 or number <= self._highest_offered:
            raise RemoteProtocolError(f"stream {number} is not the peer's to open")
        if self._alive[number % 2] >= limits.MAX_STREAMS:
            raise RemoteProtocolError(f"the peer opened more than {limits.MAX_STREAMS} streams")
        self._highest_offered = number
        self._add_stream(number, message.kind, message.target, ours=False, credit=message.credit)
        events.append(message)

    def _was_ours_or_offered(self, number: int) -> bool:
        if number % 2 == self._role.first_stream % 2:
            return number < self._next_stream
        return number <= self._highest_offered

    def _add_stream(self, number: int, kind: StreamKind, target: Target, *, ours: bool, credit: int) -> Stream:
        window = 0
        if kind is not StreamKind.UDP:
            full = self._windows + limits.STREAM_WINDOW <= limits.WINDOW_BUDGET
            window = limits.STREAM_WINDOW if full else limits.SMALL_WINDOW
        self._windows += window
        self._alive[number % 2] += 1
        stream = self._streams[number] = Stream(number, kind, target, ours=ours, window=window, credit=credit)
        return stream

    def _forget_finished(self, stream: Stream) -> None:
        if stream.finished and self._streams.pop(stream.number, None) is not None:
            self._windows -= stream.window
            self._alive[stream.number % 2] -= 1
