"""Which guest port goes to which host port, and why not: rules in, decisions out.

Rules have the shape, the meaning and the first-match order of Lima's `portForwards`, so that a user's file works
unchanged. Around the user's rules stand ours. Before them: what would harm if it were forwarded by accident (the
guest's ssh server and its own DNS stub). After them: noise that no user means (DHCP, mDNS, time, clients' UDP
sockets), and at last the rule that forwards everything bound to loopback or to all addresses to the host's loopback.
A host address other than loopback is only ever used when a rule names it.

`match` decides for one port; what many ports make of it together is in `hostagent.forward_plan`. A rule that names both
ends (a static port, a socket, a reverse forward) also makes a `StandingForward`, which needs no port of the guest.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hostagent.forwards import Endpoint, GuestEnd, HostEnd, SocketFile
from protocol.ports import Port, Protocol

LOOPBACK = "127.0.0.1"
LOOPBACK_6 = "::1"
_LOOPBACK_NETWORK = ipaddress.ip_network("127.0.0.0/8")

EPHEMERAL = range(32_768, 61_000)
"""Linux's default net.ipv4.ip_local_port_range: where sockets of clients live."""


parsed_address = functools.lru_cache(1_024)(ipaddress.ip_address)
"""Addresses as objects: parsing one costs more than all that a rule asks about it."""


@dataclass(frozen=True, slots=True)
class ForwardRule:
    """One rule. Ranges are inclusive; addresses are canonical text; a path that is empty is none."""

    text: str
    """The rule in words, for `hostagent ports`."""
    name: str = ""
    """What a user calls it: "portForwards.0" for the first of a configuration; empty for a built-in one."""
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
    guest_socket: str = ""
    """Absolute path in the guest. Then the rule is about this socket and about no port."""
    host_address: str = LOOPBACK
    host_ports: tuple[int, int] | None = None
    """None means the same as `guest_ports`."""
    host_socket: str = ""
    """Absolute path on the host, instead of an address and port."""
    ignore: bool = False
    reverse: bool = False
    """The guest's end listens, and leads to the host's."""
    static: bool = False
    """The host listens at once, before the guest's program exists."""
    wait: float = 0.0
    """Seconds that a connection to a standing forward waits for the guest's program; 0 refuses it at once."""

    def __str__(self) -> str:
        return f"{self.name}: {self.text}" if self.name else self.text

    def matches(self, port: Port) -> bool:
        """Whether this rule decides about `port`."""
        first, last = self.guest_ports
        if self.protocol not in (None, port.protocol) or not first <= port.number <= last:
            return False
        if self.guest_socket or self.reverse:
            return False
        bound = parsed_address(port.address)
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

    def host_end(self, guest_port: int) -> HostEnd:
        """Where `guest_port` is to be found on the host."""
        if self.host_socket:
            return SocketFile(self.host_socket)
        return Endpoint(self.host_address, self.host_port(guest_port))


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


SSH = 22

_SSH = _ignore("the guest's ssh server is not forwarded unless a rule names port 22 alone", SSH, protocol=Protocol.TCP)

RULES_BEFORE: tuple[ForwardRule, ...] = (
    *_SSH,
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
)
"""Decide after the user's rules."""

_BY_DEFAULT = ForwardRule(text="default: loopback and wildcard ports to the host's loopback", loopback_network=True)
_NOT_BY_DEFAULT = ForwardRule(
    text="no rule names it, and forwardDefault is none: add a rule to portForwards", any_address=True, ignore=True
)
_SWITCHED_OFF = ForwardRule(
    text="forwarding is switched off: remove `forwarding: false`", any_address=True, ignore=True
)
_NO_RULE = ForwardRule(text="no rule names its one address: `hostagent forward add ADDRESS:PORT` does", ignore=True)


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All that decides about an instance's forwards."""

    rules: tuple[ForwardRule, ...] = ()
    """The user's, in their order: the first that matches a port decides."""
    forward_by_default: bool = True
    """Whether a port that no rule matches is forwarded when it is bound to loopback or to all addresses."""
    enabled: bool = True
    """Whether anything is forwarded at all."""

    def in_order(self) -> tuple[ForwardRule, ...]:
        """Every rule, the built-in ones too, in the order in which they are asked."""
        if not self.enabled:
            return (_SWITCHED_OFF,)
        last = _BY_DEFAULT if self.forward_by_default else _NOT_BY_DEFAULT
        return (*filter(_names_ssh, self.rules), *RULES_BEFORE, *self.rules, *RULES_AFTER, last)

    def standing(self) -> tuple[StandingForward, ...]:
        """The forwards that exist because a rule names both of their ends, in the order of the rules."""
        return tuple(forward for rule in self.rules for forward in _standing(rule)) if self.enabled else ()


BY_DEFAULT = RuleSet()
"""No rule of the user's."""


def _names_ssh(rule: ForwardRule) -> bool:
    """Whether this is what the ssh server is never forwarded without: nobody writes it by accident."""
    return rule.guest_ports == (SSH, SSH)


@dataclass(frozen=True, slots=True)
class StandingForward:
    """A forward that exists whatever the guest has open: a static port, a socket, or a reverse one."""

    protocol: Protocol
    """TCP for sockets: they carry streams."""
    guest: GuestEnd
    host: HostEnd
    rule: str
    reverse: bool = False
    """The guest's end listens, and connections leave to the host's."""
    wait: float = 0.0


def _standing(rule: ForwardRule) -> Iterator[StandingForward]:
    if rule.guest_socket:
        host = rule.host_end(rule.guest_ports[0])
        yield StandingForward(Protocol.TCP, SocketFile(rule.guest_socket), host, str(rule), rule.reverse, rule.wait)
    elif rule.static or rule.reverse:
        address = "0.0.0.0" if rule.any_address or rule.must_be_zero else rule.guest_address  # noqa: S104
        for protocol in Protocol if rule.protocol is None else (rule.protocol,):
            for number in range(rule.guest_ports[0], rule.guest_ports[1] + 1):
                guest = Endpoint(address, number)
                yield StandingForward(protocol, guest, rule.host_end(number), str(rule), rule.reverse, rule.wait)


def match(port: Port, rules: Iterable[ForwardRule]) -> ForwardRule:
    """The first of `rules` that decides about `port`, or the one that says that none does."""
    return next((rule for rule in rules if rule.matches(port)), _NO_RULE)
