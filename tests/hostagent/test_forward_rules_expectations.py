"""More than a hundred ports, each decided as the line beside its rule says; tests/e2e tries them through a guest."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostagent.forward_plan import ForwardPlan
from hostagent.forward_rules import match
from hostagent.forwards import SocketFile
from protocol.ports import Port, Protocol
from tests.forward_expectations import Expectation, expectations, rules

FOLDER = Path("/home/ada/.hostagent/box")
EXPECTATIONS = expectations(FOLDER)
RULES = rules(FOLDER)


@pytest.mark.parametrize("expectation", EXPECTATIONS, ids=str)
def test_each_port_is_decided_as_the_line_says(expectation: Expectation) -> None:
    rule = match(expectation.port, RULES.in_order())
    assert (None if rule.ignore else rule.host_end(expectation.port.number)) == expectation.host


def test_all_of_them_at_once_are_in_nobody_s_way() -> None:
    """So one guest can have them all open, as in the test that tries them."""
    plan = ForwardPlan(RULES)
    plan.change(sorted(one.port for one in EXPECTATIONS), ())
    for one in EXPECTATIONS:
        decision = plan.decisions[one.port]
        assert decision.rival is None
        assert (decision.listeners[0].host if decision.listeners else None) == one.host


def test_the_lines_cover_what_there_is() -> None:
    assert len(EXPECTATIONS) >= 100
    addresses = {one.port.address for one in EXPECTATIONS}
    assert {"0.0.0.0", "::", "127.0.0.1", "::1", "127.0.0.2", "10.0.2.15", "fd00:2::15"} <= addresses
    for protocol in Protocol:
        hosts = {one.host is None for one in EXPECTATIONS if one.port.protocol is protocol}
        assert hosts == {True, False}
    assert any(isinstance(one.host, SocketFile) for one in EXPECTATIONS)
    assert Port(Protocol.TCP, "0.0.0.0", 22) in {one.port for one in EXPECTATIONS}
