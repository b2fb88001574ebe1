"""The guest agent's messages about ports, put together for the forwarder and bounded. Pure.

A snapshot comes in parts, and counts when its last part is there; one that a new generation cut short is forgotten.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol

from protocol.limits import MAX_PORTS
from protocol.messages import PortOwners, PortsChanged, PortsSnapshot
from protocol.ports import Port, PortOwner


class PortTable(Protocol):
    """What the reports are for, which is `forwarder.Forwarder`."""

    def replace(self, ports: Iterable[Port]) -> None:
        """These are all ports."""

    def change(self, opened: Collection[Port], closed: Collection[Port]) -> bool:
        """These opened and closed; False when there are more than `MAX_PORTS`, and new ones were left out."""

    def name_owners(self, owners: Iterable[tuple[Port, PortOwner]]) -> None:
        """These hold ports that are known already."""


class PortReports:
    """What one guest has reported so far, on its way into `table`."""

    def __init__(self, table: PortTable) -> None:
        self._table = table
        self._snapshot: set[Port] = set()

    def begin_generation(self) -> None:
        """Whatever was not complete stays so."""
        self._snapshot = set()

    def receive(self, message: PortsSnapshot | PortsChanged | PortOwners) -> bool:
        """Take `message` into account; False when the guest has more than `MAX_PORTS` ports, and some were left out."""
        match message:
            case PortsSnapshot(ports, last):
                room = MAX_PORTS - len(self._snapshot)
                self._snapshot.update(ports[:room])
                if last:
                    self._table.replace(self._snapshot)
                    self._snapshot = set()
                return len(ports) <= room
            case PortsChanged(opened, closed):
                return self._table.change(opened, closed)
            case PortOwners(owners):
                self._table.name_owners(owners)
                return True
