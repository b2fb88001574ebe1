"""`portForwards` as a user writes them, and what they do to ports."""

from __future__ import annotations

import pytest

from hostagent.config.loader import load_config
from hostagent.config_rules import forward_rules
from hostagent.forward_rules import ForwardRule, match
from protocol.ports import Port, Protocol


def rules(text: str) -> tuple[ForwardRule, ...]:
    """The rules of a `portForwards` in YAML's flow style."""
    loaded = load_config(f"images: [{{build: debian-12}}]\nportForwards: {text}\n".encode(), "config.yaml")
    return forward_rules(loaded.config.port_forwards)


def decide(text: str, address: str, number: int, protocol: Protocol = Protocol.TCP) -> str:
    """Where the port goes: "address:port" on the host, "ignored", or "default" when no rule of the user decides."""
    given = rules(text)
    rule = match(Port(protocol, address, number), given)
    if rule not in given:
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


def test_what_is_not_acted_on_yet_is_no_rule() -> None:
    """And does not shift the numbers by which the others are told apart."""
    text = (
        "[{guestSocket: /run/docker.sock, hostSocket: docker.sock}, {guestPort: 80, hostPort: 8080}, "
        "{guestSocket: /run/x.sock, hostSocket: x.sock, reverse: true}, {guestPortRange: [4000, 4009], ignore: true}]"
    )
    assert [rule.text for rule in rules(text)] == [
        "portForwards[1]: 127.0.0.1 80 (any) to 127.0.0.1 8080",
        "portForwards[3]: ignore 127.0.0.1 4000-4009 (any)",
    ]


def test_no_rules() -> None:
    assert rules("[]") == ()
    assert rules("[{hostIP: 127.0.0.1}]")[0].text == "portForwards[0]: 127.0.0.1 all ports (any) to 127.0.0.1 all ports"
