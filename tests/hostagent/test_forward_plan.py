"""The plan gives each place on the host to one guest port, and a change touches no more than it must."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from hostagent.forward_plan import ForwardPlan, ListenerKey, PlanChange
from hostagent.forward_rules import ForwardRule, RuleSet, StandingForward, match
from hostagent.forwards import Endpoint, SocketFile
from protocol.ports import Port, Protocol

TCP, UDP = Protocol.TCP, Protocol.UDP

RULES = (
    ForwardRule("ignored", any_address=True, guest_ports=(1, 99), ignore=True),
    ForwardRule("two to one", guest_ports=(100, 199), host_ports=(1_100, 1_199)),
    ForwardRule("one to two", guest_ports=(200, 299), host_ports=(1_150, 1_249), host_address="::1"),
    ForwardRule("standing", protocol=TCP, static=True, guest_ports=(300, 310), host_ports=(1_140, 1_150)),
    ForwardRule("to a socket", protocol=TCP, any_address=True, guest_ports=(400, 400), host_socket="/tmp/a"),
)


def plan(ports: Iterable[Port], rules: Sequence[ForwardRule] = ()) -> ForwardPlan:
    made = ForwardPlan(RuleSet(tuple(rules)))
    made.change(sorted(ports), ())
    return made


def test_loopback_is_two_addresses_and_each_leads_to_its_own_family() -> None:
    four, six = Port(TCP, "127.0.0.1", 80), Port(TCP, "::1", 80)
    targets = plan([four, six]).targets
    assert targets[ListenerKey(TCP, Endpoint("127.0.0.1", 80))] == four
    assert targets[ListenerKey(TCP, Endpoint("::1", 80))] == six


def test_a_server_on_both_wildcards_is_one_listener_and_no_conflict() -> None:
    ports = [Port(TCP, "0.0.0.0", 80), Port(TCP, "::", 80), Port(TCP, "127.0.0.1", 80)]
    result = plan(ports)
    assert len(result.targets) == 2
    assert result.targets[ListenerKey(TCP, Endpoint("127.0.0.1", 80))] == Port(TCP, "127.0.0.1", 80)
    assert all(decision.rival is None for decision in result.decisions.values())


def test_two_guest_ports_for_one_host_port_is_a_conflict_that_names_the_other() -> None:
    rules = (ForwardRule("to 80", guest_ports=(8080, 8080), host_ports=(80, 80)),)
    first, second = Port(TCP, "127.0.0.1", 80), Port(TCP, "127.0.0.1", 8080)
    decisions = plan([second, first], rules).decisions
    assert decisions[first].rival is None
    assert decisions[second].rival == first
    assert "80" in decisions[second].reason


def test_never_a_host_address_that_no_rule_names() -> None:
    for address in ("0.0.0.0", "::", "127.0.0.1", "::1", "127.3.2.1"):
        for key in plan([Port(TCP, address, 80)]).targets:
            assert isinstance(key.host, Endpoint)
            assert key.host.address in ("127.0.0.1", "::1")


_PORTS = st.builds(
    Port,
    st.sampled_from(Protocol),
    st.one_of(st.ip_addresses().map(str), st.sampled_from(["0.0.0.0", "::", "127.0.0.1", "::1"])),
    st.integers(1, 65_535),
)


@given(st.lists(_PORTS, max_size=20))
def test_every_port_gets_one_decision_and_every_listener_leads_to_one_of_its_ports(ports: list[Port]) -> None:
    result = plan(ports, RULES)
    assert {source for source in result.decisions if isinstance(source, Port)} == set(ports)
    for key, source in result.targets.items():
        assert key in result.decisions[source].listeners
        if isinstance(source, Port):
            assert not match(source, RuleSet(RULES).in_order()).ignore
    for decision in result.decisions.values():
        assert all(key in result.targets for key in decision.listeners)


def test_a_port_can_lead_to_a_socket() -> None:
    rule = ForwardRule("to a socket", protocol=TCP, guest_ports=(80, 80), host_socket="/tmp/a")
    port = Port(TCP, "127.0.0.1", 80)
    assert plan([port], (rule,)).targets == {ListenerKey(TCP, SocketFile("/tmp/a")): port}


STATIC = ForwardRule("static", protocol=TCP, static=True, wait=2.0, guest_ports=(80, 80), host_ports=(8080, 8080))
STANDING = StandingForward(TCP, Endpoint("127.0.0.1", 80), Endpoint("127.0.0.1", 8080), "static", wait=2.0)
HOSTS = (ListenerKey(TCP, Endpoint("127.0.0.1", 8080)), ListenerKey(TCP, Endpoint("::1", 8080)))


def test_a_static_forward_is_there_before_its_port_and_after_it() -> None:
    port = Port(TCP, "0.0.0.0", 80)
    made = plan([], [STATIC])
    assert made.targets == dict.fromkeys(HOSTS, STANDING)
    assert made.change([port], ()) == PlanChange({STANDING: None, port: None}, dict.fromkeys(HOSTS))
    assert made.targets == dict.fromkeys(HOSTS, port)
    assert made.decisions.keys() == {port}, "one line for both"
    made.change((), [port])
    assert made.targets == dict.fromkeys(HOSTS, STANDING)
    assert made.decisions[STANDING].listeners == HOSTS


def test_nothing_takes_the_place_of_a_static_forward() -> None:
    other = Port(TCP, "127.0.0.1", 8080)
    made = plan([other], [STATIC])
    assert made.targets == dict.fromkeys(HOSTS, STANDING)
    assert made.decisions[other].rival == STANDING
    assert "127.0.0.1:80" in made.decisions[other].reason


def test_two_rules_that_stand_in_one_place() -> None:
    twice = ForwardRule("twice", protocol=TCP, guest_socket="/run/a", host_ports=(8080, 8080))
    made = plan([], [STATIC, twice])
    lost = StandingForward(TCP, SocketFile("/run/a"), Endpoint("127.0.0.1", 8080), "twice")
    assert made.decisions[lost].rival == STANDING
    assert made.targets == dict.fromkeys(HOSTS, STANDING)


def test_who_came_first_stays() -> None:
    rules = (ForwardRule("to 80", guest_ports=(70, 70), host_ports=(80, 80)),)
    first, second = Port(TCP, "127.0.0.1", 80), Port(TCP, "127.0.0.1", 70)
    made = plan([first], rules)
    made.change([second], ())
    assert made.decisions[second].rival == first
    change = made.change((), [first])
    assert made.decisions[second].rival is None
    assert change.sources.keys() == {first, second}


def test_a_reverse_forward_needs_nothing_on_the_host() -> None:
    made = plan([], [ForwardRule("back", reverse=True, guest_ports=(80, 80))])
    assert (made.decisions, made.targets) == ({}, {})


def test_what_is_at_a_listener() -> None:
    ports = [Port(TCP, "127.0.0.1", 80), Port(TCP, "::1", 80), Port(TCP, "127.0.0.1", 81)]
    made = plan(ports)
    assert made.users([ListenerKey(TCP, Endpoint("::1", 80))]) == set(ports[:2])
    assert made.users([ListenerKey(TCP, Endpoint("::1", 90))]) == set()
    assert plan([], [STATIC]).users(HOSTS) == {STANDING}


_CHANGES = st.lists(st.tuples(st.booleans(), st.sets(_PORTS, max_size=4)), max_size=12)


@given(_CHANGES)
def test_step_by_step_or_at_once_the_same_places_are_taken(changes: list[tuple[bool, set[Port]]]) -> None:
    """And what a change does not name did not change."""
    made, open_ports = ForwardPlan(RuleSet(RULES)), set[Port]()
    for opens, ports in changes:
        decisions, targets = dict(made.decisions), dict(made.targets)
        change = made.change(sorted(ports), ()) if opens else made.change((), sorted(ports))
        open_ports = open_ports | ports if opens else open_ports - ports
        assert {s for s in decisions.keys() | made.decisions.keys() if decisions.get(s) != made.decisions.get(s)} <= (
            change.sources.keys()
        )
        assert {k for k in targets.keys() | made.targets.keys() if targets.get(k) != made.targets.get(k)} <= (
            change.listeners.keys()
        )
    at_once = plan(open_ports, RULES)
    assert made.targets.keys() == at_once.targets.keys()
    assert made.decisions.keys() == at_once.decisions.keys()
