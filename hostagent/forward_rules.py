"""Which guest port goes to which host port, and why not: rules in, decisions out.

Rules have the shape, the meaning and the first-match order of Lima's `portForwards`, so that a user's file works
unchanged. Around the user's rules stand ours. Before them: what would harm if it were forwarded by accident (the
guest's ssh server and its own DNS stub). After them: noise that no user means (DHCP, mDNS, time, clients' UDP
sockets), and at last the rule that forwards everything bound to loopback or to all addresses to the host's loopback.
A host address other than loopback is only ever used when a rule names it.

`match` decides for one port. `plan` decides for all: several guest ports can lead to one host endpoint (a server on
0.0.0.0 and ::, or on 127.0.0.1 and ::1), which is then one listener with one target, and none of them is an error.
Two different guest ports that want one host endpoint are: the first in order has it, the others are told so.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hostagent.forwards import Endpoint
from protocol.ports import Port, Protocol

LOOPBACK = "127.0.0.1"
LOOPBACK_6 = "::1"
_LOOPBACK_NETWORK = ipaddress.ip_network("127.0.0.0/8")

EPHEMERAL = range(32_768, 61_000)
"""Linux's default net.ipv4.ip_local_port_range: where sockets of clients live."""


_parsed = functools.lru_cache(1_024)(ipaddress.ip_address)
"""Addresses as objects: parsing one costs more than all that a rule asks about it."""


@dataclass(frozen=True, slots=True)
class ForwardRule:
    """One rule. Ranges are inclusive; `guest_address` and `host_address` are canonical text."""

    text: str
    """The rule in words, for `hostagent ports`."""
    protocol: Protocol | None = None
    """None means both."""
    guest_address: str = LOOPBACK
    any_address: bool = False
    """Matches whatever address the port is bound to (Lima: 0.0.0.0 with guestIPMustBeZero false)."""
    must_be_zero: bool = False
    """Matches only ports bound to all addresses."""
    loopback_network: bool = False
    """Matches all of 127.0.0.0/8 and ::1, not only `guest_address`."""
    guest_ports: tuple[int, int] = (1, 65_535)
    host_address: str = LOOPBACK
    host_ports: tuple[int, int] | None = None
    """None means the same as `guest_ports`."""
    ignore: bool = False

    def matches(self, port: Port) -> bool:
        """Whether this rule decides about `port`."""
        first, last = self.guest_ports
        if self.protocol not in (None, port.protocol) or not first <= port.number <= last:
            return False
        bound = _parsed(port.address)
        if bound.is_unspecified:
            # An `ignore` for one address says nothing about a port that has them all.
            return not self.ignore or self.any_address or self.must_be_zero
        if self.must_be_zero:
            return False
        if self.any_address or port.address == self.guest_address:
            return True
        if self.loopback_network and bound in _LOOPBACK_NETWORK:
            return True
        return self.guest_address == LOOPBACK and port.address == LOOPBACK_6

    def host_port(self, guest_port: int) -> int:
        """The host port for `guest_port`."""
        return (self.host_ports or self.guest_ports)[0] + guest_port - self.guest_ports[0]


def _ignore(text: str, *ports: int, protocol: Protocol | None = None, address: str = "") -> list[ForwardRule]:
    return [
        ForwardRule(
            text=text,
            protocol=protocol,
            guest_address=address or LOOPBACK,
            any_address=not address,
            guest_ports=(port, port),
            ignore=True,
        )
        for port in ports
    ]


RULES_BEFORE: tuple[ForwardRule, ...] = (
    *_ignore("the guest's ssh server is not forwarded: `hostagent shell` needs none", 22, protocol=Protocol.TCP),
    *_ignore("the guest's own DNS stub is not forwarded", 53, address="127.0.0.53"),
    *_ignore("the guest's own DNS stub is not forwarded", 53, address="127.0.0.54"),
)
"""Decide before the user's rules, as in Lima."""

RULES_AFTER: tuple[ForwardRule, ...] = (
    *_ignore("DHCP is not forwarded unless a rule says so", 67, 68, 546, 547, protocol=Protocol.UDP),
    *_ignore("time service is not forwarded unless a rule says so", 123, 323, protocol=Protocol.UDP),
    *_ignore("mDNS and LLMNR are not forwarded unless a rule says so", 5353, 5355),
    ForwardRule(
        text="UDP ports from 32768 on belong to clients: not forwarded unless a rule says so",
        protocol=Protocol.UDP,
        any_address=True,
        guest_ports=(EPHEMERAL.start, EPHEMERAL.stop - 1),
        ignore=True,
    ),
    ForwardRule(text="default: loopback and wildcard ports to the host's loopback", loopback_network=True),
)
"""Decide after the user's rules."""

_NO_RULE = ForwardRule(text="bound to one address that no rule names: add one with guestIP", ignore=True)


def match(port: Port, rules: Sequence[ForwardRule]) -> ForwardRule:
    """The rule that decides about `port`. There always is one."""
    for rule in (*RULES_BEFORE, *rules, *RULES_AFTER):
        if rule.matches(port):
            return rule
    return _NO_RULE


@dataclass(frozen=True, slots=True, order=True)
class ListenerKey:
    """One host listener."""

    protocol: Protocol
    host: Endpoint


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to become of one guest port."""

    rule: str
    listeners: tuple[ListenerKey, ...]
    """The host listeners that lead to it, the main one first; empty when it is not forwarded."""
    reason: str = ""
    """Why it is not forwarded."""
    rival: Port | None = None
    """The guest port that has the host endpoint already."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All decisions: by guest port, and each listener with the guest port it leads to."""

    decisions: dict[Port, Decision]
    targets: dict[ListenerKey, Port]


def plan(ports: Iterable[Port], rules: Sequence[ForwardRule]) -> Plan:
    """Decide about all `ports`."""
    decisions: dict[Port, Decision] = {}
    claims: dict[ListenerKey, list[Port]] = {}
    for port in sorted(ports):
        rule = match(port, rules)
        if rule.ignore:
            decisions[port] = Decision(rule.text, (), rule.text)
            continue
        main = ListenerKey(port.protocol, Endpoint(rule.host_address, rule.host_port(port.number)))
        holders = claims.setdefault(main, [])
        if holders and holders[0].number != port.number:
            reason = f"guest port {holders[0].number} is forwarded there already: change one of the rules"
            decisions[port] = Decision(rule.text, (main,), reason, rival=holders[0])
            continue
        holders.append(port)
        decisions[port] = Decision(rule.text, tuple(_with_twin(main)))
    targets = {
        key: _nearest(key.host.address, holders)
        for main, holders in claims.items()
        for key in _with_twin(main)
    }  # fmt: skip
    return Plan(decisions, targets)


def _with_twin(main: ListenerKey) -> list[ListenerKey]:
    """Loopback is two addresses, and so is the wildcard: what is at one of them is at the other as well."""
    twins = {LOOPBACK: LOOPBACK_6, LOOPBACK_6: LOOPBACK, "0.0.0.0": "::", "::": "0.0.0.0"}  # noqa: S104
    other = twins.get(main.host.address)
    return [main] if other is None else [main, ListenerKey(main.protocol, Endpoint(other, main.host.port))]


def _nearest(host_address: str, candidates: Sequence[Port]) -> Port:
    """The candidate of the host address's own family, one address before all addresses."""
    version = _parsed(host_address).version

    def distance(port: Port) -> tuple[bool, bool, Port]:
        bound = _parsed(port.address)
        return bound.version != version, bound.is_unspecified, port

    return min(candidates, key=distance)
