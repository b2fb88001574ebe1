"""When engines are asked, how often, and what becomes of the answers: with a lookup that a test scripts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import trio
import trio.testing

from guestagent.container_names import LONGEST_REST, PAUSES, ContainerNames
from guestagent.container_questions import Question
from protocol.ports import Port, PortKind, PortOwner, Protocol

WEB = Port(Protocol.TCP, "0.0.0.0", 8080)
OTHER = Port(Protocol.TCP, "0.0.0.0", 8081)
PROXY = PortOwner("docker-proxy", 5, 0, "docker/172.17.0.2")
NGINX = PortOwner("nginx", 6, 33, "nginx.service")
RULE = PortOwner("nftables rule", 0, 0)


class ScriptedLookup:
    """Knows what a test says, and remembers when it was asked about what."""

    def __init__(self) -> None:
        self.failures = 0
        self.known: dict[Port, str] = {}
        self.takes = 0.0
        self.asked: list[tuple[float, set[Port]]] = []
        self.questions: list[Question] = []

    async def find(self, questions: Collection[Question]) -> dict[Question, PortOwner]:
        self.asked.append((trio.current_time(), {question.port for question in questions}))
        self.questions += questions
        known = dict(self.known)
        await trio.sleep(self.takes)
        return {one: replace(one.owner, unit=known[one.port]) for one in questions if one.port in known}


@asynccontextmanager
async def names() -> AsyncIterator[tuple[ContainerNames, ScriptedLookup, list[Mapping[Port, PortOwner]]]]:
    lookup = ScriptedLookup()
    told: list[Mapping[Port, PortOwner]] = []
    asking = ContainerNames(lookup, named=told.append, inodes=lambda port: frozenset({port.number}))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asking.run)
        await trio.sleep(100)
        yield asking, lookup, told
        nursery.cancel_scope.cancel()


def times(lookup: ScriptedLookup, since: float) -> list[float]:
    return [round(when - since, 3) for when, _ in lookup.asked]


async def test_a_name_is_told_later_and_known_from_then_on(autojump_clock: trio.testing.MockClock) -> None:
    async with names() as (asking, lookup, told):
        lookup.known = {WEB: "docker/web"}
        began = trio.current_time()
        assert asking.take(WEB, PROXY, "") == PROXY
        await trio.sleep(60)
        named = replace(PROXY, unit="docker/web")
        assert told == [{WEB: named}]
        assert times(lookup, began) == [PAUSES[0]]
        assert asking.take(WEB, PROXY, "") == named
        await trio.sleep(60)
        assert asking.rounds == 1


async def test_an_ordinary_port_asks_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with names() as (asking, lookup, told):
        assert asking.take(WEB, NGINX, "") == NGINX
        assert asking.take(OTHER, RULE, "") == RULE  # leads to the guest itself
        await trio.sleep(60)
        assert (lookup.asked, told, asking.rounds) == ([], [], 0)


async def test_it_is_asked_again_while_the_container_starts_and_then_no_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with names() as (asking, lookup, told):
        asking.take(WEB, PROXY, "")
        began = trio.current_time()
        await trio.sleep(100)
        assert times(lookup, began) == [round(sum(PAUSES[: count + 1]), 3) for count in range(len(PAUSES))]
        asking.take(WEB, PROXY, "")
        await trio.sleep(100)
        assert len(lookup.asked) == len(PAUSES)
        assert not told


async def test_a_container_that_runs_half_a_minute_after_its_port_has_opened_gets_its_name(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """As seen with Docker in a guest under emulation whose host was busy: 14 s, and more are possible."""
    async with names() as (asking, lookup, told):
        asking.take(WEB, PROXY, "")
        await trio.sleep(30)
        lookup.known = {WEB: "docker/web"}
        await trio.sleep(30)
        assert told == [{WEB: replace(PROXY, unit="docker/web")}]


async def test_a_burst_is_one_round(autojump_clock: trio.testing.MockClock) -> None:
    async with names() as (asking, lookup, told):
        ports = {Port(Protocol.TCP, "0.0.0.0", number) for number in range(1, 100)}
        lookup.known = dict.fromkeys(ports, "docker/web")
        for port in ports:
            asking.take(port, PROXY, "")
            await trio.sleep(0.001)
        await trio.sleep(60)
        assert [asked for _, asked in lookup.asked] == [ports]
        assert len(told) == 1


async def test_a_storm_costs_a_fifth_of_the_time(autojump_clock: trio.testing.MockClock) -> None:
    async with names() as (asking, lookup, _):
        lookup.takes = 0.5
        for count in range(1_000):
            asking.take(WEB, replace(PROXY, pid=count + 1), "")
            await trio.sleep(0.1)
        assert len(lookup.asked) <= 100 / (5 * lookup.takes) + 1
        lookup.asked.clear()
        lookup.takes = 2 * LONGEST_REST
        await trio.sleep(100)
        assert lookup.asked  # the last one is asked about in any case


async def test_another_owner_or_target_is_another_question(autojump_clock: trio.testing.MockClock) -> None:
    async with names() as (asking, lookup, told):
        nat = replace(WEB, kind=PortKind.NAT)
        lookup.known = {WEB: "docker/web", nat: "docker/web"}
        asking.take(WEB, PROXY, "")
        asking.take(nat, RULE, "172.17.0.2")
        await trio.sleep(60)
        lookup.known = {WEB: "docker/new", nat: "docker/new"}
        successor = replace(PROXY, pid=6)
        assert asking.take(WEB, successor, "") == successor
        assert asking.take(nat, RULE, "172.17.0.3") == RULE
        await trio.sleep(60)
        assert told[-1] == {WEB: replace(successor, unit="docker/new"), nat: replace(RULE, unit="docker/new")}
        assert lookup.questions[-1].address == "172.17.0.3"


async def test_an_answer_about_what_has_changed_meanwhile_is_not_told(autojump_clock: trio.testing.MockClock) -> None:
    async with names() as (asking, lookup, told):
        lookup.known = {WEB: "docker/old", OTHER: "docker/gone"}
        lookup.takes = 1.0
        asking.take(WEB, PROXY, "")
        asking.take(OTHER, PROXY, "")
        await trio.sleep(0.5)
        lookup.known = {WEB: "docker/new"}
        asking.take(WEB, replace(PROXY, pid=6), "")
        asking.forget(OTHER)
        await trio.sleep(60)
        assert told == [{WEB: PortOwner("docker-proxy", 6, 0, "docker/new")}]


async def test_a_port_that_another_program_takes_over_is_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    async with names() as (asking, lookup, told):
        lookup.known = {WEB: "docker/web"}
        asking.take(WEB, PROXY, "")
        assert asking.take(WEB, NGINX, "") == NGINX
        await trio.sleep(60)
        assert (lookup.asked, told) == ([], [])


async def test_a_failure_shows_what_was_shown(autojump_clock: trio.testing.MockClock) -> None:
    async with names() as (asking, lookup, told):
        lookup.failures = 3
        assert asking.take(WEB, PROXY, "") == PROXY
        await trio.sleep(60)
        assert asking.take(WEB, PROXY, "") == PROXY
        assert asking.failures == 3
        assert not told
