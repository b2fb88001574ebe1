"""What an nftables expression asks of a packet, as the packets that are left. Pure.

nftables loads a field of the packet into a register and compares it. Here a register holds a `Field` instead of a value
wherever the value is the newcomer's to choose, and plain bytes wherever it is known: his first packet carries no mark,
is new to connection tracking, and so on.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

from guestagent.nat_rules import ALL_PORTS, IPV4, IPV6, Network, Packets, ranges, without
from guestagent.nft_dump import text
from protocol.ports import Protocol

_MAX_NETWORKS = 64
_PROTOCOL_NUMBERS = {6: frozenset({Protocol.TCP}), 17: frozenset({Protocol.UDP})}
_FAMILY_NUMBERS = {"nfproto": {2: IPV4, 10: IPV6}, "ethertype": {0x0800: IPV4, 0x86DD: IPV6}}
_LOCAL = 2  # RTN_LOCAL (linux/rtnetlink.h)
_NAME_SIZE = 16  # IFNAMSIZ


class UnknownRuleError(Exception):
    """A rule holds something that is not known here. The message names it."""


@dataclass(frozen=True, slots=True)
class Field:
    """A part of the packet, or of what the kernel knows of it, that was loaded into a register."""

    name: str
    size: int
    mask: bytes = b""
    """What a bitwise expression has left of it; empty for all."""


@dataclass(frozen=True, slots=True)
class Left:
    """Some of the packets, and whether all of these match for sure."""

    packets: Packets
    exact: bool = True


ALL = [Left(Packets())]
SOME = [Left(Packets(), exact=False)]
NONE: list[Left] = []


def as_number(value: bytes) -> int:
    """A number in the machine's byte order, as most of what is not from the packet itself is."""
    return int.from_bytes(value, sys.byteorder)


def within(field: Field, low: bytes, high: bytes, interfaces: Mapping[int, str]) -> list[Left]:
    """The packets whose `field` is from `low` to `high`. `interfaces` gives names by index.

    Raises `UnknownRuleError` for what cannot be told.
    """
    match field.name:
        case "dport":
            ports = ranges([(max(_big(low), 1), min(_big(high), 65_535))])
            return [Left(Packets(ports=ports))] if ports else NONE
        case "l4proto":
            protocols = frozenset[Protocol]().union(
                *(p for number, p in _PROTOCOL_NUMBERS.items() if _big(low) <= number <= _big(high))
            )
            return [Left(Packets(protocols=protocols))] if protocols else NONE
        case "nfproto" | "ethertype":
            known = _FAMILY_NUMBERS[field.name].items()
            families = frozenset[int]().union(*(f for number, f in known if _big(low) <= number <= _big(high)))
            return [Left(Packets(families=families))] if families else NONE
        case "daddr4" | "daddr6":
            return _to_address(field, low, high)
        case "iifname":
            return [Left(Packets(interface=_interface(low, high)))]
        case "iif":
            name = interfaces.get(as_number(low), "")
            return [Left(Packets(interface=name))] if name and low == high else NONE
        case "oifname" | "oif":
            name = text(low) if field.name == "oifname" else interfaces.get(as_number(low), "")
            return [Left(Packets(local=True))] if name == "lo" else NONE
        case "daddr type":
            return [Left(Packets(local=True))] if low == high and as_number(low) == _LOCAL else NONE
        case "chance":
            return SOME
        case "source":
            return NONE if any(low) or low == high else ALL
    raise UnknownRuleError(field.name)


def outside(field: Field, low: bytes, high: bytes, interfaces: Mapping[int, str]) -> list[Left]:
    """The packets whose `field` is not from `low` to `high`. Raises `UnknownRuleError`."""
    inside = within(field, low, high, interfaces)
    match field.name:
        case "dport":
            ports = without(ALL_PORTS, inside[0].packets.ports) if inside else ALL_PORTS
            return [Left(Packets(ports=ports))] if ports else NONE
        case "l4proto":
            protocols = frozenset(Protocol) - (inside[0].packets.protocols if inside else frozenset())
            return [Left(Packets(protocols=protocols))] if protocols else NONE
        case "nfproto" | "ethertype":
            families = IPV4 | IPV6
            families -= inside[0].packets.families if inside else frozenset()
            return [Left(Packets(families=families))] if families else NONE
        case "daddr type":
            return NONE if inside else ALL
        case "oif" | "oifname":
            return NONE if inside else SOME
    return SOME  # all but some addresses, interfaces or sources: the rest still comes through


def bounds(operation: int, value: bytes) -> tuple[bytes, bytes, bool]:
    """First and last value that fulfil a comparison, and whether it is the others that do."""
    whole = int.from_bytes(value, "big")
    most = (1 << 8 * len(value)) - 1
    first, last, inverted = {
        0: (whole, whole, False),
        1: (whole, whole, True),
        2: (0, whole - 1, False),
        3: (0, whole, False),
        4: (whole + 1, most, False),
        5: (whole, most, False),
    }.get(operation, (1, 0, False))
    if not 0 <= first <= last <= most:
        return b"\1", b"\0", inverted
    return first.to_bytes(len(value), "big"), last.to_bytes(len(value), "big"), inverted


def together(found: list[Left]) -> list[Left]:
    """Elements that differ in nothing but the port become one."""
    by_rest: dict[tuple[Packets, bool], list[tuple[int, int]]] = {}
    for left in found:
        rest = (replace(left.packets, ports=()), left.exact)
        by_rest.setdefault(rest, []).extend(left.packets.ports)
    return [Left(replace(rest, ports=ranges(ports)), exact) for (rest, exact), ports in by_rest.items()]


def _big(value: bytes) -> int:
    return int.from_bytes(value, "big")


def _interface(low: bytes, high: bytes) -> str:
    if low == high and (len(low) == _NAME_SIZE or b"\0" in low):
        return text(low)
    common = 0
    while common < min(len(low), len(high)) and low[common] == high[common]:
        common += 1
    return text(low[:common]) + "*"


def _to_address(field: Field, low: bytes, high: bytes) -> list[Left]:
    """A field that was loaded in part, or with a mask, is compared as a prefix."""
    whole = 4 if field.name == "daddr4" else 16
    families = IPV4 if whole == 4 else IPV6
    prefix = _prefix_length(field.mask) if field.mask else field.size * 8
    low, high = low[:whole].ljust(whole, b"\0"), high[:whole].ljust(whole, b"\0")
    networks: list[Network]
    if low == high:
        networks = [_network(low, prefix)]
    elif field.mask or field.size != whole:
        raise UnknownRuleError("a range of masked addresses")
    else:
        networks = _summarized(low, high)
    return [
        Left(Packets(families=families, address=None if network.prefixlen == 0 else network)) for network in networks
    ]


def _network(packed: bytes, prefix: int) -> Network:
    address = ipaddress.ip_address(packed)
    return ipaddress.ip_network((address, min(prefix, address.max_prefixlen)), strict=False)


def _summarized(low: bytes, high: bytes) -> list[Network]:
    if len(low) == 4:
        v4 = (ipaddress.IPv4Address(low), ipaddress.IPv4Address(high))
        found: list[Network] = list(ipaddress.summarize_address_range(*v4)) if v4[0] <= v4[1] else []
    else:
        v6 = (ipaddress.IPv6Address(low), ipaddress.IPv6Address(high))
        found = list(ipaddress.summarize_address_range(*v6)) if v6[0] <= v6[1] else []
    return found[:_MAX_NETWORKS]


def _prefix_length(mask: bytes) -> int:
    bits = "".join(f"{byte:08b}" for byte in mask)
    length = len(bits) - len(bits.lstrip("1"))
    if "1" in bits[length:]:
        raise UnknownRuleError("an address mask with holes")
    return length
