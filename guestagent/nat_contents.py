"""From what the kernel answered to the ports that its rules open, in steps short enough to let others run. Pure.

Rules are read again whenever one of them changes, and most are the same as before. So a rule's program is read only
when its bytes are new, and a rule set that is the same in every byte is not looked at again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from guestagent.iptables_table import TableReader, parse_info
from guestagent.nat_ports import NatPorts, OwnAddress, locate
from guestagent.nat_rules import IPV4 as ONLY_IPV4
from guestagent.nat_rules import IPV6 as ONLY_IPV6
from guestagent.nat_rules import Claim, ClaimKey, Evaluation, Hook, Rule, RuleSet
from guestagent.nft_dump import (
    INET,
    IPV4,
    IPV6,
    OUTPUT,
    PREROUTING,
    ChainRecord,
    ElementsRecord,
    RuleRecord,
    SetRecord,
    parse_record,
)
from guestagent.nft_rules import SetName, compile_rule
from guestagent.nft_sets import SetContents, read_elements

_FAMILIES = {INET: ONLY_IPV4 | ONLY_IPV6, IPV4: ONLY_IPV4, IPV6: ONLY_IPV6}

NftMessage = tuple[int, bytes]
"""Type and payload of a netlink message."""


@dataclass(frozen=True, slots=True)
class RawTable:
    """A nat table of iptables-legacy, as the kernel gave it."""

    ipv6: bool
    info: bytes
    entries: bytes


@dataclass(frozen=True, slots=True)
class RawRules:
    """Everything that decides about translated ports, as the kernel gave it, all from one moment."""

    generation: int = 0
    messages: tuple[NftMessage, ...] = ()
    tables: tuple[RawTable, ...] = ()
    addresses: tuple[OwnAddress, ...] = ()
    interfaces: tuple[tuple[int, str], ...] = ()


def entry_chains(chains: list[ChainRecord]) -> list[ChainRecord]:
    """The chains that translate what comes to the guest's ports."""
    return [
        chain
        for chain in chains
        if chain.kind == "nat" and chain.hook in (PREROUTING, OUTPUT) and chain.family in _FAMILIES
    ]


@dataclass(slots=True)
class Interpreter:
    """Reads successive states of the rules."""

    _last: tuple[RawRules, NatPorts] | None = None
    _tables: dict[bool, TableReader] = field(
        default_factory=lambda: {ipv6: TableReader(ipv6=ipv6) for ipv6 in (False, True)}
    )
    _compiled: dict[RuleRecord, Rule] = field(default_factory=dict)
    _context: tuple[Mapping[SetName, SetContents], tuple[tuple[int, str], ...]] = field(
        default_factory=lambda: ({}, ())
    )

    def read(self, raw: RawRules) -> Iterator[NatPorts | None]:
        """None after each step, and at last the ports.

        Raises `KernelDataError` or `RulesTooComplexError`, and then knows as much as before.
        """
        if self._last and self._last[0] == raw:
            yield self._last[1]
            return
        sets: list[RuleSet] = []
        for steps in (self._nftables(raw), *(self._table(table) for table in raw.tables)):
            for rules in steps:
                if rules is None:
                    yield None
                else:
                    sets.append(rules)
        claims: dict[ClaimKey, list[Claim]] = {}
        skipped: Counter[str] = Counter()
        for rules in sets:
            evaluation = Evaluation(rules, claims, skipped)
            yield from evaluation.run()
        for found in locate(claims, raw.addresses, skipped):
            if found is not None:
                self._last = (raw, found)
            yield found

    def _table(self, table: RawTable) -> Iterator[RuleSet | None]:
        return self._tables[table.ipv6].read(parse_info(table.info), table.entries)

    def _nftables(self, raw: RawRules) -> Iterator[RuleSet | None]:
        chains: list[ChainRecord] = []
        rules: list[RuleRecord] = []
        sets: dict[SetName, SetRecord] = {}
        elements: dict[SetName, list[bytes]] = {}
        for kind, payload in raw.messages:
            match parse_record(kind, payload):
                case ChainRecord() as chain:
                    chains.append(chain)
                case RuleRecord() as rule:
                    rules.append(rule)
                case SetRecord() as found:
                    sets[found.family, found.table, found.name] = found
                case ElementsRecord() as some:
                    elements.setdefault((some.family, some.table, some.set_name), []).extend(some.elements)
            yield None
        contents: dict[SetName, SetContents] = {}
        for name, record in sets.items():
            contents[name] = read_elements(record, elements.get(name, ()))
            yield None
        yield from self._rule_set(raw, chains, rules, contents)

    def _rule_set(
        self, raw: RawRules, chains: list[ChainRecord], rules: list[RuleRecord], sets: Mapping[SetName, SetContents]
    ) -> Iterator[RuleSet | None]:
        known = self._compiled if self._context == (sets, raw.interfaces) else {}
        compiled: dict[RuleRecord, Rule] = {}
        names = dict(raw.interfaces)
        by_chain: dict[str, list[Rule]] = {}
        for record in rules:
            rule = known.get(record)
            if rule is None:
                rule = _qualified(compile_rule(record, sets, names), record)
            compiled[record] = rule
            by_chain.setdefault(_chain_name(record.family, record.table, record.chain), []).append(rule)
            yield None
        self._compiled, self._context = compiled, (sets, raw.interfaces)
        hooks = tuple(
            Hook(
                _chain_name(chain.family, chain.table, chain.name),
                chain.hook == OUTPUT,
                chain.priority,
                _FAMILIES[chain.family],
            )
            for chain in entry_chains(chains)
        )
        yield RuleSet(by_chain, hooks)


def _chain_name(family: int, table: str, chain: str) -> str:
    return f"{family} {table} {chain}"


def _qualified(rule: Rule, record: RuleRecord) -> Rule:
    """The rule with the names of chains made unique among all tables."""
    return replace(
        rule,
        cases=tuple(
            replace(case, chain=_chain_name(record.family, record.table, case.chain)) if case.chain else case
            for case in rule.cases
        ),
    )
