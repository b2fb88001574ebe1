"""What the two agents say about streams. Each message carries the stream's number first."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Self

from protocol import limits
from protocol.errors import RemoteProtocolError
from protocol.messages import Message
from protocol.wire_values import (
    MAX_U63,
    address_untrusted,
    argument_untrusted,
    bytes_untrusted,
    choice_untrusted,
    fields_untrusted,
    integer_untrusted,
    list_untrusted,
    listener_untrusted,
    socket_path_untrusted,
    text_clipped,
    text_untrusted,
)


class StreamKind(enum.StrEnum):
    """What the far end of a stream is."""

    TCP = "tcp"
    UDP = "udp"
    UNIX = "unix"
    EXEC = "exec"


class Transport(enum.StrEnum):
    """Where a stream's bytes travel. Others (raw lanes) will need a capability that both sides announce."""

    FRAMED = "framed"


class StreamMessage(Message):
    """A message about one stream."""

    __slots__ = ()
    stream: int


def _stream_untrusted(value: object) -> int:
    return integer_untrusted(value, MAX_U63, 1)


@dataclass(frozen=True, slots=True)
class SocketTarget:
    """Where a tcp or udp stream leads: an address and port as the opener's peer sees them."""

    address: str
    port: int

    def to_wire(self) -> list[object]:
        return [self.address, self.port]

    @classmethod
    def from_wire_untrusted(cls, value: object) -> Self:
        address, port = fields_untrusted(value, 2)
        return cls(address_untrusted(address), integer_untrusted(port, 65_535, 1))


@dataclass(frozen=True, slots=True)
class UnixTarget:
    """Where a unix stream leads: a stream socket in the guest's file system."""

    path: str
    """Absolute."""

    def to_wire(self) -> list[object]:
        return [self.path]

    @classmethod
    def from_wire_untrusted(cls, value: object) -> Self:
        (path,) = fields_untrusted(value, 1)
        return cls(socket_path_untrusted(path))


@dataclass(frozen=True, slots=True)
class ListenerTarget:
    """Where a stream leads that the guest opens: whatever the host asked this listener for.

    A number, so that a guest can name nothing on the host that the host did not name first.
    """

    listener: int

    def to_wire(self) -> int:
        return self.listener

    @classmethod
    def from_wire_untrusted(cls, value: object) -> Self:
        return cls(listener_untrusted(value))


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """Size of a terminal in characters."""

    rows: int
    columns: int

    @classmethod
    def from_wire_untrusted(cls, rows: object, columns: object) -> Self:
        return cls(integer_untrusted(rows, 65_535), integer_untrusted(columns, 65_535))


@dataclass(frozen=True, slots=True)
class CommandTarget:
    """What an exec stream runs."""

    arguments: tuple[str, ...]
    """argv; empty for the user's login shell."""
    environment: tuple[tuple[str, str], ...]
    """Set on top of the user's own."""
    user: str
    """User name in the guest; empty for the agent's default user."""
    directory: str
    """Working directory; empty for the user's home."""
    terminal: TerminalSize | None
    """Size of the pseudo-terminal, or None for pipes."""

    def to_wire(self) -> list[object]:
        size = None if self.terminal is None else [self.terminal.rows, self.terminal.columns]
        return [list(self.arguments), [list(pair) for pair in self.environment], self.user, self.directory, size]

    @classmethod
    def from_wire_untrusted(cls, value: object) -> Self:
        arguments, environment, user, directory, size = fields_untrusted(value, 5)
        entries = [fields_untrusted(pair, 2) for pair in list_untrusted(environment, limits.MAX_ARGUMENTS)]
        return cls(
            arguments=tuple(
                argument_untrusted(a, limits.MAX_COMMAND) for a in list_untrusted(arguments, limits.MAX_ARGUMENTS)
            ),
            environment=tuple(
                (argument_untrusted(key, limits.MAX_NAME), argument_untrusted(text, limits.MAX_COMMAND))
                for key, text in entries
            ),
            user=argument_untrusted(user, limits.MAX_NAME),
            directory=argument_untrusted(directory, limits.MAX_PATH),
            terminal=None if size is None else TerminalSize.from_wire_untrusted(*fields_untrusted(size, 2)),
        )


Target = SocketTarget | UnixTarget | ListenerTarget | CommandTarget

_TARGETS: dict[StreamKind, type[SocketTarget | UnixTarget | CommandTarget]] = {
    StreamKind.TCP: SocketTarget,
    StreamKind.UDP: SocketTarget,
    StreamKind.UNIX: UnixTarget,
    StreamKind.EXEC: CommandTarget,
}


def _target_untrusted(kind: StreamKind, value: object) -> Target:
    if type(value) is int and kind is not StreamKind.EXEC:
        return ListenerTarget.from_wire_untrusted(value)
    return _TARGETS[kind].from_wire_untrusted(value)


@dataclass(frozen=True, slots=True)
class Open(StreamMessage):
    """Asks the peer to dial or start `target`."""

    NUMBER = 3
    stream: int
    kind: StreamKind
    target: Target
    credit: int
    """Bytes the peer may send on this stream at once."""
    transport: Transport = Transport.FRAMED

    def to_wire(self) -> list[object]:
        return [self.stream, str(self.kind), self.target.to_wire(), self.credit, str(self.transport)]

    @classmethod
    def from_wire_untrusted(cls, values: list[object]) -> Self:
        stream, kind, target, credit, transport = fields_untrusted(values, 5)
        stream_kind = choice_untrusted(kind, StreamKind)
        return cls(
            _stream_untrusted(stream),
            stream_kind,
            _target_untrusted(stream_kind, target),
            integer_untrusted(credit, limits.STREAM_WINDOW),
            choice_untrusted(transport, Transport),
        )


@dataclass(frozen=True, slots=True)
class Opened(StreamMessage):
    """The target answered; `credit` as in OPEN."""

    NUMBER = 4
    stream: int
    credit: int

    def to_wire(self) -> list[object]:
        return [self.stream, self.credit]

    @classmethod
    def from_wire_untrusted(cls, values: list[object]) -> Self:
        stream, credit = fields_untrusted(values, 2)
        return cls(_stream_untrusted(stream), integer_untrusted(credit, limits.STREAM_WINDOW))


@dataclass(frozen=True, slots=True)
class Refused(StreamMessage):
    """The target cannot be had. `error` is an errno name such as ECONNREFUSED."""

    NUMBER = 5
    stream: int
    error: str
    reason: str

    def to_wire(self) -> list[object]:
        return [self.stream, text_clipped(self.error, limits.MAX_NAME), text_clipped(self.reason)]

    @classmethod
    def from_wire_untrusted(cls, values: list[object]) -> Self:
        stream, error, reason = fields_untrusted(values, 3)
        return cls(_stream_untrusted(stream), text_untrusted(error, limits.MAX_NAME), text_untrusted(reason))


@dataclass(slots=True, unsafe_hash=True)  # the hot path: a frozen one takes twice as long to make
class Data(StreamMessage):
    """Bytes of a stream, or exactly one datagram of a udp flow."""

    NUMBER = 6
    stream: int
    payload: bytes

    def to_wire(self) -> list[object]:
        return [self.stream, self.payload]  # the hot path: without looking at the fields

    @classmethod
    def from_wire_untrusted(cls, values: list[object]) -> Self:
        stream, payload = fields_untrusted(values, 2)
        return cls(_stream_untrusted(stream), bytes_untrusted(payload, limits.MAX_PAYLOAD))


@dataclass(slots=True, unsafe_hash=True)
class ErrorOutput(Data):
    """Bytes of a command's standard error, counted against the same credit as DATA."""

    NUMBER = 7


@dataclass(frozen=True, slots=True)
class EndOfData(StreamMessage):
    """The sender's direction is finished (FIN); the other one goes on."""

    NUMBER = 8
    stream: int

    def to_wire(self) -> list[object]:
        return [self.stream]

    @classmethod
    def from_wire_untrusted(cls, values: list[object]) -> Self:
        return cls(_stream_untrusted(fields_untrusted(values, 1)[0]))


@dataclass(frozen=True, slots=True)
class Reset(StreamMessage):
    """The stream is over in both directions, and what was under way is lost (RST)."""

    NUMBER = 9
    stream: int
    reason: str

    def to_wire(self) -> list[object]:
        return [self.stream, text_clipped(self.reason)]

    @classmethod
    def from_wire_untrusted(cls, values: list[object]) -> Self:
        stream, reason = fields_untrusted(values, 2)
        return cls(_stream_untrusted(stream), text_untrusted(reason))


@dataclass(frozen=True, slots=True)
class Credit(StreamMessage):
    """The receiver has room for so many bytes more."""

    NUMBER = 10
    stream: int
    credit: int

    def to_wire(self) -> list[object]:
        return [self.stream, self.credit]

    @classmethod
    def from_wire_untrusted(cls, values: list[object]) -> Self:
        stream, credit = fields_untrusted(values, 2)
        return cls(_stream_untrusted(stream), integer_untrusted(credit, limits.STREAM_WINDOW, 1))


@dataclass(frozen=True, slots=True)
class Signal(StreamMessage):
    """Sends a signal to a command's process group. `name` is as in signal(7): "INT", "TERM"."""

    NUMBER = 11
    stream: int
    name: str

    @classmethod
    def from_wire_untrusted(cls, values: list[object]) -> Self:
        stream, name = fields_untrusted(values, 2)
        return cls(_stream_untrusted(stream), text_untrusted(name, 16))


@dataclass(frozen=True, slots=True)
class Resize(StreamMessage):
    """The user's terminal has a new size."""

    NUMBER = 12
    stream: int
    size: TerminalSize

    def to_wire(self) -> list[object]:
        return [self.stream, self.size.rows, self.size.columns]

    @classmethod
    def from_wire_untrusted(cls, values: list[object]) -> Self:
        stream, rows, columns = fields_untrusted(values, 3)
        return cls(_stream_untrusted(stream), TerminalSize.from_wire_untrusted(rows, columns))


@dataclass(frozen=True, slots=True)
class Exit(StreamMessage):
    """The command ended, after all of its output. Exactly one of the fields says how."""

    NUMBER = 13
    stream: int
    status: int | None
    signal: str | None

    @classmethod
    def from_wire_untrusted(cls, values: list[object]) -> Self:
        stream, status, signal = fields_untrusted(values, 3)
        if (status is None) == (signal is None):
            raise RemoteProtocolError("a command ends with a status or by a signal")
        return cls(
            _stream_untrusted(stream),
            None if status is None else integer_untrusted(status, 255),
            None if signal is None else text_untrusted(signal, 16),
        )
