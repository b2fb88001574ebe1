"""The vocabulary of "open" and "closed": what the guest agent says about ports, and nothing about how it knows.

A port is identified by protocol, address and number. Two processes that share one by SO_REUSEPORT are one port; a
listener that is replaced at once by another process is the same port with another owner. What is known only a little
later (the owner) travels separately, so that it never delays the news that a port is open.
"""

from __future__ import annotations

import enum
from collections.abc import Set as AbstractSet
from dataclasses import dataclass


class Protocol(enum.StrEnum):
    """Transport protocol of a port."""

    TCP = "tcp"
    UDP = "udp"


class PortKind(enum.StrEnum):
    """What makes a port reachable in the guest."""

    SOCKET = "socket"
    NAT = "nat"
    SERVICE = "service"


@dataclass(frozen=True, slots=True, order=True)
class Port:
    """One open port of the guest. `address` is in the canonical text form of `ipaddress`, without a zone."""

    protocol: Protocol
    address: str
    number: int
    kind: PortKind = PortKind.SOCKET


@dataclass(frozen=True, slots=True)
class PortOwner:
    """The process behind a port, as far as the guest lets itself be asked."""

    process: str
    pid: int
    uid: int
    unit: str = ""
    """systemd unit, scope or container of the process, from its cgroup; empty when unknown."""


@dataclass(frozen=True, slots=True)
class WakeupSource:
    """One of the kernel's ways of saying that a port may have changed."""

    name: str
    live: bool
    reason: str
    """Why it is not live, in words; empty when it is."""
    wakeups: int
    """How often it has woken the port watch."""


@dataclass(frozen=True, slots=True)
class PortChange:
    """What differs between two looks at the guest's ports."""

    opened: tuple[Port, ...]
    closed: tuple[Port, ...]

    def __bool__(self) -> bool:
        return bool(self.opened or self.closed)


def difference(old: AbstractSet[Port], new: AbstractSet[Port]) -> PortChange:
    """The change that leads from `old` to `new`, in a fixed order."""
    return PortChange(opened=tuple(sorted(new - old)), closed=tuple(sorted(old - new)))
