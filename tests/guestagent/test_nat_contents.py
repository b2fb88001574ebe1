"""Rule sets of engines and people: from what the kernel answers to the ports they open, live and captured."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.nat_contents import Interpreter, RawRules
from guestagent.nat_rules import RulesTooComplexError
from guestagent.netlink import KernelDataError
from tests.guestagent.nat_rule_sets import (
    RULE_SETS,
    Loaded,
    captures,
    expected,
    guest_namespace,
    interpret,
    read_rules,
)

CAPTURES = captures()


def check(rules: Loaded, raw: RawRules) -> None:
    found, wanted = interpret(raw), expected(rules)
    assert dict(found.dials) == wanted.dials
    assert set(found.skipped) == wanted.skipped
    origin = "nftables rule" if rules.tool == "nft" else "iptables rule"
    assert {owner.process for owner in found.owners.values()} == {origin}
    for key, unit in wanted.units.items():
        if unit:
            assert found.owners[key].unit == unit


@pytest.mark.parametrize("rules", RULE_SETS, ids=str)
def test_the_kernel_of_this_machine_is_understood(rules: Loaded) -> None:
    with guest_namespace():
        rules.load()
        check(rules, read_rules())


@pytest.mark.parametrize("rules", RULE_SETS, ids=str)
def test_what_a_kernel_once_answered_is_understood(rules: Loaded) -> None:
    check(rules, CAPTURES[str(rules)])


def test_the_same_answer_again_gives_the_same_ports_at_once() -> None:
    interpreter, raw = Interpreter(), CAPTURES["by_hand.nft by nft"]
    first = interpret(raw, interpreter)
    assert list(interpreter.read(replace(raw, messages=tuple(raw.messages)))) == [first]


def test_rules_that_stay_are_not_read_again() -> None:
    interpreter, raw = Interpreter(), CAPTURES["docker.iptables by iptables-nft"]
    interpret(raw, interpreter)
    before = dict(interpreter._compiled)
    interpret(replace(raw, generation=raw.generation + 1), interpreter)
    assert all(interpreter._compiled[record] is rule for record, rule in before.items())


def test_an_address_that_moved_moves_its_ports() -> None:
    interpreter, raw = Interpreter(), CAPTURES["docker.iptables by iptables-nft"]
    interpret(raw, interpreter)
    without = replace(raw, addresses=tuple(one for one in raw.addresses if str(one.address) != "192.168.5.15"))
    numbers = {number for _, _, number in interpret(without, interpreter).dials}
    assert numbers == {8080, 8081, 5300}


def test_a_failure_leaves_the_interpreter_as_it_was() -> None:
    interpreter, raw = Interpreter(), CAPTURES["portmap.nft by nft"]
    first = interpret(raw, interpreter)
    broken = replace(raw, messages=((raw.messages[0][0], b"\0"), *raw.messages))
    with pytest.raises(KernelDataError):
        interpret(broken, interpreter)
    assert interpret(raw, interpreter) == first


@given(st.data())
def test_whatever_the_kernel_answers_is_read_or_is_the_documented_error(data: st.DataObject) -> None:
    raw = CAPTURES[data.draw(st.sampled_from(sorted(CAPTURES)))]
    messages, tables = list(raw.messages), list(raw.tables)
    for _ in range(data.draw(st.integers(1, 4))):
        if messages:
            index = data.draw(st.integers(0, len(messages) - 1))
            kind, payload = messages[index]
            messages[index] = (kind, data.draw(damaged(payload)))
        else:
            index = data.draw(st.integers(0, len(tables) - 1))
            tables[index] = replace(tables[index], entries=data.draw(damaged(tables[index].entries)))
    with contextlib.suppress(KernelDataError, RulesTooComplexError):
        interpret(replace(raw, messages=tuple(messages), tables=tuple(tables)))


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """`whole` with a few bytes changed, cut off or put in."""
    at = draw(st.integers(0, len(whole)))
    taken = draw(st.integers(0, 4))
    return whole[:at] + draw(st.binary(max_size=4)) + whole[at + taken :]
