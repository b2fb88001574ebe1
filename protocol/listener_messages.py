"""What the two agents say about listeners in the guest that lead to the host: reverse forwards.

The host asks for each by a number of its own, and the guest opens streams that name this number and nothing else
(`ListenerTarget`). So the guest can reach what the host offered, and cannot say anything that is an address or a path
of the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from protocol import limits
from protocol.errors import RemoteProtocolError
from protocol.messages import Message
from protocol.stream_messages import SocketTarget, StreamKind
from protocol.wire_values import (
    argument_untrusted,
    choice_untrusted,
    fields_untrusted,
    integer_untrusted,
    listener_untrusted,
    socket_path_untrusted,
    text_clipped,
    text_untrusted,
)


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A unix socket to be made in the guest's file system."""

    path: str
    """Absolute."""
    mode: int
    """Permission bits."""
    user: str
    """Its owner; empty for the guest agent's default user."""

    def to_wire(self) -> list[object]:
        return [self.path, self.mode, self.user]

    @classmethod
    def from_wire_untrusted(cls, value: object) -> Self:
        path, mode, user = fields_untrusted(value, 3)
        return cls(
            socket_path_untrusted(path), integer_untrusted(mode, 0o777), argument_untrusted(user, limits.MAX_NAME)
        )


ListenAddress = SocketTarget | UnixAddress

_ADDRESSES: dict[StreamKind, type[SocketTarget | UnixAddress]] = {
    StreamKind.TCP: SocketTarget,
    StreamKind.UDP: SocketTarget,
    StreamKind.UNIX: UnixAddress,
}


@dataclass(frozen=True, slots=True)
class Listen(Message):
    """Asks the guest to listen on `address`, and to open a stream for each connection, or each client of a udp port."""

    NUMBER = 21
    listener: int
    """New for each LISTEN of a generation."""
    kind: StreamKind
    address: ListenAddress

    def to_wire(self) -> list[object]:
        return [self.listener, str(self.kind), self.address.to_wire()]

    @classmethod
    def from_wire_untrusted(cls, values: list[object]) -> Self:
        listener, kind, address = fields_untrusted(values, 3)
        stream_kind = choice_untrusted(kind, StreamKind)
        parse = _ADDRESSES.get(stream_kind)
        if parse is None:
            raise RemoteProtocolError("no listener runs commands")
        return cls(listener_untrusted(listener), stream_kind, parse.from_wire_untrusted(address))


@dataclass(frozen=True, slots=True)
class _AboutListener(Message):
    """Names a listener, and that is all."""

    listener: int

    @classmethod
    def from_wire_untrusted(cls, values: list[object]) -> Self:
        return cls(listener_untrusted(fields_untrusted(values, 1)[0]))


@dataclass(frozen=True, slots=True)
class Unlisten(_AboutListener):
    """Takes a LISTEN back, answered or not. What was accepted goes on, except the flows of a udp port."""

    NUMBER = 22


@dataclass(frozen=True, slots=True)
class Listening(_AboutListener):
    """The listener is there."""

    NUMBER = 23


@dataclass(frozen=True, slots=True)
class ListenFailed(Message):
    """The listener cannot be had. `error` is an errno name such as EADDRINUSE."""

    NUMBER = 24
    listener: int
    error: str
    reason: str

    def to_wire(self) -> list[object]:
        return [self.listener, text_clipped(self.error, limits.MAX_NAME), text_clipped(self.reason)]

    @classmethod
    def from_wire_untrusted(cls, values: list[object]) -> Self:
        listener, error, reason = fields_untrusted(values, 3)
        return cls(listener_untrusted(listener), text_untrusted(error, limits.MAX_NAME), text_untrusted(reason))
