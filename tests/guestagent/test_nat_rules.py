"""Chains of rules: the same ports as a packet-by-packet walk finds, and bounds on what rules can cost."""

from __future__ import annotations

import ipaddress
import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.nat_rules import (
    ALL_PORTS,
    MAX_CLAIMED,
    WIDEST,
    Case,
    Claim,
    ClaimKey,
    Evaluation,
    Hook,
    Packets,
    Rule,
    RuleSet,
    RulesTooComplexError,
    Target,
    Verdict,
    is_named,
    overlap,
    ranges,
    without,
)
from protocol.ports import Protocol

IPV4 = frozenset({4})
PREROUTING = Hook("prerouting", output=False, priority=0, families=IPV4)
TARGET = Target("10.0.0.2", 80)

some_ranges = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60))).map(ranges)


def numbers(some: tuple[tuple[int, int], ...]) -> set[int]:
    return {number for first, last in some for number in range(first, last + 1)}


@given(some_ranges, some_ranges)
def test_ranges_are_sets_of_numbers(one: tuple[tuple[int, int], ...], other: tuple[tuple[int, int], ...]) -> None:
    assert numbers(overlap(one, other)) == numbers(one) & numbers(other)
    assert numbers(without(one, other)) == numbers(one) - numbers(other)
    assert overlap(ALL_PORTS, one) == overlap(one, ALL_PORTS) == one
    assert all(last + 1 < first for (_, last), (first, _) in itertools.pairwise(one))


def evaluate(rules: RuleSet) -> Evaluation:
    evaluation = Evaluation(rules)
    for _ in evaluation.run():
        pass
    return evaluation


def rule(ports: tuple[tuple[int, int], ...] = ALL_PORTS, **case: object) -> Rule:
    packets = Packets(ports=ports, protocols=frozenset({Protocol.TCP}))
    return Rule((Case(packets, **case),))  # type: ignore[arg-type]


# --- against a walk of single packets -----------------------------------------------------------------------------

CHAINS = ("prerouting", "one", "two")


@st.composite
def rule_sets(draw: st.DrawFn) -> RuleSet:
    """Chains that only call those behind them, as the kernel demands."""

    def one_rule(index: int) -> Rule:
        protocols = draw(st.sampled_from([frozenset({Protocol.TCP}), frozenset({Protocol.UDP}), frozenset(Protocol)]))
        packets = Packets(ports=draw(some_ranges.filter(bool)), protocols=protocols)
        kinds = ["target", Verdict.RETURN, Verdict.STOP]
        kinds += [Verdict.JUMP, Verdict.GOTO] if CHAINS[index + 1 :] else []
        kind = draw(st.sampled_from(kinds))
        if kind == "target":
            return Rule((Case(packets, target=Target(f"10.0.0.{draw(st.integers(1, 9))}")),))
        chain = draw(st.sampled_from(CHAINS[index + 1 :])) if kind in (Verdict.JUMP, Verdict.GOTO) else ""
        return Rule((Case(packets, verdict=Verdict(kind), chain=chain),))

    chains = {name: [one_rule(index) for _ in range(draw(st.integers(0, 5)))] for index, name in enumerate(CHAINS)}
    return RuleSet(chains, (PREROUTING,))


@dataclass(frozen=True)
class OverError(Exception):
    target: Target | None


def walk(rules: RuleSet, chain: str, protocol: Protocol, number: int) -> None:
    """One packet through `chain`, as in ip_tables(7); raises `OverError` when its fate is decided."""
    for one in rules.chains[chain]:
        (case,) = one.cases
        if protocol not in case.packets.protocols or number not in numbers(case.packets.ports):
            continue
        if case.target or case.verdict is Verdict.STOP:
            raise OverError(case.target)
        if case.verdict is Verdict.RETURN:
            return
        walk(rules, case.chain, protocol, number)
        if case.verdict is Verdict.GOTO:
            return


@given(rule_sets())
def test_the_ports_are_those_that_single_packets_find(rules: RuleSet) -> None:
    found = evaluate(rules).claims
    for protocol in Protocol:
        for number in range(1, 61):
            target = None
            try:
                walk(rules, "prerouting", protocol, number)
            except OverError as over:
                target = over.target
            claims = found.get((4, protocol, number))
            assert (claims[0].target if claims else None) == target


# --- addresses, interfaces, order ---------------------------------------------------------------------------------


def claimed(rules: RuleSet, number: int) -> list[Claim]:
    return evaluate(rules).claims.get((4, Protocol.TCP, number), [])


def test_what_is_excluded_for_one_address_or_interface_stays_open_for_the_rest() -> None:
    network = ipaddress.ip_network("127.0.0.0/8")
    returns = [
        Rule((Case(Packets(address=network), verdict=Verdict.RETURN),)),
        Rule((Case(Packets(interface="docker0"), verdict=Verdict.STOP),)),
        Rule((Case(Packets(ports=((80, 80),)), verdict=Verdict.RETURN, exact=False),)),
    ]
    rules = RuleSet({"prerouting": [*returns, rule(((80, 80),), target=TARGET)]}, (PREROUTING,))
    assert [claim.target for claim in claimed(rules, 80)] == [TARGET]


def test_claims_of_one_address_stand_before_that_of_all() -> None:
    one = Packets(ports=((80, 80),), address=ipaddress.ip_network("192.0.2.1/32"))
    first, second = Target("10.0.0.1"), Target("10.0.0.2")
    chain = [Rule((Case(one, target=first),)), rule(((80, 80),), target=second), rule(((80, 80),), target=TARGET)]
    assert [claim.target for claim in claimed(RuleSet({"prerouting": chain}, (PREROUTING,)), 80)] == [first, second]


def test_an_earlier_hook_comes_first_and_accepting_there_hides_nothing_later() -> None:
    chains = {
        "late": [rule(((80, 81),), target=Target("10.0.0.9"))],
        "early": [rule(((80, 80),), target=TARGET), rule(verdict=Verdict.STOP)],
    }
    hooks = (Hook("late", False, 10, IPV4), Hook("early", False, -10, IPV4))
    rules = RuleSet(chains, hooks)
    assert claimed(rules, 80)[0].target == TARGET
    assert claimed(rules, 81)[0].target == Target("10.0.0.9")


def test_what_leaves_the_guest_for_anywhere_is_no_port() -> None:
    output = Hook("output", output=True, priority=0, families=IPV4)
    anywhere = rule(((443, 443),), target=TARGET)
    local = Rule((Case(Packets(ports=((80, 80),), local=True), target=TARGET),))
    found = evaluate(RuleSet({"output": [anywhere, local]}, (output,))).claims
    assert [number for _, _, number in found] == [80, 80]


def test_interfaces_meet_by_name_and_prefix() -> None:
    assert is_named("docker0", "docker*")
    assert not is_named("eth0", "docker*")
    prefix, name = Packets(interface="docker*"), Packets(interface="docker0")
    met = prefix.meet(name)
    assert met is not None
    assert met.interface == "docker0"
    assert name.meet(Packets(interface="eth0")) is None


def test_networks_meet_in_the_narrower_one() -> None:
    wide, narrow = (Packets(address=ipaddress.ip_network(text)) for text in ("10.0.0.0/8", "10.1.0.0/16"))
    assert wide.meet(narrow) == narrow.meet(wide) == narrow
    assert narrow.meet(Packets(address=ipaddress.ip_network("10.2.0.0/16"))) is None
    assert narrow.meet(Packets(address=ipaddress.ip_network("fd00::/8"))) is None


@pytest.mark.parametrize(
    ("target", "called", "port"),
    [(Target("a"), 8080, 8080), (Target("a", 80), 8080, 80), (Target("a", 80, 8000), 8080, 160),
     (Target("a", 65_000, 1), 60_000, 65_000)],
)  # fmt: skip
def test_a_target_says_its_port(target: Target, called: int, port: int) -> None:
    assert target.port_for(called) == port


# --- bounds -------------------------------------------------------------------------------------------------------


def test_a_rule_for_very_many_ports_is_counted_and_lists_none() -> None:
    evaluation = evaluate(RuleSet({"prerouting": [rule(((1, WIDEST + 1),), target=TARGET)]}, (PREROUTING,)))
    assert not evaluation.claims
    assert evaluation.skipped == {f"a translation of more than {WIDEST} ports": 1}


def test_very_many_ports_are_cut_off_and_counted() -> None:
    chain = [rule(((first, first + WIDEST - 1),), target=TARGET) for first in range(1, 10 * WIDEST, WIDEST)]
    evaluation = evaluate(RuleSet({"prerouting": chain}, (PREROUTING,)))
    assert len(evaluation.claims) == MAX_CLAIMED
    assert evaluation.skipped[f"more than {MAX_CLAIMED} ports"] > 0


def test_chains_that_call_each_other_without_end_are_an_error() -> None:
    there, back = (rule(verdict=Verdict.JUMP, chain=chain) for chain in ("other", "prerouting"))
    chains = {"prerouting": [there], "other": [rule(((80, 90),), verdict=Verdict.STOP), back]}
    with pytest.raises(RulesTooComplexError):
        evaluate(RuleSet(chains, (PREROUTING,)))


def test_a_tree_of_jumps_that_doubles_at_each_level_is_cut_off() -> None:
    names = [f"level {level}" for level in range(30)]
    jump_twice = {
        name: [rule(((n, 65_535),), verdict=Verdict.JUMP, chain=below) for n in (level + 1, level + 100)]
        for level, (name, below) in enumerate(itertools.pairwise(names))
    }
    stop = [rule(((1, 1),), verdict=Verdict.STOP)]
    chains = {"prerouting": [*stop, *jump_twice[names[0]]], **jump_twice, names[-1]: stop}
    evaluation = Evaluation(RuleSet(chains, (PREROUTING,)))
    claims: dict[ClaimKey, list[Claim]] = evaluation.claims
    with pytest.raises(RulesTooComplexError):
        for _ in evaluation.run():
            pass
    assert not claims
