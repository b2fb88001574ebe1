"""One rule as a user writes it: defaults that hang on each other, and what cannot be meant."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from hostagent.config.port_forward import ALL_PORTS, PortForward
from hostagent.config.wording import UNKNOWABLE


def rule(**keys: Any) -> PortForward:
    return PortForward.model_validate(keys, by_alias=True, by_name=False)


def wrong_keys(**keys: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        PortForward.model_validate(keys, by_alias=True, by_name=False)
    mistakes = (error for error in caught.value.errors() if error["type"] != UNKNOWABLE)
    return [".".join(map(str, error["loc"])) for error in mistakes]


@pytest.mark.parametrize(
    ("keys", "guest_ip", "must_be_zero"),
    [
        ({}, "127.0.0.1", False),
        ({"guestIPMustBeZero": True}, "0.0.0.0", True),
        ({"guestIPMustBeZero": False}, "127.0.0.1", False),
        ({"guestIP": "0.0.0.0"}, "0.0.0.0", True),
        ({"guestIP": "0.0.0.0", "guestIPMustBeZero": False}, "0.0.0.0", False),
        ({"guestIP": "::"}, "::", False),
        ({"guestIP": "0::01"}, "::1", False),
        ({"guestIP": "::ffff:10.0.0.1"}, "10.0.0.1", False),
        ({"guestIP": "any"}, "any", False),
    ],
)
def test_the_guest_address_and_its_defaults(keys: dict[str, Any], guest_ip: str, must_be_zero: bool) -> None:
    forward = rule(**keys)
    assert (forward.guest_ip, forward.guest_ip_must_be_zero) == (guest_ip, must_be_zero)
    assert (forward.host_ip, forward.proto) == ("127.0.0.1", "any")


@pytest.mark.parametrize(
    ("keys", "guest", "host"),
    [
        ({}, ALL_PORTS, ALL_PORTS),
        ({"guestPort": 80}, (80, 80), (80, 80)),
        ({"guestPort": 80, "hostPort": 8080}, (80, 80), (8080, 8080)),
        ({"guestPort": 80, "hostPortRange": [8080, 8080]}, (80, 80), (8080, 8080)),
        ({"guestPortRange": [1, 9]}, (1, 9), (1, 9)),
        ({"guestPortRange": [1, 9], "hostPortRange": [101, 109]}, (1, 9), (101, 109)),
        ({"guestPort": 22, "guestPortRange": [22, 22]}, (22, 22), (22, 22)),
        ({"guestSocket": "/run/a", "hostPort": 80}, ALL_PORTS, (80, 80)),
        ({"guestPort": 80, "hostSocket": "a"}, (80, 80), (80, 80)),
    ],
)
def test_ports_and_their_defaults(keys: dict[str, Any], guest: tuple[int, int], host: tuple[int, int]) -> None:
    assert (rule(**keys).guest_port_range, rule(**keys).host_port_range) == (guest, host)


@pytest.mark.parametrize(
    ("keys", "wrong"),
    [
        ({"guestPort": 0}, "guestPort"),
        ({"hostPort": 65536, "guestPort": 1}, "hostPort"),
        ({"guestPort": True}, "guestPort"),
        ({"hostPort": 80}, "hostPort"),
        ({"guestPortRange": [2, 1]}, "guestPortRange"),
        ({"guestPortRange": [1, 2], "hostPortRange": [1, 3]}, "hostPortRange"),
        ({"guestPortRange": [1, 2], "hostPort": 1}, "hostPort"),
        ({"guestPort": 1, "hostPortRange": [1, 2]}, "hostPortRange"),
        ({"guestPort": 1, "guestPortRange": [2, 2]}, "guestPortRange"),
        ({"guestPort": 1, "guestSocket": "/a"}, "guestSocket"),
        ({"guestSocket": "a"}, "guestSocket"),
        ({"guestSocket": "/a", "hostPortRange": [1, 2]}, "hostPortRange"),
        ({"guestPort": 1, "hostPort": 1, "hostSocket": "/a"}, "hostSocket"),
        ({"hostSocket": "/a"}, "hostSocket"),
        ({"guestSocket": "/" + "a" * 107, "hostSocket": "a"}, "guestSocket"),
        ({"guestSocket": "/{{.Dir}}", "hostSocket": "a"}, "guestSocket"),
        ({"guestSocket": "/a", "hostSocket": "/" + "a" * 103}, "hostSocket"),
        ({"guestSocket": "/a", "hostSocket": "{{.Hom}}/a"}, "hostSocket"),
        ({"guestSocket": "/a", "hostSocket": "{{if}}/a"}, "hostSocket"),
        ({"guestSocket": "/a", "hostSocket": "../a"}, "hostSocket"),
        ({"guestSocket": "/a"}, ""),
        ({"guestSocket": "/a", "hostSocket": "a", "proto": "udp"}, "proto"),
        ({"reverse": True}, "reverse"),
        ({"reverse": True, "guestPort": 1, "ignore": True}, "ignore"),
        ({"guestSocket": "/a", "hostPort": 1, "ignore": True}, "ignore"),
        ({"reverse": True, "guestPort": 1, "static": True}, "static"),
        ({"static": True, "guestPort": 1, "ignore": True}, "static"),
        ({"static": True}, "static"),
        ({"static": True, "guestPortRange": [1, 1001]}, "static"),
        ({"guestPort": 1, "wait": 1}, "wait"),
        ({"guestPort": 1, "static": True, "wait": -1}, "wait"),
        ({"guestPort": 1, "static": True, "wait": 601}, "wait"),
        ({"guestPort": 1, "static": True, "wait": "1"}, "wait"),
        ({"guestIP": "127.0.0.1", "guestIPMustBeZero": True}, "guestIPMustBeZero"),
        ({"guestIP": "any", "guestIPMustBeZero": True}, "guestIPMustBeZero"),
        ({"hostIP": "any"}, "hostIP"),
        ({"proto": "sctp"}, "proto"),
        ({"guest_port": 80}, "guest_port"),
    ],
)
def test_a_rule_that_cannot_be_meant(keys: dict[str, Any], wrong: str) -> None:
    assert wrong_keys(**keys)[0] == wrong


@pytest.mark.parametrize(
    "keys",
    [
        {"guestSocket": "./x", "hostSocket": "/a"},
        {"guestSocket": "./x", "hostPort": 80},
        {"guestSocket": "./x", "hostPortRange": [80, 80]},
        {"guestSocket": "./x", "hostSocket": "/a", "reverse": True},
        {"guestSocket": "./x", "hostSocket": "/a", "wait": 3},
    ],
)
def test_a_wrong_socket_is_the_only_mistake(keys: dict[str, Any]) -> None:
    assert wrong_keys(**keys) == ["guestSocket"]


def test_the_limit_of_static_ports_is_named() -> None:
    for keys in ({}, {"guestPortRange": [1, 65_535]}, {"guestPortRange": [1, 1_001]}):
        with pytest.raises(ValidationError, match=r"at once, and may open 1000"):
            rule(static=True, **keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"reverse": True, "guestPort": 5432},
        {"reverse": True, "guestPortRange": [1, 9], "hostPortRange": [11, 19], "proto": "udp"},
        {"reverse": True, "guestSocket": "/a", "hostPort": 80},
        {"reverse": True, "guestPort": 80, "hostSocket": "a"},
        {"static": True, "guestPortRange": [1, 1000], "wait": 600},
        {"guestSocket": "/a", "hostSocket": "a", "wait": 3},
        {"guestSocket": "/" + "a" * 106, "hostSocket": "/" + "a" * 102},
        {"guestSocket": "{{.Home}}/{{ .UID }}", "hostSocket": "{{.Dir}}/a.sock"},
    ],
)
def test_rules_about_what_stands_without_the_guest(keys: dict[str, Any]) -> None:
    forward = rule(**keys)
    assert PortForward.model_validate_json(forward.model_dump_json()) == forward


def test_a_relative_socket_lies_in_the_instance_s_folder() -> None:
    assert rule(guestSocket="/a", hostSocket="docker.sock").host_socket == "{{.Dir}}/sock/docker.sock"
