"""What the two agents say about themselves, the ports and the guest: frozen values with their exact form on the wire.

A body is one msgpack array: the message's number, then its fields in order (`protocol.codec`). Numbers are never
reused. Everything that comes from the peer is checked for type, size and form before it becomes a message. What
streams say is in `protocol.stream_messages`.

Rejected: maps with named fields (16 instead of 6 bytes for each data frame), and a schema library (the frozen guest
agent stays small).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Self

from protocol import limits
from protocol.ports import Port, PortKind, PortOwner, Protocol, WakeupSource
from protocol.wire_values import (
    MAX_U32,
    MAX_U63,
    address_untrusted,
    boolean_untrusted,
    choice_untrusted,
    fields_untrusted,
    integer_untrusted,
    list_untrusted,
    text_clipped,
    text_untrusted,
)


class Message:
    """Common parent of all messages."""

    NUMBER: ClassVar[int]

    def to_wire(self) -> list[object]:
        """The fields in wire form, without the number. Right as it stands where fields are plain values."""
        return [getattr(self, field.name) for field in fields(self)]  # type: ignore[arg-type]

    @classmethod
    def from_wire_untrusted(cls, values: list[object]) -> Self:
        """The message these fields say; raises `RemoteProtocolError`."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """The first frame of each side in a generation."""

    NUMBER = 0
    lowest_version: int
    highest_version: int
    capabilities: frozenset[str]
    agent_version: str
    boot_id: str
    """Random per boot of the guest (/proc/sys/kernel/random/boot_id); empty from the host."""
    description: str
    """Operating system and kernel, for `status`."""

    def to_wire(self) -> list[object]:
        return [
            self.lowest_version,
            self.highest_version,
            sorted(self.capabilities),
            text_clipped(self.agent_version, limits.MAX_NAME),
            text_clipped(self.boot_id, limits.MAX_NAME),
            text_clipped(self.description, limits.MAX_NAME),
        ]

    @classmethod
    def from_wire_untrusted(cls, values: list[object]) -> Self:
        # A later version may append fields.
        lowest, highest, capabilities, version, boot_id, description = fields_untrusted(values[:6], 6)
        return cls(
            lowest_version=integer_untrusted(lowest, MAX_U32, 1),
            highest_version=integer_untrusted(highest, MAX_U32, 1),
            capabilities=frozenset(text_untrusted(c, limits.MAX_NAME) for c in list_untrusted(capabilities, 64)),
            agent_version=text_untrusted(version, limits.MAX_NAME),
            boot_id=text_untrusted(boot_id, limits.MAX_NAME),
            description=text_untrusted(description, limits.MAX_NAME),
        )


@dataclass(frozen=True, slots=True)
class Ping(Message):
    """Asks for a sign of life."""

    NUMBER = 1
    token: int

    @classmethod
    def from_wire_untrusted(cls, values: list[object]) -> Self:
        return cls(integer_untrusted(fields_untrusted(values, 1)[0], MAX_U32))


@dataclass(frozen=True, slots=True)
class Pong(Ping):
    """Answers a PING with its token."""

    NUMBER = 2


def _port_to_wire(port: Port) -> list[object]:
    return [str(port.protocol), port.address, port.number, str(port.kind)]


def _port_untrusted(value: object) -> Port:
    protocol, address, number, kind = fields_untrusted(value, 4)
    return Port(
        choice_untrusted(protocol, Protocol),
        address_untrusted(address),
        integer_untrusted(number, 65_535, 1),
        choice_untrusted(kind, PortKind),
    )


def _ports_untrusted(value: object) -> tuple[Port, ...]:
    return tuple(_port_untrusted(port) for port in list_untrusted(value, limits.PORTS_PER_FRAME))


@dataclass(frozen=True, slots=True)
class PortsSnapshot(Message):
    """A part of all open ports. The snapshot is whole with the part whose `last` is set."""

    NUMBER = 14
    ports: tuple[Port, ...]
    last: bool

    def to_wire(self) -> list[object]:
        return [[_port_to_wire(port) for port in self.ports], self.last]

    @classmethod
    def from_wire_untrusted(cls, values: list[object]) -> Self:
        ports, last = fields_untrusted(values, 2)
        return cls(_ports_untrusted(ports), boolean_untrusted(last))


@dataclass(frozen=True, slots=True)
class PortsChanged(Message):
    """Ports that opened and closed since the last message about ports."""

    NUMBER = 15
    opened: tuple[Port, ...]
    closed: tuple[Port, ...]

    def to_wire(self) -> list[object]:
        return [[_port_to_wire(port) for port in side] for side in (self.opened, self.closed)]

    @classmethod
    def from_wire_untrusted(cls, values: list[object]) -> Self:
        opened, closed = fields_untrusted(values, 2)
        return cls(_ports_untrusted(opened), _ports_untrusted(closed))


@dataclass(frozen=True, slots=True)
class PortOwners(Message):
    """Who holds ports that were announced before. Sent a little later than the ports themselves."""

    NUMBER = 16
    owners: tuple[tuple[Port, PortOwner], ...]

    def to_wire(self) -> list[object]:
        return [
            [
                [
                    _port_to_wire(port),
                    text_clipped(owner.process, limits.MAX_NAME),
                    owner.pid,
                    owner.uid,
                    text_clipped(owner.unit, limits.MAX_NAME),
                ]
                for port, owner in self.owners
            ]
        ]

    @classmethod
    def from_wire_untrusted(cls, values: list[object]) -> Self:
        owners = []
        for entry in list_untrusted(fields_untrusted(values, 1)[0], limits.PORTS_PER_FRAME):
            port, process, pid, uid, unit = fields_untrusted(entry, 5)
            owner = PortOwner(
                text_untrusted(process, limits.MAX_NAME),
                integer_untrusted(pid, MAX_U32),
                integer_untrusted(uid, MAX_U32),
                text_untrusted(unit, limits.MAX_NAME),
            )
            owners.append((_port_untrusted(port), owner))
        return cls(tuple(owners))


@dataclass(frozen=True, slots=True)
class StatusRequest(Message):
    """Asks the guest for a STATUS."""

    NUMBER = 17

    @classmethod
    def from_wire_untrusted(cls, values: list[object]) -> Self:
        fields_untrusted(values, 0)
        return cls()


@dataclass(frozen=True, slots=True)
class Status(Message):
    """How the guest agent is doing: which wake-ups are live, and its counters."""

    NUMBER = 18
    sources: tuple[WakeupSource, ...]
    counters: tuple[tuple[str, int], ...]

    def to_wire(self) -> list[object]:
        return [
            [[s.name, s.live, text_clipped(s.reason), s.wakeups] for s in self.sources],
            [list(c) for c in self.counters],
        ]

    @classmethod
    def from_wire_untrusted(cls, values: list[object]) -> Self:
        sources, counters = fields_untrusted(values, 2)
        return cls(
            tuple(
                WakeupSource(
                    text_untrusted(name, limits.MAX_NAME),
                    boolean_untrusted(live),
                    text_untrusted(reason),
                    integer_untrusted(wakeups, MAX_U63),
                )
                for name, live, reason, wakeups in (fields_untrusted(s, 4) for s in list_untrusted(sources, 32))
            ),
            tuple(
                (text_untrusted(name, limits.MAX_NAME), integer_untrusted(count, MAX_U63))
                for name, count in (fields_untrusted(c, 2) for c in list_untrusted(counters, 64))
            ),
        )


@dataclass(frozen=True, slots=True)
class Clock(Message):
    """The host's wall clock, nanoseconds since the epoch. The guest steps its own when it is far off."""

    NUMBER = 19
    nanoseconds: int

    @classmethod
    def from_wire_untrusted(cls, values: list[object]) -> Self:
        return cls(integer_untrusted(fields_untrusted(values, 1)[0], MAX_U63))


@dataclass(frozen=True, slots=True)
class PowerOff(Message):
    """Asks the guest to shut down cleanly; `reboot` to come back."""

    NUMBER = 20
    reboot: bool

    @classmethod
    def from_wire_untrusted(cls, values: list[object]) -> Self:
        return cls(boolean_untrusted(fields_untrusted(values, 1)[0]))
