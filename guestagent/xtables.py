"""What the matches and targets of iptables say, in the binary form that both of its kinds share. Pure.

iptables-legacy hands whole tables of them to the kernel (`iptables_table`); iptables-nft wraps those that nftables has
no expression for (nft_compat: expressions "match" and "target"). Their structures are in linux/netfilter/xt_*.h,
linux/netfilter_ipv4/ipt_*.h and linux/netfilter/nf_nat.h; numbers in them are of the machine's byte order but for
addresses and the ports of translations. What is too short for what it claims to be is a `KernelDataError`.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

from guestagent.nat_rules import ALL_PORTS, ANY, Packets, Ranges, Target, ranges, without
from guestagent.netlink import KernelDataError
from protocol.ports import Protocol

_TCP = struct.Struct("=HHHHBBBB")
_UDP = struct.Struct("=HHHHB")
_MULTIPORT = struct.Struct("=BB15H15BB")
_ADDRESS_TYPE = {0: struct.Struct("=HHII"), 1: struct.Struct("=HHI")}
_MARK = struct.Struct("=IIB")
_STATE = struct.Struct("=I")
_CONNTRACK = struct.Struct("=146xHHHH")
_RANGE = struct.Struct("=I16s16s2s2s")
_OLD_RANGE = struct.Struct("=II4s4s2s2s")
_BASE = struct.Struct("!H")

_LOCAL = 1 << 2  # RTN_LOCAL
_NEW = 1 << 3  # XT_STATE_BIT(IP_CT_NEW)
_CONNTRACK_STATE = 1
_MAP_ADDRESSES, _PORTS_GIVEN, _PORTS_SHIFTED = 1, 2, 32  # NF_NAT_RANGE_*
_INVERTED_SOURCE, _INVERTED_DESTINATION = 1, 2
_COMMENT_SIZE = 256


@dataclass(frozen=True, slots=True)
class Condition:
    """What a match leaves of a newcomer's packets."""

    packets: Packets | None = ANY
    """None when none of them can match."""
    exact: bool = True
    """Whether it is sure that all of them match."""
    comment: str = ""


NEVER = Condition(None)
MAYBE = Condition(exact=False)


def read_match(name: str, revision: int, info: bytes) -> Condition | None:
    """What a match asks for; None for one that is not known here. Raises `KernelDataError`."""
    reader = _MATCHES.get(name)
    try:
        return reader(revision, info) if reader else None
    except struct.error as exc:
        raise KernelDataError(f"the match {name} has only {len(info)} bytes") from exc


def _protocol_ports(protocol: Protocol, source: tuple[int, int], wanted: tuple[int, int], inverted: int) -> Condition:
    ports = _inverted(ranges([wanted]), bool(inverted & _INVERTED_DESTINATION))
    any_source = source == (0, 0xFFFF)
    if not ports or not (any_source or inverted & _INVERTED_SOURCE):
        return NEVER
    return Condition(Packets(protocols=frozenset({protocol}), ports=ports), exact=any_source)


def _inverted(given: Ranges, invert: bool) -> Ranges:
    """The port numbers in `given`, or all others. Nothing can call port 0."""
    return without(ALL_PORTS, given) if invert else without(ALL_PORTS, without(ALL_PORTS, given))


def _tcp(_revision: int, info: bytes) -> Condition:
    a, b, first, last, option, mask, _, inverted = _TCP.unpack_from(info)
    found = _protocol_ports(Protocol.TCP, (a, b), (first, last), inverted)
    return Condition(found.packets, exact=False) if option or mask else found


def _udp(_revision: int, info: bytes) -> Condition:
    a, b, first, last, inverted = _UDP.unpack_from(info)
    return _protocol_ports(Protocol.UDP, (a, b), (first, last), inverted)


def _multiport(revision: int, info: bytes) -> Condition | None:
    if revision != 1:
        return None
    flags, count, *rest = _MULTIPORT.unpack_from(info)
    numbers, continued, inverted = rest[:15][:count], rest[15:30], bool(rest[30])
    found: list[tuple[int, int]] = []
    for index, one in enumerate(numbers):
        if index and continued[index - 1]:
            found[-1] = (found[-1][0], one)
        else:
            found.append((one, one))
    if flags != 1:  # a condition on the source's port, or on either's
        return Condition(exact=False) if inverted else NEVER
    ports = _inverted(ranges(found), inverted)
    return Condition(Packets(ports=ports)) if ports else NEVER


def _address_type(revision: int, info: bytes) -> Condition | None:
    if revision not in _ADDRESS_TYPE:
        return None
    source, destination, *flags = _ADDRESS_TYPE[revision].unpack_from(info)
    invert_source, invert = (flags[0] & 1, flags[0] & 2) if revision else flags
    if source and not invert_source and source & _LOCAL:
        return NEVER  # from the guest itself
    if destination:
        if bool(destination & _LOCAL) == bool(invert):
            return NEVER
        return Condition(Packets(local=True), exact=not source)
    return Condition(exact=not source)


def _comment(_revision: int, info: bytes) -> Condition:
    return Condition(comment=info[:_COMMENT_SIZE].split(b"\0", 1)[0].decode("utf-8", "replace"))


def _mark(_revision: int, info: bytes) -> Condition:
    mark, mask, invert = _MARK.unpack_from(info)
    return Condition() if (mark & mask == 0) != bool(invert) else NEVER


def _state(_revision: int, info: bytes) -> Condition:
    return Condition() if _STATE.unpack_from(info)[0] & _NEW else NEVER


def _conntrack(_revision: int, info: bytes) -> Condition | None:
    flags, inverted, states, _ = _CONNTRACK.unpack_from(info)
    if flags != _CONNTRACK_STATE:
        return None
    return Condition() if bool(states & _NEW) != bool(inverted & _CONNTRACK_STATE) else NEVER


def _maybe(_revision: int, _info: bytes) -> Condition:
    return MAYBE


_MATCHES = {
    "tcp": _tcp,
    "udp": _udp,
    "multiport": _multiport,
    "addrtype": _address_type,
    "comment": _comment,
    "mark": _mark,
    "connmark": _mark,
    "state": _state,
    "conntrack": _conntrack,
    "statistic": _maybe,
    "limit": _maybe,
    "hashlimit": _maybe,
}

HARMLESS_TARGETS = frozenset({"MARK", "CONNMARK", "LOG", "NFLOG", "TRACE", "CT", "SECMARK", "TTL", "TOS", "DSCP"})
"""Targets after which a packet goes on to the next rule."""


def read_target(name: str, revision: int, info: bytes, *, ipv6: bool) -> Target | None:
    """Where DNAT or REDIRECT sends packets; None for any other target. Raises `KernelDataError`."""
    if name not in ("DNAT", "REDIRECT"):
        return None
    try:
        if not ipv6 and (revision == 0 or name == "REDIRECT"):
            _, flags, low, _, port, _ = _OLD_RANGE.unpack_from(info)
            base = 0
        else:
            flags, low, _, port, _ = _RANGE.unpack_from(info)
            low = low if ipv6 else low[:4]
            base = _BASE.unpack_from(info, _RANGE.size)[0] if flags & _PORTS_SHIFTED else 0
    except struct.error as exc:
        raise KernelDataError(f"the target {name} has only {len(info)} bytes") from exc
    return Target(
        str(ipaddress.ip_address(low)) if name == "DNAT" and flags & _MAP_ADDRESSES else "",
        int.from_bytes(port, "big") if flags & _PORTS_GIVEN else 0,
        base,
    )
