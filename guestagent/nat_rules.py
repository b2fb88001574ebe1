"""What address translation rules say about ports, whoever wrote them: rules in, claims on ports out. Pure.

The question is always the same: where does the first packet of a newcomer go, who comes from outside and calls a port
at one of the guest's own addresses? So a rule is a list of `Case`s: which of those packets it concerns (`Packets`), and
what happens to them. `Evaluation` walks the chains as the kernel does and notes the first translation of each port.

What narrows the port or the protocol is followed exactly. An exclusion of some addresses, interfaces or sources (all
but 127.0.0.0/8, all but docker0) leaves a port open, since the rest still reaches it. A rule for certain sources only
is for them, and opens nothing. What may or may not happen (`statistic`, `numgen`) counts as happening, but hides
nothing that stands behind it. A rule with a condition that is not known here opens nothing, and is counted by name:
no port is ever claimed because of something that was not understood.
"""

from __future__ import annotations

import enum
import ipaddress
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from protocol.ports import Protocol

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Ranges = tuple[tuple[int, int], ...]
"""Numbers as sorted, disjoint, inclusive ranges."""

ALL_PORTS: Ranges = ((1, 65_535),)
BOTH = frozenset(Protocol)
IPV4, IPV6 = frozenset({4}), frozenset({6})

WIDEST = 1_024
"""Ports that one rule may open. A wider one sends the whole guest elsewhere, and is counted instead of listed."""

MAX_CLAIMED = 8_192
"""Ports that all rules together may open; further ones are counted. Half of what the protocol lets a guest have."""

_MAX_VISITS = 50_000
_MAX_DEPTH = 32
_MAX_PIECES = 64
_MAX_CLAIMS_PER_PORT = 16
_MAX_REASONS = 32


class RulesTooComplexError(Exception):
    """The rules refer to each other more often than anything honest does."""


def ranges(numbers: Iterable[tuple[int, int]]) -> Ranges:
    """Inclusive ranges in any order, made sorted and disjoint. Empty ones are dropped."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(numbers):
        if first > last:
            continue
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def overlap(one: Ranges, other: Ranges) -> Ranges:
    """The numbers that are in both."""
    if one is ALL_PORTS or one == other:
        return other
    if other is ALL_PORTS:
        return one
    return ranges((max(a, c), min(b, d)) for a, b in one for c, d in other)


def without(one: Ranges, other: Ranges) -> Ranges:
    """The numbers of `one` that are not in `other`."""
    left = one
    for first, last in other:
        left = ranges(part for a, b in left for part in ((a, min(b, first - 1)), (max(a, last + 1), b)))
    return left


@dataclass(frozen=True, slots=True)
class Packets:
    """Some of the first packets that newcomers send to the guest's own addresses."""

    families: frozenset[int] = IPV4 | IPV6
    protocols: frozenset[Protocol] = BOTH
    ports: Ranges = ALL_PORTS
    address: Network | None = None
    """Only those to addresses in it."""
    interface: str = ""
    """Only those that come in there; a name, or a prefix of names that ends in "*"."""
    local: bool = False
    """Whether it was made sure that the destination is an address of the guest itself."""

    def meet(self, other: Packets) -> Packets | None:
        """The packets in both; None when there are none."""
        if other is ANY:
            return self
        families, protocols = self.families & other.families, self.protocols & other.protocols
        ports = overlap(self.ports, other.ports)
        address = _narrower(self.address, other.address)
        interface = _narrower_interface(self.interface, other.interface)
        if not (families and protocols and ports) or isinstance(address, bool) or interface is None:
            return None
        return Packets(families, protocols, ports, address, interface, self.local or other.local)

    @property
    def all_arrivals(self) -> bool:
        """Whether neither the address nor the interface matters."""
        return self.address is None and not self.interface

    def minus(self, other: Packets) -> list[Packets]:
        """What is left without `other`, which must be about all addresses and interfaces."""
        common = self.meet(other)
        if common is None:
            return [self]
        pieces = [
            replace(self, families=self.families - common.families),
            replace(self, families=common.families, protocols=self.protocols - common.protocols),
            replace(
                self,
                families=common.families,
                protocols=common.protocols,
                ports=without(self.ports, common.ports),
            ),
        ]
        return [piece for piece in pieces if piece.families and piece.protocols and piece.ports]


ANY = Packets()


def _narrower(one: Network | None, other: Network | None) -> Network | bool | None:
    """The part of two networks that is in both; False when there is none."""
    if one is None or other is None:
        return one or other
    if isinstance(one, ipaddress.IPv4Network) and isinstance(other, ipaddress.IPv4Network):
        return one if one.subnet_of(other) else other if other.subnet_of(one) else False
    if isinstance(one, ipaddress.IPv6Network) and isinstance(other, ipaddress.IPv6Network):
        return one if one.subnet_of(other) else other if other.subnet_of(one) else False
    return False


def is_named(name: str, pattern: str) -> bool:
    """Whether the interface `name` is meant by `pattern`."""
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _narrower_interface(one: str, other: str) -> str | None:
    if not one or not other:
        return one or other
    return one if is_named(one, other) else other if is_named(other, one) else None


@dataclass(frozen=True, slots=True)
class Target:
    """Where a translation sends packets."""

    address: str
    """Canonical text; empty for the guest itself (REDIRECT)."""
    port: int = 0
    """0 for the port that was called."""
    base: int = 0
    """If given, called ports are counted from here, and those of the target from `port`."""

    def port_for(self, called: int) -> int:
        """The target's port for the called one."""
        if not self.port:
            return called
        shifted = self.port + called - self.base if self.base else self.port
        return shifted if 0 < shifted < 65_536 else self.port


class Verdict(enum.StrEnum):
    """What happens to packets that are not translated by this very rule."""

    RETURN = "return"
    STOP = "stop"
    JUMP = "jump"
    GOTO = "goto"


@dataclass(frozen=True, slots=True)
class Case:
    """Which packets, and what happens to them: a translation, or a verdict (with the chain it names)."""

    packets: Packets
    target: Target | None = None
    verdict: Verdict | None = None
    chain: str = ""
    exact: bool = True
    """Whether all of `packets` are concerned, and not perhaps only some of them."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. No cases: it decides nothing about ports, or `unknown` says what in it is not known here."""

    cases: tuple[Case, ...] = ()
    unknown: str = ""
    origin: str = ""
    """Which tool writes such rules: "nftables" or "iptables"."""
    comment: str = ""
    """As its writer left it: any text. What a rule without one leads to has that of the rule that led there."""


@dataclass(frozen=True, slots=True)
class Hook:
    """A chain where packets come in: from outside (prerouting), or from the guest's own programs (output)."""

    chain: str
    output: bool
    priority: int
    families: frozenset[int]


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All chains of one table or of several, under names that are unique among them."""

    chains: Mapping[str, Sequence[Rule]]
    hooks: Sequence[Hook]


@dataclass(frozen=True, slots=True)
class Claim:
    """A translation of one port, at the addresses that `packets` leaves."""

    packets: Packets
    target: Target
    origin: str
    comment: str


ClaimKey = tuple[int, Protocol, int]
"""IP version, protocol, port number."""


@dataclass(slots=True)
class Evaluation:
    """What a rule set claims. Iterate over `run` to its end; it pauses after each rule so that others may run."""

    rules: RuleSet
    claims: dict[ClaimKey, list[Claim]] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    """What was left out, in words, with how often."""
    _seen: set[tuple[str, Packets, bool]] = field(default_factory=set)
    _stopped: list[Packets] = field(default_factory=list)
    _visits: int = 0
    _output: bool = False

    def run(self) -> Iterator[None]:
        """Walk all hooks, the earliest first. Raises `RulesTooComplexError`."""
        for hook in sorted(self.rules.hooks, key=lambda hook: (hook.output, hook.priority)):
            self._output, self._stopped = hook.output, []
            yield from self._walk(hook.chain, Packets(families=hook.families), 0, "")

    def _walk(self, chain: str, packets: Packets, depth: int, comment: str) -> Iterator[None]:
        # What a port's translation is does not depend on the hook once the destination is known to be local.
        seen = (chain, packets, self._output and not packets.local)
        if depth > _MAX_DEPTH:
            raise RulesTooComplexError(f"chains call each other more than {_MAX_DEPTH} deep")
        if not self._stopped:
            if seen in self._seen:
                return
            self._seen.add(seen)
        left = [packets]
        for rule in self.rules.chains.get(chain, ()):
            self._visits += 1
            if self._visits > _MAX_VISITS:
                raise RulesTooComplexError(f"more than {_MAX_VISITS} rules have to be looked at")
            if rule.unknown:
                self._skip(rule.unknown)
            for case in rule.cases:
                for part in left:
                    if common := part.meet(case.packets):
                        yield from self._apply(rule, case, common, depth, rule.comment or comment)
                if case.verdict in (Verdict.RETURN, Verdict.GOTO) and _closes(case):
                    left = [piece for part in left for piece in part.minus(case.packets)][:_MAX_PIECES]
            yield

    def _apply(self, rule: Rule, case: Case, common: Packets, depth: int, comment: str) -> Iterator[None]:
        if case.target is not None:
            self._claim(common, Claim(common, case.target, rule.origin, comment))
        elif case.verdict in (Verdict.JUMP, Verdict.GOTO):
            yield from self._walk(case.chain, common, depth + 1, comment)
        elif case.verdict is Verdict.STOP and case.exact and common.all_arrivals and len(self._stopped) < _MAX_PIECES:
            self._stopped.append(common)

    def _claim(self, packets: Packets, claim: Claim) -> None:
        if self._output and not packets.local and packets.address is None:
            return  # about what the guest's programs send to anywhere, and not about a port of the guest
        if sum(last - first + 1 for first, last in packets.ports) > WIDEST:
            self._skip(f"a translation of more than {WIDEST} ports")
            return
        parts = [packets]
        for stopped in self._stopped:
            parts = [piece for part in parts for piece in part.minus(stopped)]
        for part in parts:
            keys = ((f, p, n) for f in part.families for p in part.protocols for a, b in part.ports
                    for n in range(a, b + 1))  # fmt: skip
            for key in keys:
                self._claim_port(key, replace(claim, packets=part))

    def _claim_port(self, key: ClaimKey, claim: Claim) -> None:
        earlier = self.claims.get(key)
        if earlier is None:
            if len(self.claims) >= MAX_CLAIMED:
                self._skip(f"more than {MAX_CLAIMED} ports")
                return
            self.claims[key] = [claim]
        elif len(earlier) < _MAX_CLAIMS_PER_PORT and not any(_hides(one.packets, claim.packets) for one in earlier):
            earlier.append(claim)

    def _skip(self, reason: str) -> None:
        if reason in self.skipped or len(self.skipped) < _MAX_REASONS:
            self.skipped[reason] += 1


def _closes(case: Case) -> bool:
    return case.exact and case.packets.all_arrivals


def _hides(earlier: Packets, later: Packets) -> bool:
    """Whether no packet that `later` is about gets past `earlier`. Both are about the same port."""
    return earlier.all_arrivals or (earlier.address, earlier.interface) == (later.address, later.interface)
