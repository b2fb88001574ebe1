"""What `validate` points out about rules that each are right."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostagent.config.loader import load_config
from hostagent.config.port_forward import PortForward
from hostagent.config.rule_review import review
from hostagent.config.rules import port_rule
from hostagent.config.schema import Config, Image
from hostagent.forward_rules import RuleSet, match
from protocol.ports import Port, Protocol


def remarks(rules: str, more: str = "") -> list[str]:
    """Warnings about a `portForwards` that begins on line 3: one rule a line, in YAML's flow style."""
    text = f"images: [{{build: debian-12}}]\nportForwards:\n{rules}{more}"
    return [warning.described("c.yaml") for warning in load_config(text.encode(), "c.yaml").warnings]


DEAD = "can never match: "


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ("- {guestPort: 80}\n- {guestPort: 80}\n", f"c.yaml:4:4: portForwards.1.guestPort: {DEAD}portForwards.0 above"),
        ("- {ignore: true}\n- {guestPort: 80}\n", None),  # ignoring loopback leaves programs on all addresses
        (
            "- {guestIP: any, ignore: true}\n- {guestPort: 80}\n",
            f"portForwards.1.guestPort: {DEAD}portForwards.0 above",
        ),
        ("- {guestIP: any}\n- {guestIP: 10.0.0.1}\n", f"c.yaml:4:4: portForwards.1.guestIP: {DEAD}portForwards.0"),
        ("- {guestIP: any}\n- {}\n", f"c.yaml:4:3: portForwards.1: {DEAD}portForwards.0"),
        ("- {}\n- {guestIP: '::1'}\n", f"portForwards.1.guestIP: {DEAD}portForwards.0"),
        ("- {guestIP: '::1'}\n- {}\n", None),  # 127.0.0.1 is left
        ("- {}\n- {guestIP: 127.0.0.2}\n", None),
        ("- {guestIP: 0.0.0.0}\n- {guestIP: 0.0.0.0, guestIPMustBeZero: false}\n", None),
        (
            "- {guestIP: 0.0.0.0}\n- {guestIPMustBeZero: true}\n",
            f"portForwards.1.guestIP: {DEAD}portForwards.0 above has",
        ),
        ("- {guestPort: 80, proto: tcp}\n- {guestPort: 80}\n", None),
        (
            "- {guestPort: 80, proto: tcp}\n- {guestPort: 80, proto: udp}\n- {guestPort: 80}\n",
            f"c.yaml:5:4: portForwards.2.guestPort: {DEAD}portForwards.0 and portForwards.1 above have all",
        ),
        (
            "- {guestPortRange: [1, 50]}\n- {guestPortRange: [51, 99]}\n- {guestPortRange: [40, 60]}\n",
            f"portForwards.2.guestPortRange: {DEAD}portForwards.0 and portForwards.1 above have all that it names",
        ),
        ("- {guestPortRange: [1, 50]}\n- {guestPortRange: [52, 99]}\n- {guestPortRange: [40, 60]}\n", None),
        ("- {guestSocket: /a, hostSocket: a}\n- {guestSocket: /b, hostSocket: b}\n", None),
        ("- {guestPort: 80}\n- {guestPort: 80, static: true}\n", None),
    ],
)
def test_a_rule_that_can_never_match(rules: str, words: str | None) -> None:
    found = [line for line in remarks(rules) if DEAD in line]
    assert len(found) == (words is not None)
    if words is not None:
        assert words in found[0]


ELSEWHERE = "does from elsewhere in the guest"


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (
            "- {guestPort: 80, hostPort: 8080}\n- {guestPort: 81, hostPort: 8080}\n",
            "c.yaml:4:19: portForwards.1.hostPort: leads to port 8080 of the host, as portForwards.0 does",
        ),
        ("- {guestPort: 80, hostPort: 8080}\n- {guestPort: 81, hostPort: 8080, hostIP: 192.0.2.1}\n", None),
        ("- {guestPort: 80, hostPort: 8080}\n- {guestPort: 81, hostPort: 8080, hostIP: '::1'}\n", "to port 8080"),
        ("- {guestPort: 80, hostPort: 8080}\n- {guestPort: 81, hostPort: 8080, hostIP: 0.0.0.0}\n", "to port 8080"),
        ("- {guestPort: 80, proto: tcp}\n- {guestPort: 81, hostPort: 80, proto: udp}\n", None),
        (
            "- {guestPortRange: [1, 9]}\n- {guestPortRange: [11, 19], hostPortRange: [5, 13]}\n",
            "to ports 5-9 of the host",
        ),
        ("- {guestIP: 10.0.0.1}\n- {guestIP: 10.0.0.2}\n", None),  # the same number from anywhere is what is meant
        ("- {guestPort: 80, ignore: true}\n- {guestPort: 81, hostPort: 80}\n", None),
        (
            "- {guestSocket: /a, hostSocket: a}\n- {guestSocket: /b, hostSocket: a}\n",
            "portForwards.1.hostSocket: leads to",
        ),
        (
            "- {guestSocket: /a, hostSocket: a/b}\n- {guestSocket: /b, hostSocket: ./a//b}\n",
            "portForwards.1.hostSocket: leads to",
        ),
        ("- {guestSocket: /a, hostSocket: a}\n- {guestSocket: //./a, hostSocket: ./a}\n", None),
        ("- {guestSocket: /a, hostPort: 80}\n- {guestPort: 80}\n", "to port 80 of the host"),
    ],
)
def test_rules_that_are_in_each_other_s_way(rules: str, words: str | None) -> None:
    found = [line for line in remarks(rules) if ELSEWHERE in line]
    assert len(found) == (words is not None)
    if words is not None:
        assert words in found[0]


def test_rules_that_are_switched_off() -> None:
    assert remarks("- {guestPort: 80}\n- {guestPort: 80}\n", "forwarding: false\n") == [
        "c.yaml:2:1: portForwards: means nothing while forwarding is false"
    ]
    assert load_config(b"images: [{build: debian-12}]\nforwarding: false\n", "c.yaml").warnings == ()


_RULES = st.lists(
    st.builds(
        lambda address, first, length, proto, ignore: PortForward(
            guest_ip=address, guest_port_range=(first, first + length), proto=proto, ignore=ignore
        ),
        st.sampled_from(["any", "0.0.0.0", "::", "127.0.0.1", "::1", "127.0.0.2", "10.0.0.1"]),
        st.integers(1, 6),
        st.integers(0, 3),
        st.sampled_from(["tcp", "udp", "any"]),
        st.booleans(),
    ),
    max_size=6,
)


@given(_RULES)
def test_a_rule_is_called_dead_when_no_port_whatever_finds_it(entries: list[PortForward]) -> None:
    config = Config(arch="x86_64", cpus=1, images=(Image(build="debian-12"),), port_forwards=tuple(entries))
    dead = {remark.path[1] for remark in review(config) if DEAD in remark.message}
    rules = tuple(port_rule("", entry) for entry in entries)
    addresses = ["0.0.0.0", "::", "127.0.0.1", "::1", "127.0.0.2", "127.0.0.3", "10.0.0.1", "10.0.0.2"]
    found = {
        next(number for number, one in enumerate(rules) if one is rule)
        for protocol in Protocol
        for address in addresses
        for number in range(1, 10)
        if (rule := match(Port(protocol, address, number), RuleSet(rules).in_order())) in rules
    }
    equal = {number for number, rule in enumerate(rules) if rule in rules[:number]}
    assert dead - equal == set(range(len(rules))) - found - equal


def test_a_hostile_file_costs_no_more_than_a_moment() -> None:
    entries = tuple(
        PortForward(
            guest_ip=f"10.0.{n // 200}.{n % 200}", guest_port_range=(n + 1, n + 9), host_port_range=(n + 2, n + 10)
        )
        for n in range(1000)
    )
    config = Config(arch="x86_64", cpus=1, images=(Image(build="debian-12"),), port_forwards=entries)
    began = time.process_time()
    review(config)
    assert time.process_time() - began < 10
