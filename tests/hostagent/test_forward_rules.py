"""The rules decide as Lima's do, and the plan gives each host endpoint to one guest port."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostagent.forward_rules import ForwardRule, ListenerKey, match, plan
from hostagent.forwards import Endpoint
from protocol.ports import Port, Protocol

TCP, UDP = Protocol.TCP, Protocol.UDP

LIMA_RULES = (
    ForwardRule("ignore one address", guest_address="127.0.0.2", guest_ports=(3000, 3009), ignore=True),
    ForwardRule("any address", any_address=True, guest_ports=(3000, 3029), host_ports=(2000, 2029)),
    ForwardRule("ignore all", any_address=True, guest_ports=(3030, 3039), ignore=True),
    ForwardRule("shadowed", any_address=True, guest_ports=(3020, 3029), ignore=True),
    ForwardRule("lan", guest_ports=(3040, 3049), host_ports=(2040, 2049), host_address="192.0.2.1"),
    ForwardRule("exact", guest_address="192.168.5.15", guest_ports=(4000, 4009)),
    ForwardRule("zero", must_be_zero=True, guest_address="0.0.0.0", guest_ports=(4040, 4049)),
    ForwardRule("udp only", protocol=UDP, guest_ports=(4050, 4050), host_ports=(5050, 5050)),
    ForwardRule("ssh on purpose", guest_ports=(22, 22), host_ports=(2222, 2222)),
)


@pytest.mark.parametrize(
    ("port", "host"),
    [
        (Port(TCP, "127.0.0.2", 3000), None),  # ignored by its exact address
        (Port(TCP, "127.0.0.3", 3001), "127.0.0.1:2001"),  # another loopback address, any-address rule
        (Port(TCP, "0.0.0.0", 3002), "127.0.0.1:2002"),  # ignoring one address does not ignore all of them
        (Port(TCP, "0.0.0.0", 3030), None),
        (Port(TCP, "127.0.0.1", 3031), None),
        (Port(TCP, "::1", 3032), None),
        (Port(TCP, "127.0.0.2", 3020), "127.0.0.1:2020"),  # the later rule is dead
        (Port(TCP, "::", 3023), "127.0.0.1:2023"),
        (Port(TCP, "127.0.0.1", 3040), "192.0.2.1:2040"),
        (Port(TCP, "::1", 3043), "192.0.2.1:2043"),
        (Port(TCP, "0.0.0.0", 3041), "192.0.2.1:2041"),
        (Port(TCP, "192.168.5.15", 3042), None),  # no rule names this address
        (Port(TCP, "192.168.5.15", 4000), "127.0.0.1:4000"),
        (Port(TCP, "192.168.5.15", 4010), None),
        (Port(TCP, "0.0.0.0", 4040), "127.0.0.1:4040"),
        (Port(TCP, "127.0.0.1", 4040), "127.0.0.1:4040"),  # not this rule's, but the default's
        (Port(UDP, "127.0.0.1", 4050), "127.0.0.1:5050"),
        (Port(TCP, "127.0.0.1", 4050), "127.0.0.1:4050"),
        (Port(TCP, "127.9.8.7", 8080), "127.0.0.1:8080"),
        (Port(TCP, "::", 8080), "127.0.0.1:8080"),
        (Port(TCP, "10.1.2.3", 8080), None),
        (Port(TCP, "0.0.0.0", 22), None),  # built in, before the user's rules, as in Lima
        (Port(TCP, "127.0.0.53", 53), None),
        (Port(UDP, "0.0.0.0", 68), None),
        (Port(UDP, "0.0.0.0", 5353), None),
        (Port(UDP, "0.0.0.0", 45_000), None),  # a client's socket
        (Port(TCP, "0.0.0.0", 45_000), "127.0.0.1:45000"),
        (Port(UDP, "0.0.0.0", 1053), "127.0.0.1:1053"),
    ],
)
def test_each_port_goes_where_the_first_matching_rule_says(port: Port, host: str | None) -> None:
    listeners = plan([port], LIMA_RULES).decisions[port].listeners
    assert (str(listeners[0].host) if listeners else None) == host


def test_a_port_that_is_not_forwarded_says_why() -> None:
    port = Port(TCP, "10.1.2.3", 80)
    assert "guestIP" in plan([port], ()).decisions[port].reason


def test_loopback_is_two_addresses_and_each_leads_to_its_own_family() -> None:
    four, six = Port(TCP, "127.0.0.1", 80), Port(TCP, "::1", 80)
    targets = plan([four, six], ()).targets
    assert targets[ListenerKey(TCP, Endpoint("127.0.0.1", 80))] == four
    assert targets[ListenerKey(TCP, Endpoint("::1", 80))] == six


def test_a_server_on_both_wildcards_is_one_listener_and_no_conflict() -> None:
    ports = [Port(TCP, "0.0.0.0", 80), Port(TCP, "::", 80), Port(TCP, "127.0.0.1", 80)]
    result = plan(ports, ())
    assert len(result.targets) == 2
    assert result.targets[ListenerKey(TCP, Endpoint("127.0.0.1", 80))] == Port(TCP, "127.0.0.1", 80)
    assert all(decision.rival is None for decision in result.decisions.values())


def test_two_guest_ports_for_one_host_port_is_a_conflict_that_names_the_other() -> None:
    rules = (ForwardRule("to 80", guest_ports=(8080, 8080), host_ports=(80, 80)),)
    first, second = Port(TCP, "127.0.0.1", 80), Port(TCP, "127.0.0.1", 8080)
    decisions = plan([second, first], rules).decisions
    assert decisions[first].rival is None
    assert decisions[second].rival == first
    assert "80" in decisions[second].reason


def test_never_a_host_address_that_no_rule_names() -> None:
    for address in ("0.0.0.0", "::", "127.0.0.1", "::1", "127.3.2.1"):
        for key in plan([Port(TCP, address, 80)], ()).targets:
            assert key.host.address in ("127.0.0.1", "::1")


_PORTS = st.builds(
    Port,
    st.sampled_from(Protocol),
    st.one_of(st.ip_addresses().map(str), st.sampled_from(["0.0.0.0", "::", "127.0.0.1", "::1"])),
    st.integers(1, 65_535),
)


@given(st.lists(_PORTS, max_size=20))
def test_every_port_gets_one_decision_and_every_listener_leads_to_one_of_its_ports(ports: list[Port]) -> None:
    result = plan(ports, LIMA_RULES)
    assert result.decisions.keys() == set(ports)
    for key, port in result.targets.items():
        assert key in result.decisions[port].listeners or match(port, LIMA_RULES).host_address == key.host.address
        assert not match(port, LIMA_RULES).ignore
    for decision in result.decisions.values():
        assert all(key in result.targets for key in decision.listeners)
