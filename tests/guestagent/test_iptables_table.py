"""The nat table of iptables-legacy, as its bytes; what real ones say is tested with whole rule sets."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.iptables_table import TableInfo, TableReader, parse_info
from guestagent.nat_contents import RawTable
from guestagent.nat_rules import RuleSet
from guestagent.netlink import KernelDataError
from tests.guestagent.nat_rule_sets import captures

TABLES = {name: raw.tables[0] for name, raw in captures().items() if raw.tables}


def read(table: RawTable, reader: TableReader | None = None) -> RuleSet:
    *_, rules = (reader or TableReader(ipv6=table.ipv6)).read(parse_info(table.info), table.entries)
    assert rules is not None
    return rules


@pytest.mark.parametrize("name", TABLES)
def test_every_jump_leads_to_a_chain(name: str) -> None:
    rules = read(TABLES[name])
    targets = {case.chain for chain in rules.chains.values() for rule in chain for case in rule.cases if case.chain}
    assert targets
    assert targets <= rules.chains.keys()
    assert {hook.chain for hook in rules.hooks} <= rules.chains.keys()


@pytest.mark.parametrize("name", TABLES)
def test_a_rule_that_stays_is_read_once(name: str) -> None:
    reader = TableReader(ipv6=TABLES[name].ipv6)
    assert read(TABLES[name], reader) == read(TABLES[name], reader)


@pytest.mark.parametrize("info", [b"", bytes(83)])
def test_a_description_that_is_cut_off_is_an_error(info: bytes) -> None:
    with pytest.raises(KernelDataError):
        parse_info(info)


@pytest.mark.parametrize("name", TABLES)
@given(at=st.integers(0, 4000), put=st.binary(max_size=8), taken=st.integers(0, 200))
def test_whatever_a_table_holds_is_rules_or_the_documented_error(name: str, at: int, put: bytes, taken: int) -> None:
    table = TABLES[name]
    entries = table.entries[:at] + put + table.entries[at + taken :]
    with contextlib.suppress(KernelDataError):
        read(replace(table, entries=entries))


@given(st.binary(max_size=600), st.booleans())
def test_noise_is_rules_or_the_documented_error(entries: bytes, ipv6: bool) -> None:
    try:
        *_, rules = TableReader(ipv6=ipv6).read(TableInfo(0, 0, len(entries)), entries)
        assert rules is not None
    except KernelDataError:
        pass
