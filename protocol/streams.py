"""One tunnelled stream: its life as a table, its credit, and what waits to be sent on it.

Two rules, after h11: everything that decides about a stream's state lives in this file, and this file does not know
which side it plays for.

A stream begins with OPEN and ends when both directions have ended, or at once by RESET or REFUSED. States change when
something is said, not when its bytes leave: a stream can be closed and still have data and its end to send.

Credit is counted in bytes for each direction. What a peer may send is what it was granted; sending more is a protocol
error, so the receiver never holds more than it promised to. Datagrams have no credit: a udp flow has a short queue
that drops what does not fit, as a socket does.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.limits import FLOW_QUEUE, FLOW_QUEUE_BYTES, MAX_PAYLOAD, SEND_QUEUE, SEND_QUEUE_FRAMES
from protocol.stream_messages import (
    Credit,
    Data,
    EndOfData,
    ErrorOutput,
    Exit,
    Opened,
    Refused,
    Reset,
    Resize,
    Signal,
    StreamKind,
    StreamMessage,
    Target,
)


class StreamState(enum.StrEnum):
    """Where a stream is in its life, seen from one side."""

    __hash__ = str.__hash__  # Enum's own is a Python function, and the table below is looked into for every frame
    OPENING = "opening"
    """We sent OPEN and wait."""
    OFFERED = "offered"
    """The peer sent OPEN and waits."""
    OPEN = "open"
    HALF_CLOSED_LOCAL = "half-closed (local)"
    """We finished sending."""
    HALF_CLOSED_REMOTE = "half-closed (remote)"
    """The peer finished sending."""
    CLOSED = "closed"


class StreamInput(enum.StrEnum):
    """What can be said about a stream, by us (send) or by the peer (receive)."""

    __hash__ = str.__hash__
    SEND_OPENED = "send OPENED"
    SEND_REFUSED = "send REFUSED"
    SEND_DATA = "send DATA"
    SEND_END = "send END"
    SEND_RESET = "send RESET"
    RECEIVE_OPENED = "receive OPENED"
    RECEIVE_REFUSED = "receive REFUSED"
    RECEIVE_DATA = "receive DATA"
    RECEIVE_END = "receive END"
    RECEIVE_RESET = "receive RESET"


_S = StreamState
_I = StreamInput

TRANSITIONS: dict[StreamState, dict[StreamInput, StreamState]] = {
    _S.OPENING: {
        _I.SEND_DATA: _S.OPENING,  # datagrams need not wait for the answer
        _I.SEND_RESET: _S.CLOSED,
        _I.RECEIVE_OPENED: _S.OPEN,
        _I.RECEIVE_REFUSED: _S.CLOSED,
        _I.RECEIVE_RESET: _S.CLOSED,
    },
    _S.OFFERED: {
        _I.SEND_OPENED: _S.OPEN,
        _I.SEND_REFUSED: _S.CLOSED,
        _I.SEND_RESET: _S.CLOSED,
        _I.RECEIVE_DATA: _S.OFFERED,
        _I.RECEIVE_RESET: _S.CLOSED,
    },
    _S.OPEN: {
        _I.SEND_DATA: _S.OPEN,
        _I.SEND_END: _S.HALF_CLOSED_LOCAL,
        _I.SEND_RESET: _S.CLOSED,
        _I.RECEIVE_DATA: _S.OPEN,
        _I.RECEIVE_END: _S.HALF_CLOSED_REMOTE,
        _I.RECEIVE_RESET: _S.CLOSED,
    },
    _S.HALF_CLOSED_LOCAL: {
        _I.SEND_RESET: _S.CLOSED,
        _I.RECEIVE_DATA: _S.HALF_CLOSED_LOCAL,
        _I.RECEIVE_END: _S.CLOSED,
        _I.RECEIVE_RESET: _S.CLOSED,
    },
    _S.HALF_CLOSED_REMOTE: {
        _I.SEND_DATA: _S.HALF_CLOSED_REMOTE,
        _I.SEND_END: _S.CLOSED,
        _I.SEND_RESET: _S.CLOSED,
        _I.RECEIVE_RESET: _S.CLOSED,
    },
    _S.CLOSED: {
        _I.SEND_RESET: _S.CLOSED,  # abort what still waits to be sent
        _I.RECEIVE_RESET: _S.CLOSED,
    },
}
"""state -> what is said -> next state. What is not here is not allowed."""

_RULES: dict[type[StreamMessage], StreamInput] = {
    Opened: StreamInput.RECEIVE_OPENED,
    Refused: StreamInput.RECEIVE_REFUSED,
    EndOfData: StreamInput.RECEIVE_END,
    Reset: StreamInput.RECEIVE_RESET,
}

_SENT_BY_US = frozenset(i for i in StreamInput if i.value.startswith("send"))


@dataclass(slots=True)
class FlowCounters:
    """Datagrams of one udp flow, as sent by this side."""

    sent: int = 0
    dropped: int = 0


class Stream:
    """State, credit and send queue of one stream. `Connection` makes it and moves its frames."""

    __slots__ = (
        "_granted",
        "_queue",
        "_queued",
        "_returned",
        "counters",
        "credit",
        "in_turn",
        "kind",
        "number",
        "ours",
        "source_paused",
        "state",
        "target",
        "window",
    )

    def __init__(self, number: int, kind: StreamKind, target: Target, *, ours: bool, window: int, credit: int) -> None:
        self.number = number
        self.kind = kind
        self.target = target
        self.ours = ours
        """Whether this side sent the OPEN."""
        self.state = StreamState.OPENING if ours else StreamState.OFFERED
        self.window = window
        """Bytes that the peer may have under way to us; 0 for flows."""
        self.credit = credit
        """Bytes that we may still send."""
        self.source_paused = False
        """Set by `room` when it answered 0: the source waits to be told of room."""
        self.in_turn = False
        """Whether `Connection` has it in its round of streams with something to send."""
        self.counters = FlowCounters()
        self._granted = window if ours else 0  # the peer learns of it with our OPEN or OPENED
        self._returned = 0
        self._queue: deque[StreamMessage] = deque()
        self._queued = 0

    def __repr__(self) -> str:
        return f"<Stream {self.number} {self.kind} {self.state}>"

    # -- state

    def change(self, said: StreamInput) -> None:
        """The one place where the state changes."""
        following = TRANSITIONS[self.state].get(said)
        if following is None:
            message = f"stream {self.number} is {self.state}: cannot {said}"
            raise LocalProtocolError(message) if said in _SENT_BY_US else RemoteProtocolError(message)
        self.state = following

    def abandon(self) -> None:
        """The generation ended, and this stream without anything being said."""
        self.state = StreamState.CLOSED
        self.drop_queue()

    @property
    def finished(self) -> bool:
        """Whether nothing more can happen: closed, and nothing left to send."""
        return self.state is StreamState.CLOSED and not self._queue

    # -- receiving

    def receive_untrusted(self, message: StreamMessage) -> bool:
        """Take what the peer says, except OPEN and payload; returns whether this side's user should hear of it.

        Raises `RemoteProtocolError` where it breaks a rule.
        """
        if isinstance(message, Credit):
            self._receive_credit(message.credit)
            return False
        if isinstance(message, Signal | Resize):
            self._check_command(ours=False)
            return self.state is not StreamState.CLOSED
        if isinstance(message, Exit):
            self._check_command(ours=True)
            self.change(StreamInput.RECEIVE_DATA)
            return True
        self.change(_RULES[type(message)])
        if isinstance(message, Opened):
            self.credit += message.credit
        elif isinstance(message, Refused | Reset):
            self.drop_queue()
        return True

    def receive_payload_untrusted(self, message: Data) -> None:
        """Count bytes against what the peer was granted; raises `RemoteProtocolError` where it breaks a rule."""
        self.change(StreamInput.RECEIVE_DATA)
        if type(message) is ErrorOutput:
            self._check_command(ours=True)
        if self.kind is StreamKind.UDP:
            return
        size = len(message.payload)
        if not 0 < size <= self._granted:
            raise RemoteProtocolError(f"stream {self.number}: {size} bytes came with {self._granted} granted")
        self._granted -= size

    def _check_command(self, *, ours: bool) -> None:
        if self.kind is not StreamKind.EXEC or self.ours is not ours:
            raise RemoteProtocolError(f"stream {self.number} runs no command of that side")

    def consume(self, size: int) -> int:
        """Say that `size` received bytes are gone; returns the credit that is worth granting now, often 0."""
        if self.kind is StreamKind.UDP:
            return 0
        self._returned += size
        if self._returned < self.window // 4 or self.state in (StreamState.HALF_CLOSED_REMOTE, StreamState.CLOSED):
            return 0
        grant, self._returned = self._returned, 0
        self._granted += grant
        return grant

    def _receive_credit(self, credit: int) -> None:
        """The peer has room for more. It cannot have before it was sent something."""
        if self.kind is StreamKind.UDP or self.state in (StreamState.OPENING, StreamState.OFFERED):
            raise RemoteProtocolError(f"stream {self.number}: credit for nothing")
        self.credit += credit
        if self.credit > 0x7FFFFFFF:
            raise RemoteProtocolError(f"stream {self.number}: credit overflows")

    # -- sending

    def accept(self) -> None:
        """The target is there: the peer may send as much as the window holds."""
        self.change(StreamInput.SEND_OPENED)
        self._granted = self.window

    def room(self) -> int:
        """Bytes that the source should read now. After 0, `Connection.take_unpaused` will name this stream."""
        room = max(0, SEND_QUEUE - self._queued) if len(self._queue) < SEND_QUEUE_FRAMES else 0
        self.source_paused = room == 0
        return room

    def queue_payload(self, payload: bytes, *, error_output: bool = False) -> bool:
        """Queue bytes (or one datagram); returns whether they were taken, which only a full udp flow denies."""
        self.change(StreamInput.SEND_DATA)
        kind = ErrorOutput if error_output else Data
        if self.kind is StreamKind.UDP:
            if len(payload) > MAX_PAYLOAD:
                raise LocalProtocolError(f"a datagram of {len(payload)} bytes does not fit a frame")
            if len(self._queue) >= FLOW_QUEUE or self._queued + len(payload) > FLOW_QUEUE_BYTES:
                self.counters.dropped += 1
                return False
            self.counters.sent += 1
            self._queue.append(Data(self.number, payload))
        else:
            for start in range(0, len(payload), MAX_PAYLOAD):
                self._queue.append(kind(self.number, payload[start : start + MAX_PAYLOAD]))
        self._queued += len(payload)
        return True

    def queue_exit(self, message: Exit) -> None:
        """Queue the command's end behind its output."""
        self.change(StreamInput.SEND_DATA)
        self._queue.append(message)

    def queue_end(self) -> None:
        """Finish our direction behind everything that is queued."""
        self.change(StreamInput.SEND_END)
        self._queue.append(EndOfData(self.number))

    def drop_queue(self) -> None:
        """Forget what waits to be sent: the stream was reset."""
        self._queue.clear()
        self._queued = 0

    @property
    def sendable(self) -> bool:
        """Whether `next_message` has something: queued, and allowed by state and credit."""
        if not self._queue:
            return False
        return self.credit > 0 or self.kind is StreamKind.UDP or not isinstance(self._queue[0], Data)

    def next_message(self) -> StreamMessage:
        """The next message that may go out, cut to the credit there is. Only while `sendable`."""
        message = self._queue.popleft()
        if not isinstance(message, Data):
            return message
        payload = message.payload
        if self.kind is not StreamKind.UDP:
            if len(payload) > self.credit:
                kind = type(message)
                self._queue.appendleft(kind(self.number, payload[self.credit :]))
                message = kind(self.number, payload := payload[: self.credit])
            self.credit -= len(payload)
        self._queued -= len(payload)
        return message
