"""What a forward is, for everybody who shows or counts one: a value with a state and a reason.

A forward exists for every port that the guest opened, whether it is reachable or not: `hostagent ports` says what is
reachable, what is not, why, and what to do about it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from protocol.ports import PortOwner, Protocol


class ForwardState(enum.StrEnum):
    """Whether the port can be used on the host."""

    LISTENING = "listening"
    CONFLICT = "conflict"
    """The host port is taken; tried again by itself."""
    DENIED = "denied"
    """The host does not let us have the port."""
    IGNORED = "ignored"
    """A rule says not to forward it."""
    STALLED = "stalled"
    """The listener is there, the guest agent is not; comes back by itself."""
    FAILED = "failed"


class ForwardKind(enum.StrEnum):
    """What makes a forward exist."""

    SOCKET = "socket"
    """A program in the guest opened the port."""
    NAT = "nat"
    SERVICE = "service"
    STATIC = "static"
    """A rule names both ends."""
    REVERSE = "reverse"
    """A rule names both ends, and the guest's end is the one that listens."""


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """An address and a port."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True, order=True)
class SocketFile:
    """A unix socket: an absolute path."""

    path: str

    def __str__(self) -> str:
        return self.path


GuestEnd = Endpoint | SocketFile
HostEnd = Endpoint | SocketFile


@dataclass(slots=True)
class Traffic:
    """Counters of one forward, since it began."""

    connections: int = 0
    """TCP connections or UDP flows alive now."""
    connections_total: int = 0
    connections_refused: int = 0
    """Connections that the far side refused: the guest, or for a reverse forward the host's service."""
    bytes_to_guest: int = 0
    bytes_to_host: int = 0
    datagrams_to_guest: int = 0
    datagrams_to_host: int = 0
    datagrams_dropped: int = 0


@dataclass(slots=True)
class Forward:
    """One guest port, or what a rule puts in its place, and what became of it on the host."""

    protocol: Protocol
    guest: GuestEnd
    host: tuple[HostEnd, ...]
    """Where it listens, or would listen; empty when no rule forwards it. Of a reverse one: where it leads to."""
    state: ForwardState
    reason: str
    """Why it is in this state, with the next step; empty while all is well."""
    rule: str
    """The rule that decided, in words."""
    since: float
    """Unix time of the last change of state."""
    kind: ForwardKind = ForwardKind.SOCKET
    owner: PortOwner | None = None
    traffic: Traffic = field(default_factory=Traffic)
