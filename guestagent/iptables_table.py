"""A nat table of iptables-legacy in the kernel's own form, as rules. Pure; raises `KernelDataError`.

IPT_SO_GET_ENTRIES (linux/netfilter_ipv4/ip_tables.h, its IPv6 twin in linux/netfilter_ipv6/ip6_tables.h) gives one
block: entries behind each other, chains separated by entries with the target ERROR that carries their name, jumps as
offsets into the block. The sizes here are those of 64-bit kernels, as in all templates.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from guestagent import xtables
from guestagent.nat_rules import IPV4, IPV6, Case, Hook, Network, Packets, Rule, RuleSet, Verdict
from guestagent.netlink import KernelDataError
from protocol.ports import Protocol

INFO = struct.Struct("=32sI5I5III")
"""struct ipt_getinfo: name, hooks, their entries, their underflows, number of entries, size."""

ENTRIES_HEADER = struct.Struct("=32sI4x")
"""struct ipt_get_entries, before the entries."""

_PREROUTING, _OUTPUT = 0, 3
_PRIORITY = -100  # NF_IP_PRI_NAT_DST
_ADDRESSES = {False: struct.Struct("=4s4s4s4s"), True: struct.Struct("=16s16s16s16s")}
_REST = {False: struct.Struct("=16s16s16s16sHBB"), True: struct.Struct("=16s16s16s16sHBBB3x")}
_OFFSETS_AT = {False: 88, True: 140}
_OFFSETS = struct.Struct("=HH")
_ENTRY_SIZE = {False: 112, True: 168}
_PART = struct.Struct("=H29sB")
_VERDICT = struct.Struct("=i")
_ERROR_NAME_SIZE = 30
_GOTO = {False: 2, True: 4}
_IN, _OUT, _SOURCE, _DESTINATION, _PROTOCOL = 1, 2, 8, 16, 64  # IPT_INV_*
_RETURN = -5
_PROTOCOLS = {0: frozenset(Protocol), 6: frozenset({Protocol.TCP}), 17: frozenset({Protocol.UDP})}


@dataclass(frozen=True, slots=True)
class TableInfo:
    """What IPT_SO_GET_INFO says that is needed here."""

    prerouting: int
    output: int
    size: int


def parse_info(data: bytes) -> TableInfo:
    """The answer to IPT_SO_GET_INFO."""
    if len(data) < INFO.size:
        raise KernelDataError(f"iptables described its table with {len(data)} bytes")
    fields = INFO.unpack_from(data)
    return TableInfo(fields[2 + _PREROUTING], fields[2 + _OUTPUT], fields[-1])


@dataclass(frozen=True, slots=True)
class _Entry:
    offset: int
    following: int
    head: bytes
    matches: bytes
    target: str
    revision: int
    target_data: bytes


def _entries(block: bytes, ipv6: bool) -> Iterator[_Entry]:
    size, at = _ENTRY_SIZE[ipv6], 0
    while at < len(block):
        if len(block) - at < size:
            raise KernelDataError("an iptables entry is cut off")
        target_at, following = _OFFSETS.unpack_from(block, at + _OFFSETS_AT[ipv6])
        if not size <= target_at <= following - _PART.size or at + following > len(block):
            raise KernelDataError("an iptables entry does not fit into its table")
        _, name, revision = _PART.unpack_from(block, at + target_at)
        yield _Entry(
            at,
            at + following,
            block[at : at + _OFFSETS_AT[ipv6]],
            block[at + size : at + target_at],
            _name(name),
            revision,
            block[at + target_at + _PART.size : at + following],
        )
        at += following


def _name(packed: bytes) -> str:
    return packed.split(b"\0", 1)[0].decode("utf-8", "replace")


class TableReader:
    """Makes rules of one table's successive states. Most entries are the same as before, and are read only once."""

    def __init__(self, *, ipv6: bool) -> None:
        self._ipv6 = ipv6
        self._families = IPV6 if ipv6 else IPV4
        self._known: dict[tuple[bytes, bytes, str, int, bytes], Rule] = {}

    def read(self, info: TableInfo, block: bytes) -> Iterator[RuleSet | None]:
        """None after each entry, and at last the rules."""
        known, self._known = self._known, {}
        chains: dict[int, list[tuple[int, Rule]]] = {}
        start, chain = 0, chains.setdefault(0, [])
        for entry in _entries(block, self._ipv6):
            if entry.target == "ERROR":
                start = entry.following  # its data is the chain's name, and the chain follows
                chain = chains.setdefault(start, [])
                continue
            if entry.offset in (info.prerouting, info.output) and entry.offset != start:
                start = entry.offset
                chain = chains.setdefault(start, [])
            key = (entry.head, entry.matches, entry.target, entry.revision, entry.target_data)
            rule = known.get(key) or _parse_entry(entry, self._ipv6)
            self._known[key] = rule
            chain.append((entry.following, rule))
            yield None
        yield RuleSet(
            {str(at): _with_fall_through(rules) for at, rules in chains.items()},
            (
                Hook(str(info.prerouting), output=False, priority=_PRIORITY, families=self._families),
                Hook(str(info.output), output=True, priority=_PRIORITY, families=self._families),
            ),
        )


def _with_fall_through(rules: list[tuple[int, Rule]]) -> tuple[Rule, ...]:
    """A jump to the very next entry means nothing (a rule without a target); any other goes to a chain."""
    return tuple(
        replace(rule, cases=tuple(case for case in rule.cases if case.chain != str(following)))
        if any(case.chain for case in rule.cases)
        else rule
        for following, rule in rules
    )


def _parse_entry(entry: _Entry, ipv6: bool) -> Rule:
    narrowed = _conditions(entry, ipv6)
    if isinstance(narrowed, str):
        return Rule(unknown=narrowed, origin="iptables")
    packets, exact, comment = narrowed
    if packets is None:
        return Rule(origin="iptables", comment=comment)
    return replace(_action(entry, packets, exact, ipv6), origin="iptables", comment=comment)


def _action(entry: _Entry, packets: Packets, exact: bool, ipv6: bool) -> Rule:
    if entry.target:
        if target := xtables.read_target(entry.target, entry.revision, entry.target_data, ipv6=ipv6):
            return Rule((Case(packets, target=target, exact=exact),))
        harmless = entry.target in xtables.HARMLESS_TARGETS
        return Rule() if harmless else Rule(unknown=f"target {entry.target}")
    if len(entry.target_data) < _VERDICT.size:
        raise KernelDataError("an iptables verdict is cut off")
    (code,) = _VERDICT.unpack_from(entry.target_data)
    if code >= 0:
        flags = _REST[ipv6].unpack_from(entry.head, _ADDRESSES[ipv6].size)[-2]
        verdict = Verdict.GOTO if flags & _GOTO[ipv6] else Verdict.JUMP
        return Rule((Case(packets, verdict=verdict, chain=str(code), exact=exact),))
    return Rule((Case(packets, verdict=Verdict.RETURN if code == _RETURN else Verdict.STOP, exact=exact),))


def _conditions(entry: _Entry, ipv6: bool) -> tuple[Packets | None, bool, str] | str:
    """What is left, whether for sure, and the comment; or the name of a match that is not known."""
    packets, exact = _header_conditions(entry.head, ipv6)
    comment, at = "", 0
    while at < len(entry.matches):
        if len(entry.matches) - at < _PART.size:
            raise KernelDataError("an iptables match is cut off")
        size, name, revision = _PART.unpack_from(entry.matches, at)
        if size < _PART.size or at + size > len(entry.matches):
            raise KernelDataError("an iptables match does not fit into its entry")
        condition = xtables.read_match(_name(name), revision, entry.matches[at + _PART.size : at + size])
        at += size
        if packets is None:
            continue
        if condition is None:
            return f"match {_name(name)}"
        packets = packets.meet(condition.packets) if condition.packets else None
        exact, comment = exact and condition.exact, condition.comment or comment
    return packets, exact, comment


def _header_conditions(head: bytes, ipv6: bool) -> tuple[Packets | None, bool]:
    _, destination, source_mask, mask = _ADDRESSES[ipv6].unpack_from(head)
    names = _REST[ipv6].unpack_from(head, _ADDRESSES[ipv6].size)
    interface, outgoing = _interface(names[0], names[2]), _interface(names[1], names[3])
    protocol, inverted = names[4], names[-1]
    protocols = _PROTOCOLS.get(protocol, frozenset[Protocol]())
    if inverted & _PROTOCOL:
        protocols = frozenset(Protocol) - protocols
    # The rest of the addresses, sources and interfaces still comes through where some are excluded.
    exact = not inverted & (_IN | _OUT | _SOURCE | _DESTINATION)
    if any(source_mask) and not inverted & _SOURCE:
        return None, exact
    to_loopback = outgoing == "lo" and not inverted & _OUT
    if (outgoing and not to_loopback and not inverted & _OUT) or not protocols:
        return None, exact
    return Packets(
        families=IPV6 if ipv6 else IPV4,
        protocols=protocols,
        address=None if inverted & _DESTINATION else _network(destination, mask),
        interface="" if inverted & _IN else interface,
        local=to_loopback,
    ), exact


def _network(packed: bytes, mask: bytes) -> Network | None:
    bits = int.from_bytes(mask, "big").bit_count()
    return ipaddress.ip_network((ipaddress.ip_address(packed), bits), strict=False) if bits else None


def _interface(name: bytes, mask: bytes) -> str:
    """A mask that ends before the name's NUL means a prefix."""
    text = _name(name)
    return text if not text or len(mask.rstrip(b"\0")) > len(text) else text + "*"
