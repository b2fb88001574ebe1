"""`portForwards` as a user writes them, and what they do to ports."""

from __future__ import annotations

import pytest

from hostagent.config.loader import load_config
from hostagent.config.rules import SocketVariables, rule_set
from hostagent.errors import UserError
from hostagent.forward_rules import ForwardRule, RuleSet, match
from protocol.ports import Port, Protocol

VARIABLES = SocketVariables(
    host={"Dir": "/home/ada/.hostagent/vm", "Home": "/home/ada", "Name": "vm", "UID": "1000", "User": "ada"},
    guest={"Home": "/home/ada", "Hostname": "vm", "Name": "vm", "UID": "1000", "User": "ada"},
)


def configured(text: str, more: str = "") -> RuleSet:
    """The rules of a `portForwards` in YAML's flow style."""
    loaded = load_config(f"images: [{{build: debian-12}}]\nportForwards: {text}\n{more}".encode(), "config.yaml")
    return rule_set(loaded.config, VARIABLES)


def rules(text: str) -> tuple[ForwardRule, ...]:
    return configured(text).rules


def decide(text: str, address: str, number: int, protocol: Protocol = Protocol.TCP) -> str:
    """Where the port goes: "address:port" on the host, "ignored", or "default" when no rule of the user decides."""
    rule = match(Port(protocol, address, number), configured(text).in_order())
    if rule not in rules(text):
        return "default"
    return "ignored" if rule.ignore else f"{rule.host_address}:{rule.host_port(number)}"


@pytest.mark.parametrize(
    ("text", "address", "number", "expected"),
    [
        ("[{guestPort: 80, hostPort: 8080}]", "0.0.0.0", 80, "127.0.0.1:8080"),
        ("[{guestPort: 80, hostPort: 8080}]", "127.0.0.1", 80, "127.0.0.1:8080"),
        ("[{guestPort: 80, hostPort: 8080}]", "::1", 80, "127.0.0.1:8080"),
        ("[{guestPort: 80, hostPort: 8080}]", "192.168.5.15", 80, "default"),
        ("[{guestPort: 80, hostPort: 8080}]", "0.0.0.0", 81, "default"),
        ("[{guestPort: 80}]", "0.0.0.0", 80, "127.0.0.1:80"),
        ("[{guestPortRange: [4000, 4009], hostPortRange: [5000, 5009]}]", "127.0.0.1", 4003, "127.0.0.1:5003"),
        ("[{guestIP: 192.168.5.15}]", "192.168.5.15", 8000, "127.0.0.1:8000"),
        ("[{guestIP: any, hostIP: 0.0.0.0}]", "10.1.2.3", 8000, "0.0.0.0:8000"),
        ("[{guestIP: 0.0.0.0, guestIPMustBeZero: false}]", "10.1.2.3", 8000, "127.0.0.1:8000"),
        ("[{guestIPMustBeZero: true, hostIP: 0.0.0.0}]", "127.0.0.1", 8000, "default"),
        ("[{guestIPMustBeZero: true, hostIP: 0.0.0.0}]", "::", 8000, "0.0.0.0:8000"),
        ("[{ignore: true}]", "127.0.0.1", 8000, "ignored"),
        ("[{guestIP: 0.0.0.0, ignore: true}]", "0.0.0.0", 8000, "ignored"),
        ("[{guestPort: 80, hostPort: 1}, {guestPort: 80, hostPort: 2}]", "127.0.0.1", 80, "127.0.0.1:1"),
    ],
)
def test_a_rule_does_what_it_does_in_lima(text: str, address: str, number: int, expected: str) -> None:
    assert decide(text, address, number) == expected


@pytest.mark.parametrize(("proto", "hits"), [("tcp", "tcp"), ("udp", "udp"), ("any", "tcp udp")])
def test_the_protocol(proto: str, hits: str) -> None:
    text = f"[{{guestPort: 80, proto: {proto}}}]"
    hit = [protocol for protocol in Protocol if decide(text, "127.0.0.1", 80, protocol) != "default"]
    assert hit == hits.split()


def test_the_forms_of_a_rule() -> None:
    text = (
        "[{guestSocket: /run/docker.sock, hostSocket: docker.sock}, {guestPort: 80, hostPort: 8080, static: true, "
        "wait: 2.5}, {guestSocket: '/run/user/{{.UID}}/x', hostSocket: '{{.Home}}/{{ .Name }}.sock', reverse: true}, "
        "{guestPortRange: [4000, 4009], ignore: true}, {guestPort: 5432, hostPort: 5433, proto: tcp, reverse: true}]"
    )
    docker, static, back, ignored, reverse = rules(text)
    assert (docker.guest_socket, docker.host_socket) == ("/run/docker.sock", "/home/ada/.hostagent/vm/sock/docker.sock")
    assert docker.protocol is Protocol.TCP
    assert (static.static, static.wait) == (True, 2.5)
    assert (back.guest_socket, back.host_socket, back.reverse) == ("/run/user/1000/x", "/home/ada/vm.sock", True)
    assert [str(rule) for rule in (docker, static, ignored, reverse)] == [
        "portForwards.0: /run/docker.sock to /home/ada/.hostagent/vm/sock/docker.sock",
        "portForwards.1: 127.0.0.1 80 (any) to 127.0.0.1 8080",
        "portForwards.3: ignore 127.0.0.1 4000-4009 (any)",
        "portForwards.4: 127.0.0.1 5433 at 127.0.0.1 5432 (tcp) in the guest",
    ]


def test_a_path_that_is_too_long_once_its_variables_are_known() -> None:
    path = "{{.Dir}}/" + "x" * 90
    with pytest.raises(UserError, match=r"portForwards.0.hostSocket: .* has 114 bytes"):
        rules(f"[{{guestSocket: /a, hostSocket: '{path}'}}]")


def test_a_variable_without_a_value() -> None:
    guest = {name: value for name, value in VARIABLES.guest.items() if name != "UID"}
    loaded = load_config(
        b"images: [{build: debian-12}]\nportForwards: [{guestSocket: '/run/{{.UID}}', hostSocket: a}]", "c"
    )
    with pytest.raises(UserError, match=r"portForwards.0.guestSocket: the variable \{\{.UID\}\} has no value"):
        rule_set(loaded.config, SocketVariables(VARIABLES.host, guest))


def test_no_rules() -> None:
    assert configured("[]") == RuleSet()
    assert str(rules("[{}]")[0]) == "portForwards.0: 127.0.0.1 all ports (any) to 127.0.0.1 all ports"


def test_what_becomes_of_ports_without_a_rule() -> None:
    assert not configured("[]", "forwardDefault: none\n").forward_by_default
    assert not configured("[]", "forwarding: false\n").enabled
