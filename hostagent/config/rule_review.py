"""What the rules of `portForwards` say to each other: rules that can never match, rules in each other's way.

Both are warnings. A file in which they stand runs, as it does in Lima, where the first rule that matches decides; but
nobody means them. Pure: it looks at values, and says at which key of which rule something is to be pointed out.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from hostagent.config.document import KeyPath
from hostagent.config.port_forward import LOOPBACK, UNSPECIFIED, PortForward
from hostagent.config.rules import port_rule
from hostagent.config.schema import Config
from hostagent.forward_rules import ForwardRule
from protocol.ports import Port, Protocol

_LOOPBACK_6: Final = "::1"
_SAMPLES: Final = (UNSPECIFIED, "::", LOOPBACK, _LOOPBACK_6, "127.255.255.254", "192.0.2.255", "2001:db8::ffff")
"""One address of each kind that rules tell apart; the last three stand for all that no rule names."""

_MAX_COMPARED: Final = 250_000
"""Comparisons of a rule with an address. What a person writes needs some hundreds; a hostile file gets no more time."""


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing to point out, at one key."""

    path: KeyPath
    message: str


def review(config: Config) -> tuple[Remark, ...]:
    """All remarks about the rules of `config`, in their order."""
    entries = config.port_forwards
    if not config.forwarding:
        return (Remark(("portForwards",), "means nothing while forwarding is false"),) if entries else ()
    rules = [port_rule(f"portForwards.{number}", entry) for number, entry in enumerate(entries)]
    remarks = [*_never_matching(entries, rules), *_in_the_way(entries, rules)]
    return tuple(sorted(remarks, key=lambda remark: remark.path[1]))


def _never_matching(entries: Sequence[PortForward], rules: Sequence[ForwardRule]) -> Iterator[Remark]:
    addresses = (*_SAMPLES, *sorted({entry.guest_ip for entry in entries} - {"any", *_SAMPLES}))
    if len(rules) * len(addresses) * 2 > _MAX_COMPARED:
        return
    taken = {(protocol, address): _Ports() for protocol in Protocol for address in addresses}
    live = dict.fromkeys(range(len(rules)), False)
    blame: dict[int, set[int]] = {number: set() for number in live}
    for number, rule in enumerate(rules):
        if rule.guest_socket or rule.reverse or rule.static:
            live[number] = True  # it makes something stand there, whatever matches
        for (protocol, address), ports in taken.items():
            if not rule.matches(Port(protocol, address, rule.guest_ports[0])):
                continue
            free, earlier = ports.take(rule.guest_ports, number)
            blame[number] |= earlier
            live[number] |= free
    for number, matches in live.items():
        if not matches:
            yield Remark(_shown_at(number, entries[number]), _why_dead(rules[number], blame[number]))


class _Ports:
    """Which rules have which ports, for one protocol and address."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int, int]] = []
        """First, last, rule; sorted, and none overlaps another."""

    def take(self, span: tuple[int, int], rule: int) -> tuple[bool, set[int]]:
        """Give what is free of `span` to `rule`: whether there was any, and the rules that have the rest."""
        begin, last = span
        earlier, added = set(), []
        for first, end, holder in self._spans:
            if end < begin or first > last:
                continue
            earlier.add(holder)
            if first > begin:
                added.append((begin, first - 1, rule))
            begin = end + 1
        if begin <= last:
            added.append((begin, last, rule))
        self._spans = sorted(self._spans + added)
        return bool(added), earlier


def _why_dead(rule: ForwardRule, earlier: Iterable[int]) -> str:
    names = [f"portForwards.{number}" for number in sorted(earlier)]
    return f"can never match: {' and '.join(names)} above {'has' if len(names) == 1 else 'have'} all that it names"


def _shown_at(number: int, entry: PortForward) -> KeyPath:
    """The key that says most about what a rule matches, of those that the file may hold."""
    for name, key in (("guest_port", "guestPort"), ("guest_port_range", "guestPortRange"), ("guest_ip", "guestIP")):
        if name in entry.model_fields_set:
            return "portForwards", number, key
    return "portForwards", number


def _in_the_way(entries: Sequence[PortForward], rules: Sequence[ForwardRule]) -> Iterator[Remark]:
    """Rules that lead different things to one place on the host, where only one of them can be."""
    claims: list[tuple[int, ForwardRule]] = []
    for number, rule in enumerate(rules):
        if rule.ignore or rule.reverse:
            continue
        for other_number, other in claims[-_MAX_COMPARED // max(1, len(rules)) :]:
            if (where := _both_want(rule, other)) is not None:
                yield Remark(
                    _host_key(number, entries[number]),
                    f"leads to {where} of the host, as portForwards.{other_number} does from elsewhere in the guest: "
                    "of two that are open, only one is there",
                )
                break
        claims.append((number, rule))


def _host_key(number: int, entry: PortForward) -> KeyPath:
    for name, key in (("host_socket", "hostSocket"), ("host_port", "hostPort"), ("host_port_range", "hostPortRange")):
        if name in entry.model_fields_set:
            return "portForwards", number, key
    return _shown_at(number, entry)


def _both_want(rule: ForwardRule, other: ForwardRule) -> str | None:
    """A place on the host to which both rules lead different ports of the guest."""
    if rule.host_socket or other.host_socket:
        same = rule.host_socket == other.host_socket and _guest_side(rule) != _guest_side(other)
        return rule.host_socket if same else None
    if None not in (rule.protocol, other.protocol) and rule.protocol != other.protocol:
        return None
    if not _same_place(rule.host_address, other.host_address):
        return None
    first = max(rule.host_port(rule.guest_ports[0]), other.host_port(other.guest_ports[0]))
    last = min(_last_host_port(rule), _last_host_port(other))
    if first > last or (not (rule.guest_socket or other.guest_socket) and _shift(rule) == _shift(other)):
        return None
    return f"port {first}" if first == last else f"ports {first}-{last}"


def _guest_side(rule: ForwardRule) -> object:
    return rule.guest_socket or rule.guest_ports


def _last_host_port(rule: ForwardRule) -> int:
    return (rule.host_ports or rule.guest_ports)[1]


def _shift(rule: ForwardRule) -> int:
    return rule.host_port(rule.guest_ports[0]) - rule.guest_ports[0]


def _same_place(one: str, other: str) -> bool:
    """Whether listeners at both addresses are in each other's way: the wildcard is everywhere, loopback is one."""
    first, second = ipaddress.ip_address(one), ipaddress.ip_address(other)
    return first == second or first.is_unspecified or second.is_unspecified or {one, other} == {LOOPBACK, _LOOPBACK_6}
