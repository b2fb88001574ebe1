"""The streams of one generation: their numbers, their windows, and whose turn it is to send.

A set lives as long as its generation. Numbers begin anew with each, so a stream is known by identity: `owns` tells the
streams of this generation that still live from those that are over.

What waits to be sent is in two places. `said` holds what concerns the life and credit of streams, which goes first and
in order. Data waits in the streams themselves; each that has something to send stands in a round once, and gives one
frame in its turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from protocol import limits
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.stream_messages import Open, StreamKind, StreamMessage, Target
from protocol.streams import Stream


class StreamSet:
    """All streams that live in a generation. `first` is the lowest number that this side opens: 1 or 2."""

    def __init__(self, first: int) -> None:
        self._parity = first % 2
        self._next = first
        self._highest_offered = 0
        self._streams: dict[int, Stream] = {}
        self._windows = 0
        self._alive = [0, 0]  # even and odd numbers
        self.waiting: deque[Stream] = deque()
        """Streams with something to send, in the order of their turns; some may have lost it, or their credit."""
        self._unpaused: list[int] = []
        self.said: deque[StreamMessage] = deque()
        """Messages about the life and credit of streams that wait to be sent."""

    # -- which streams there are

    @property
    def alive(self) -> Iterable[Stream]:
        """The streams that are not over."""
        return self._streams.values()

    def get(self, number: int) -> Stream | None:
        """The stream with this number, while it lives."""
        return self._streams.get(number)

    def owns(self, stream: Stream) -> bool:
        """Whether this very stream lives here."""
        return self._streams.get(stream.number) is stream

    def was_known(self, number: int) -> bool:
        """Whether there is or was a stream with this number: a message about it may be late."""
        return number < self._next if number % 2 == self._parity else number <= self._highest_offered

    def open(self, kind: StreamKind, target: Target) -> Stream:
        """A new stream of ours; raises `LocalProtocolError` when there are too many, or too much waits to be sent."""
        if self._alive[self._parity] >= limits.MAX_STREAMS:
            raise LocalProtocolError(f"all {limits.MAX_STREAMS} streams are in use")
        if len(self.said) >= limits.MAX_QUEUED // 2:
            raise LocalProtocolError("the peer takes no more")
        stream = self._add(self._next, kind, target, ours=True, credit=0)
        self._next += 2
        return stream

    def offer_untrusted(self, message: Open) -> None:
        """The peer's OPEN; raises `RemoteProtocolError` where it breaks a rule."""
        number = message.stream
        if number % 2 == self._parity or number <= self._highest_offered:
            raise RemoteProtocolError(f"stream {number} is not the peer's to open")
        if self._alive[number % 2] >= limits.MAX_STREAMS:
            raise RemoteProtocolError(f"the peer opened more than {limits.MAX_STREAMS} streams")
        self._highest_offered = number
        self._add(number, message.kind, message.target, ours=False, credit=message.credit)

    def _add(self, number: int, kind: StreamKind, target: Target, *, ours: bool, credit: int) -> Stream:
        window = 0
        if kind is not StreamKind.UDP:
            full = self._windows + limits.STREAM_WINDOW <= limits.WINDOW_BUDGET
            window = limits.STREAM_WINDOW if full else limits.SMALL_WINDOW
        self._windows += window
        self._alive[number % 2] += 1
        stream = self._streams[number] = Stream(number, kind, target, ours=ours, window=window, credit=credit)
        return stream

    def forget_finished(self, stream: Stream) -> None:
        """Let go of `stream` if nothing more can happen to it."""
        if stream.finished and self.owns(stream):
            del self._streams[stream.number]
            self._windows -= stream.window
            self._alive[stream.number % 2] -= 1

    def end(self) -> None:
        """The generation is over, and so is every stream."""
        for stream in self._streams.values():
            stream.abandon()
        self._streams.clear()

    def check_said(self) -> None:
        """Raise `RemoteProtocolError` when the peer makes us say more than it reads."""
        if len(self.said) > limits.MAX_QUEUED:
            raise RemoteProtocolError("the peer does not read what it makes us say")

    # -- whose turn it is

    def wake(self, stream: Stream) -> None:
        """Let `stream` stand in the round if it has something to send."""
        if stream.sendable and not stream.in_turn:
            stream.in_turn = True
            self.waiting.append(stream)

    def next_message(self) -> StreamMessage | None:
        """What is to be sent next, or None when nothing may leave."""
        if self.said:
            return self.said.popleft()
        while self.waiting:
            stream = self.waiting.popleft()
            stream.in_turn = False
            if not stream.sendable:
                continue
            message = stream.next_message()
            self.wake(stream)
            if stream.source_paused and stream.room():
                self._unpaused.append(stream.number)
            self.forget_finished(stream)
            return message
        return None

    def take_unpaused(self) -> list[int]:
        """Streams whose source was told to pause and has room again, each once."""
        unpaused, self._unpaused = self._unpaused, []
        return unpaused
