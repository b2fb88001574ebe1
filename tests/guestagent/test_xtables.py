"""Matches and targets of iptables in their binary form; what real ones say is tested with whole rule sets."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.nat_rules import ALL_PORTS, Packets, Target
from guestagent.netlink import KernelDataError
from guestagent.xtables import MAYBE, NEVER, Condition, read_match, read_target
from protocol.ports import Protocol

TCP, UDP = frozenset({Protocol.TCP}), frozenset({Protocol.UDP})
ANY_SOURCE = (0, 65_535)


def tcp(source: tuple[int, int], wanted: tuple[int, int], option: int = 0, inverted: int = 0) -> bytes:
    return struct.pack("=HHHHBBBB", *source, *wanted, option, 0, 0, inverted)


def multiport(flags: int, ports: list[int], continued: list[int], inverted: int = 0) -> bytes:
    filled = ports + [0] * (15 - len(ports)), continued + [0] * (15 - len(continued))
    return struct.pack("=BB15H15BB", flags, len(ports), *filled[0], *filled[1], inverted)


def conntrack(flags: int, inverted: int, states: int) -> bytes:
    return bytes(146) + struct.pack("=HHHH", flags, inverted, states, 0)


CASES: dict[str, tuple[str, int, bytes, Condition | None]] = {
    "a port": ("tcp", 0, tcp(ANY_SOURCE, (80, 80)), Condition(Packets(protocols=TCP, ports=((80, 80),)))),
    "all but a port": (
        "udp", 0, struct.pack("=HHHHB", *ANY_SOURCE, 80, 80, 2),
        Condition(Packets(protocols=UDP, ports=((1, 79), (81, 65_535)))),
    ),
    "any port": ("tcp", 0, tcp(ANY_SOURCE, (0, 65_535)), Condition(Packets(protocols=TCP, ports=ALL_PORTS))),
    "a source port": ("tcp", 0, tcp((53, 53), (80, 80)), NEVER),
    "all but a source port": (
        "tcp", 0, tcp((53, 53), (80, 80), inverted=1),
        Condition(Packets(protocols=TCP, ports=((80, 80),)), exact=False),
    ),
    "an option": (
        "tcp", 0, tcp(ANY_SOURCE, (80, 80), option=2), Condition(Packets(protocols=TCP, ports=((80, 80),)), exact=False)
    ),
    "ports": ("multiport", 1, multiport(1, [80, 90, 95], [0, 1]), Condition(Packets(ports=((80, 80), (90, 95))))),
    "all but ports": ("multiport", 1, multiport(1, [2, 65_535], [1], 1), Condition(Packets(ports=((1, 1),)))),
    "source ports": ("multiport", 1, multiport(0, [80], []), NEVER),
    "all but source ports": ("multiport", 1, multiport(0, [80], [], 1), MAYBE),
    "old multiport": ("multiport", 0, bytes(48), None),
    "local": ("addrtype", 1, struct.pack("=HHI", 0, 4, 0), Condition(Packets(local=True))),
    "local, old form": ("addrtype", 0, struct.pack("=HHII", 0, 4, 0, 0), Condition(Packets(local=True))),
    "not local": ("addrtype", 1, struct.pack("=HHI", 0, 4, 2), NEVER),
    "broadcast": ("addrtype", 1, struct.pack("=HHI", 0, 8, 0), NEVER),
    "from the guest": ("addrtype", 1, struct.pack("=HHI", 4, 0, 0), NEVER),
    "not from the guest": ("addrtype", 1, struct.pack("=HHI", 4, 0, 1), MAYBE),
    "a mark": ("mark", 1, struct.pack("=IIB", 1, 1, 0), NEVER),
    "all ports but one, to none": ("tcp", 0, bytes(11) + b"\x01", NEVER),
    "without a mark": ("mark", 1, struct.pack("=IIB", 1, 1, 1), Condition()),
    "new": ("state", 0, struct.pack("=I", 8), Condition()),
    "established": ("state", 0, struct.pack("=I", 4), NEVER),
    "new, by conntrack": ("conntrack", 3, conntrack(1, 0, 8), Condition()),
    "not new": ("conntrack", 3, conntrack(1, 1, 8), NEVER),
    "more of conntrack": ("conntrack", 3, conntrack(3, 0, 8), None),
    "chance": ("statistic", 0, b"", MAYBE),
    "comment": ("comment", 0, b"web\0rest".ljust(256, b"\0"), Condition(comment="web")),
    "something else": ("string", 1, b"", None),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_match_is_what_it_leaves(case: str) -> None:
    name, revision, info, condition = CASES[case]
    assert read_match(name, revision, info) == condition


def old_range(flags: int, address: bytes, port: int) -> bytes:
    return struct.pack("=II4s4s", 1, flags, address, address) + struct.pack("!HH", port, port)


def new_range(flags: int, address: bytes, port: int, base: int = 0) -> bytes:
    padded = address.ljust(16, b"\0")
    return struct.pack("=I16s16s", flags, padded, padded) + struct.pack("!HHH", port, port, base) + bytes(2)


V4, V6 = bytes((10, 0, 0, 2)), bytes((0xFD, *[0] * 14, 2))


@pytest.mark.parametrize(
    ("name", "revision", "info", "ipv6", "target"),
    [
        ("DNAT", 0, old_range(3, V4, 80), False, Target("10.0.0.2", 80)),
        ("DNAT", 2, new_range(3, V4, 80), False, Target("10.0.0.2", 80)),
        ("DNAT", 2, new_range(1, V4, 0), False, Target("10.0.0.2")),
        ("DNAT", 2, new_range(2, b"", 80), False, Target("", 80)),
        ("DNAT", 2, new_range(1 | 2 | 32, V4, 80, 8000), False, Target("10.0.0.2", 80, 8000)),
        ("DNAT", 1, new_range(3, V6, 80), True, Target("fd00::2", 80)),
        ("REDIRECT", 0, old_range(2, V4, 80), False, Target("", 80)),
        ("REDIRECT", 0, new_range(2, V6, 80), True, Target("", 80)),
        ("MASQUERADE", 0, b"", False, None),
    ],
)
def test_a_target_is_where_it_leads(name: str, revision: int, info: bytes, ipv6: bool, target: Target | None) -> None:
    assert read_target(name, revision, info, ipv6=ipv6) == target


NAMES = sorted({name for name, *_ in CASES.values()})


@given(st.sampled_from(NAMES), st.integers(0, 3), st.binary(max_size=300))
def test_whatever_a_match_holds_is_a_condition_or_the_documented_error(name: str, revision: int, info: bytes) -> None:
    try:
        found = read_match(name, revision, info)
    except KernelDataError:
        return
    if found and found.packets:
        assert found.packets.ports


@given(st.sampled_from(["DNAT", "REDIRECT"]), st.integers(0, 3), st.binary(max_size=80), st.booleans())
def test_whatever_a_target_holds_is_a_target_or_the_documented_error(
    name: str, revision: int, info: bytes, ipv6: bool
) -> None:
    try:
        found = read_target(name, revision, info, ipv6=ipv6)
    except KernelDataError:
        return
    assert found is not None
    assert 0 < found.port_for(1) < 65_536
