"""The rules decide as Lima's do."""

from __future__ import annotations

import pytest

from hostagent.forward_rules import BY_DEFAULT, ForwardRule, RuleSet, StandingForward, match
from hostagent.forwards import Endpoint, SocketFile
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
    rule = match(port, RuleSet(LIMA_RULES).in_order())
    assert (None if rule.ignore else str(rule.host_end(port.number))) == host


def test_a_port_that_is_not_forwarded_says_why() -> None:
    port = Port(TCP, "10.1.2.3", 80)
    assert "hostagent forward add ADDRESS:PORT" in str(match(port, BY_DEFAULT.in_order()))


def test_the_ssh_server_is_forwarded_when_a_rule_names_it_alone_and_not_by_a_range() -> None:
    port = Port(TCP, "0.0.0.0", 22)
    alone = ForwardRule("alone", guest_ports=(22, 22), host_ports=(2222, 2222))
    assert match(port, RuleSet((ForwardRule("all", any_address=True), alone)).in_order()) is alone
    assert match(port, RuleSet((ForwardRule("some", guest_ports=(20, 30)),)).in_order()).ignore


@pytest.mark.parametrize(
    "port", [Port(TCP, "127.0.0.1", 80), Port(TCP, "0.0.0.0", 80), Port(UDP, "::", 80), Port(TCP, "10.1.2.3", 80)]
)
def test_an_allow_list_forwards_only_what_it_names(port: Port) -> None:
    allowed = ForwardRule("allowed", any_address=True, guest_ports=(81, 81))
    rules = RuleSet((allowed,), forward_by_default=False)
    assert "forwardDefault" in str(match(port, rules.in_order()))
    named = Port(port.protocol, port.address, 81)
    assert match(named, rules.in_order()) is allowed


@pytest.mark.parametrize("number", [22, 53, 80])
def test_one_key_switches_everything_off(number: int) -> None:
    rules = RuleSet((ForwardRule("all", any_address=True, static=True, guest_ports=(80, 80)),), enabled=False)
    port = Port(TCP, "127.0.0.1", number)
    assert "forwarding: false" in str(match(port, rules.in_order()))
    assert rules.standing() == ()


def test_a_rule_of_a_socket_or_of_the_other_direction_decides_about_no_port() -> None:
    for rule in (ForwardRule("a", guest_socket="/a"), ForwardRule("b", reverse=True, guest_ports=(80, 80))):
        assert not rule.matches(Port(TCP, "127.0.0.1", 80))


def test_what_stands_without_the_guest() -> None:
    rules = RuleSet(
        (
            ForwardRule("dynamic", guest_ports=(1, 2)),
            ForwardRule("static", protocol=TCP, static=True, wait=3.0, guest_ports=(3, 4), host_ports=(13, 14)),
            ForwardRule("both", static=True, any_address=True, guest_ports=(5, 5)),
            ForwardRule("socket", protocol=TCP, guest_socket="/g", host_socket="/h"),
            ForwardRule("socket to port", protocol=TCP, guest_socket="/g2", host_ports=(6, 6)),
            ForwardRule("back", "r", protocol=UDP, reverse=True, guest_ports=(7, 7), host_ports=(8, 8)),
            ForwardRule("back to socket", protocol=TCP, reverse=True, guest_ports=(9, 9), host_socket="/h3"),
            ForwardRule("sockets back", protocol=TCP, reverse=True, guest_socket="/g4", host_socket="/h4"),
        )
    )
    loopback = "127.0.0.1"
    assert rules.standing() == (
        StandingForward(TCP, Endpoint(loopback, 3), Endpoint(loopback, 13), "static", wait=3.0),
        StandingForward(TCP, Endpoint(loopback, 4), Endpoint(loopback, 14), "static", wait=3.0),
        StandingForward(TCP, Endpoint("0.0.0.0", 5), Endpoint(loopback, 5), "both"),
        StandingForward(UDP, Endpoint("0.0.0.0", 5), Endpoint(loopback, 5), "both"),
        StandingForward(TCP, SocketFile("/g"), SocketFile("/h"), "socket"),
        StandingForward(TCP, SocketFile("/g2"), Endpoint(loopback, 6), "socket to port"),
        StandingForward(UDP, Endpoint(loopback, 7), Endpoint(loopback, 8), "r: back", reverse=True),
        StandingForward(TCP, Endpoint(loopback, 9), SocketFile("/h3"), "back to socket", reverse=True),
        StandingForward(TCP, SocketFile("/g4"), SocketFile("/h4"), "sockets back", reverse=True),
    )
