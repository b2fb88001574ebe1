"""Ports of translations: at which addresses, merged with those of sockets, and where they are dialled."""

from __future__ import annotations

import ipaddress
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.nat_ports import (
    MergedPorts,
    NatPorts,
    OwnAddress,
    dial_for,
    locate,
    owner_of,
)
from guestagent.nat_rules import Claim, ClaimKey, Packets, Target
from protocol.ports import Port, PortKind, Protocol, difference

OWN = [
    OwnAddress(interface, ipaddress.ip_address(address))
    for interface, address in [
        ("lo", "127.0.0.1"), ("lo", "::1"), ("eth0", "192.0.2.5"), ("eth0", "2001:db8::5"), ("br0", "10.0.0.1"),
    ]
]  # fmt: skip


def located(*packets: Packets, version: int = 4) -> list[str]:
    key: ClaimKey = (version, Protocol.TCP, 80)
    claims = {key: [Claim(one, Target(f"10.0.0.{n}"), "nftables", "") for n, one in enumerate(packets, start=2)]}
    *_, found = locate(claims, OWN, Counter())
    assert found is not None
    return sorted(address for _, address, _ in found.dials)


def to(network: str) -> Packets:
    return Packets(address=ipaddress.ip_network(network))


@pytest.mark.parametrize(
    ("packets", "version", "addresses"),
    [
        (Packets(), 4, ["0.0.0.0"]),
        (Packets(), 6, ["::"]),
        (to("192.0.2.5/32"), 4, ["192.0.2.5"]),
        (to("192.0.2.6/32"), 4, []),
        (to("192.0.2.0/24"), 4, ["192.0.2.5"]),
        (to("0.0.0.0/1"), 4, ["10.0.0.1", "127.0.0.1"]),
        (to("127.0.0.0/8"), 4, ["127.0.0.1"]),
        (to("127.0.0.53/32"), 4, ["127.0.0.53"]),
        (to("::1/128"), 6, ["::1"]),
        (to("2001:db8::/32"), 6, ["2001:db8::5"]),
        (Packets(interface="eth0"), 4, ["192.0.2.5"]),
        (Packets(interface="e*"), 6, ["2001:db8::5"]),
        (Packets(interface="eth0", address=ipaddress.ip_network("10.0.0.0/8")), 4, []),
        (Packets(interface="wlan0"), 4, []),
    ],
)
def test_a_port_is_at_the_guests_own_addresses(packets: Packets, version: int, addresses: list[str]) -> None:
    assert located(packets, version=version) == addresses


def test_an_address_that_leads_elsewhere_than_all_addresses_is_a_port_of_its_own() -> None:
    assert located(to("192.0.2.5/32"), Packets()) == ["0.0.0.0", "192.0.2.5"]


@pytest.mark.parametrize(
    ("comment", "unit"),
    [
        ("", ""),
        ("web server", "web server"),
        ('dnat name: "cbr" id: "web"', "cbr/web"),
        (f"dnat name: podman id: {'0123456789ab' + 'f' * 52}", "podman/0123456789ab"),
        (f'dnat name: "cbr" id: "k8s.io-{"0123456789ab" + "f" * 52}"', "cbr/0123456789ab"),
        ("\x1b]0;title\x07", "?]0;title?"),
        ("x" * 1000, "x" * 64),
    ],
)
def test_an_owner_is_named_as_its_rule_says(comment: str, unit: str) -> None:
    assert owner_of("iptables", comment).unit == unit


@given(st.text())
def test_whatever_a_comment_says_its_owner_is_short_and_printable(comment: str) -> None:
    owner = owner_of("nftables", comment)
    assert len(owner.unit) <= 256
    assert owner.unit.isprintable()


# --- together with sockets ------------------------------------------------------------------------------------------

ports = st.builds(
    Port,
    st.just(Protocol.TCP),
    st.sampled_from(["0.0.0.0", "::", "127.0.0.1"]),
    st.integers(1, 3),
)


def as_nat(some: frozenset[Port]) -> frozenset[Port]:
    return frozenset(Port(port.protocol, port.address, port.number, PortKind.NAT) for port in some)


@given(st.lists(st.tuples(st.booleans(), st.frozensets(ports)), max_size=8))
def test_changes_add_up_to_what_a_merge_from_scratch_gives(steps: list[tuple[bool, frozenset[Port]]]) -> None:
    sockets: set[Port] = set()
    nat: frozenset[Port] = frozenset()
    merged = MergedPorts(sockets)
    told: set[Port] = set()
    for is_socket, now in steps:
        if is_socket:
            change = difference(sockets, now)
            sockets ^= sockets ^ now
            changes = [change, merged.follow(change)]
        else:
            nat = as_nat(now)
            changes = [merged.replace(nat)]
        for one in changes:
            assert not told & set(one.opened)
            assert told >= set(one.closed)
            told = (told - set(one.closed)) | set(one.opened)
        fresh = MergedPorts(sockets)
        fresh.replace(nat)
        assert told == sockets | fresh.shown
        assert merged.shown == fresh.shown
        numbers = {(port.address, port.number) for port in told}
        assert numbers >= {(port.address, port.number) for port in sockets}
        assert all((p.address, p.number) in numbers or ("::", p.number) in numbers for p in nat)
        assert len(numbers) == len(told)


def test_what_is_dialled() -> None:
    tcp = Protocol.TCP
    dials = {(tcp, "0.0.0.0", 80): ("10.0.0.2", 8080), (tcp, "127.0.0.1", 81): ("10.0.0.3", 81)}
    held = {Port(tcp, "127.0.0.1", 80), Port(tcp, "::", 80), Port(tcp, "::", 82)}
    engine = frozenset({Port(tcp, "::", 80)})
    assert dial_for((tcp, "0.0.0.0", 80), dials, held) == ("10.0.0.2", 8080)
    assert dial_for((tcp, "127.0.0.1", 80), dials, held) is None
    assert dial_for((tcp, "127.0.0.1", 80), dials, engine) == ("10.0.0.2", 8080)
    assert dial_for((tcp, "192.0.2.5", 80), dials, engine) == ("10.0.0.2", 8080)
    assert dial_for((tcp, "::", 80), dials, held) == ("10.0.0.2", 8080)
    assert dial_for((tcp, "::", 80), dials, {*held, Port(tcp, "0.0.0.0", 80)}) is None
    assert dial_for((tcp, "::1", 80), dials, frozenset()) is None
    assert dial_for((tcp, "127.0.0.1", 81), dials, held) == ("10.0.0.3", 81)
    assert dial_for((tcp, "0.0.0.0", 81), dials, held) is None
    assert dial_for((Protocol.UDP, "0.0.0.0", 80), dials, held) is None
    assert dial_for((tcp, "0.0.0.0", 80), {}, held) is None


def test_ports_of_translations_are_of_that_kind() -> None:
    assert NatPorts({(Protocol.UDP, "::", 53): ("fd00::2", 53)}).ports() == {Port(Protocol.UDP, "::", 53, PortKind.NAT)}
