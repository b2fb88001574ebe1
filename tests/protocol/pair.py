"""Two connections back to back in memory, with a clock that the test moves."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from protocol.codec import encode
from protocol.connection import Connection, Event, GenerationEnded, GenerationStarted, Role
from protocol.messages import Hello, Message
from protocol.stream_messages import Open, SocketTarget, StreamKind
from protocol.streams import Stream

HELLO = Hello(1, 1, frozenset({"exec"}), "0.1.0", "", "a test")
TARGET = SocketTarget("127.0.0.1", 80)


def seeded(seed: int) -> Callable[[int], bytes]:
    """Bytes that are the same in each run."""
    return random.Random(seed).randbytes


class End:
    """One end: its connection, what it heard, and the bytes on their way to it."""

    def __init__(self, role: Role, hello: Hello = HELLO, seed: int = 0) -> None:
        self.role = role
        self.connection = Connection(role, hello, random=seeded(seed + role.value))
        self.heard: list[Event] = []
        self.coming = bytearray()

    def take(self, kind: type[Event]) -> list[Event]:
        """What was heard of that kind, in order."""
        return [event for event in self.heard if isinstance(event, kind)]

    def last_reason(self) -> str:
        """Why the last generation ended."""
        ended = self.heard[-1]
        assert isinstance(ended, GenerationEnded)
        return ended.reason


class Pair:
    """A host and a guest, and the bytes between them."""

    def __init__(self, *, host: Hello = HELLO, guest: Hello = HELLO, seed: int = 1) -> None:
        self.now = 100.0
        self.host = End(Role.HOST, host, seed)
        self.guest = End(Role.GUEST, replace(guest, boot_id="boot"), seed)
        self.seed = seed

    def other(self, end: End) -> End:
        return self.guest if end is self.host else self.host

    def connect(self) -> Pair:
        """Both transports are there; returns itself."""
        self.host.connection.connected(self.now)
        self.guest.connection.connected(self.now)
        return self

    def start(self) -> Pair:
        """Both are running, and what was heard on the way is forgotten; returns itself."""
        self.connect().settle()
        assert self.host.connection.running
        assert self.guest.connection.running
        self.host.heard.clear()
        self.guest.heard.clear()
        return self

    def leave(self, end: End) -> int:
        """Let everything leave that `end` has to say; returns how many bytes that were."""
        total = 0
        while data := end.connection.data_to_send():
            self.other(end).coming += data
            total += len(data)
        return total

    def arrive(self, end: End, size: int | None = None, step: int | None = None) -> list[Event]:
        """Let `size` bytes (all) arrive at `end`, `step` at a time; returns what they say."""
        size = len(end.coming) if size is None else size
        data = bytes(end.coming[:size])
        del end.coming[:size]
        events: list[Event] = []
        for start in range(0, len(data), step or max(1, len(data))):
            events += end.connection.receive_data(data[start : start + (step or len(data))], self.now)
        end.heard += events
        return events

    def say(self, end: End, *messages: Message) -> None:
        """Let `end` send what its own rules would forbid, and the other end take it."""
        encoder = end.connection._handshake.encoder
        assert encoder is not None
        for message in messages:
            self.other(end).coming += encoder.encode(encode(message))
        self.arrive(self.other(end))

    def settle(self, step: int | None = None) -> None:
        """Let bytes go back and forth until nothing moves."""
        for _ in range(100):
            if not self.leave(self.host) + self.leave(self.guest) and not self.host.coming and not self.guest.coming:
                return
            self.arrive(self.host, step=step)
            self.arrive(self.guest, step=step)
        raise AssertionError("the two never stop talking")

    def wait(self, seconds: float) -> None:
        """Let time pass, and do what becomes due, in order."""
        end = self.now + seconds
        while (due := min(self.host.connection.deadline, self.guest.connection.deadline)) <= end:
            self.now = max(self.now, due)
            self.host.heard += self.host.connection.handle_time(self.now)
            self.guest.heard += self.guest.connection.handle_time(self.now)
            self.settle()
        self.now = end

    def restart(self, end: End) -> None:
        """The agent at `end` dies and starts again; what had left is still on its way."""
        self.seed += 10
        fresh = End(end.role, end.connection._hello, self.seed)
        end.connection = fresh.connection
        end.connection.connected(self.now)

    def open(
        self, opener: End | None = None, kind: StreamKind = StreamKind.TCP, *, accept: bool = True
    ) -> tuple[Stream, Stream]:
        """A stream from `opener` (the host): its two ends, accepted unless told otherwise."""
        opener = opener or self.host
        accepter = self.other(opener)
        ours = opener.connection.open_stream(kind, TARGET)
        self.settle()
        opened = accepter.heard.pop()
        assert isinstance(opened, Open)
        theirs = accepter.connection.stream(opened.stream)
        assert theirs is not None
        if accept:
            accepter.connection.accept_stream(theirs)
            self.settle()
            opener.heard.pop()
        return ours, theirs

    def running_again(self) -> bool:
        """Whether both ends heard of the same last generation and are in it."""
        started = [end.take(GenerationStarted) for end in (self.host, self.guest)]
        return all(started) and self.host.connection.running and self.guest.connection.running
