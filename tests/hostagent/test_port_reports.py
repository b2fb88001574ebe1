"""The guest's messages about ports on their way to the forwarder."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pytest

from hostagent import port_reports
from hostagent.port_reports import PortReports
from protocol.messages import PortOwners, PortsChanged, PortsSnapshot
from protocol.ports import Port, PortOwner, Protocol

ONE, TWO, THREE = (Port(Protocol.TCP, "127.0.0.1", number) for number in (1, 2, 3))


class Table:
    """Notes what it is told; has room for one port that opens."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def replace(self, ports: Iterable[Port]) -> None:
        self.told.append(set(ports))

    def change(self, opened: Collection[Port], closed: Collection[Port]) -> bool:
        self.told.append((opened, closed))
        return len(opened) <= 1

    def name_owners(self, owners: Iterable[tuple[Port, PortOwner]]) -> None:
        self.told.append(dict(owners))


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def reports(table: Table) -> PortReports:
    return PortReports(table)


def test_a_snapshot_counts_when_its_last_part_is_there(reports: PortReports, table: Table) -> None:
    assert reports.receive(PortsSnapshot((ONE,), last=False))
    assert table.told == []
    assert reports.receive(PortsSnapshot((TWO,), last=True))
    assert reports.receive(PortsSnapshot((THREE,), last=True))
    assert table.told == [{ONE, TWO}, {THREE}]


def test_half_a_snapshot_of_an_earlier_generation_is_forgotten(reports: PortReports, table: Table) -> None:
    reports.receive(PortsSnapshot((ONE,), last=False))
    reports.begin_generation()
    reports.receive(PortsSnapshot((TWO,), last=True))
    assert table.told == [{TWO}]


def test_more_ports_than_allowed_are_left_out(
    reports: PortReports, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port_reports, "MAX_PORTS", 2)
    assert reports.receive(PortsSnapshot((ONE,), last=False))
    assert not reports.receive(PortsSnapshot((TWO, THREE), last=False))
    assert reports.receive(PortsSnapshot((), last=True))
    assert table.told == [{ONE, TWO}]


def test_changes_and_owners_go_through(reports: PortReports, table: Table) -> None:
    owner = PortOwner("sshd", 1, 0)
    assert reports.receive(PortsChanged((ONE,), (TWO,)))
    assert not reports.receive(PortsChanged((ONE, TWO), ()))
    assert reports.receive(PortOwners(((ONE, owner),)))
    assert table.told == [((ONE,), (TWO,)), ((ONE, TWO), ()), {ONE: owner}]
