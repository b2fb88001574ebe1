"""What a forwarder must offer to be tried: the seam between the cases and whatever shows guest ports on the host.

A forwarder shows a guest port under the same number on the host's loopback addresses. It may do that by itself when
the port opens, or because `expose` tells it to; a case only waits until it is so.
"""

from __future__ import annotations

import enum
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from protocol.ports import Port


class Ability(enum.StrEnum):
    """What a case needs of a forwarder beyond carrying TCP over IPv4."""

    IPV6 = "IPv6"
    UDP = "UDP"
    FOLLOWS = "follows listeners"
    """Shows and hides ports by itself, as guest programs open and close them, whatever address they bind."""
    CROWDS = "crowds"
    """Takes many connections within a moment without leaving any to its client's SYN retries."""
    MEMORY = "memory"
    """`resident` says what its processes hold."""
    COUNTERS = "counters"
    """`counters` says what a forward has carried and dropped."""
    FLOW_BOUNDS = "flow bounds"
    """UDP flows have a cap, and an idle time that can be set for a test."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What one forward has carried."""

    connections: int
    """Connections or UDP flows alive now."""
    connections_total: int
    connections_refused: int
    datagrams_to_guest: int
    datagrams_dropped: int


class Forwarder(Protocol):
    """A forwarder under test."""

    name: str
    abilities: frozenset[Ability]

    async def expose(self, *ports: Port) -> None:
        """Return when all of `ports`, which are open in the guest, can be reached on the host."""

    async def withdraw(self, *ports: Port) -> None:
        """Return when none of `ports`, which the guest has closed, is held on the host any more."""

    def pretended(self, port: Port) -> AbstractAsyncContextManager[None]:
        """Show `port` although nobody has it in the guest: the moment before a closed port is noticed, prolonged."""

    async def counters(self, port: Port) -> Counters:
        """What the forward of `port` has carried."""

    async def resident(self) -> dict[str, int]:
        """Bytes that each of its processes holds, by name."""

    def flow_idle(self, seconds: float) -> AbstractAsyncContextManager[None]:
        """New UDP flows end after `seconds` of silence, during the block."""
