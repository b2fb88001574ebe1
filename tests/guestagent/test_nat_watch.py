"""The watch over the rules: bounded under storms, right in the end, and never "all closed" because of a failure."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
import trio.testing

from guestagent.nat_contents import RawRules
from guestagent.nat_ports import NO_PORTS, NatPorts
from guestagent.nat_reader import RulesChangingError, RulesTooLargeError
from guestagent.nat_watch import LONGEST_REST, POLL_TICK, SHORTEST_REST, TICK, NatWatch, RuleReader
from guestagent.netlink import KernelDataError
from tests.guestagent.nat_rule_sets import captures, interpret

CAPTURES = captures()
DOCKER, PORTMAP = (CAPTURES[f"{name}.iptables by iptables-nft"] for name in ("docker", "portmap"))


class FakeKernel:
    """Rules that a test changes, or that cannot be read."""

    def __init__(self, rules: RawRules) -> None:
        self.rules = rules
        self.failure: Exception | None = None
        self.during_read: Callable[[], object] = lambda: None

    async def read(self) -> tuple[RawRules, float]:
        rules = self.rules
        await trio.lowlevel.checkpoint()
        self.during_read()
        if self.failure:
            raise self.failure
        return rules, 0.0


class Recorder:
    """What the watch told, with the watch itself."""

    def __init__(self, kernel: RuleReader, *, covered: bool = True) -> None:
        self.told: list[NatPorts] = []
        self.watch = NatWatch(self._tell, covered=lambda: covered, reader=kernel)
        self._news = trio.Event()

    def _tell(self, ports: NatPorts) -> None:
        self.told.append(ports)
        self._news.set()
        self._news = trio.Event()

    async def until(self, ports: NatPorts) -> None:
        while not self.told or self.told[-1] != ports:
            await self._news.wait()


@asynccontextmanager
async def running(recorder: Recorder) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recorder.watch.run)
        yield
        nursery.cancel_scope.cancel()


async def test_rules_are_told_at_once_and_again_when_they_change(autojump_clock: trio.testing.MockClock) -> None:
    kernel = FakeKernel(DOCKER)
    recorder = Recorder(kernel)
    async with running(recorder):
        await recorder.until(interpret(DOCKER))
        kernel.rules = PORTMAP
        recorder.watch.wake()
        await recorder.until(interpret(PORTMAP))
        kernel.rules = RawRules(PORTMAP.generation + 1)
        recorder.watch.wake()
        await recorder.until(NO_PORTS)
    assert len(recorder.told) == 3
    assert recorder.watch.report().live


async def test_the_same_ports_are_told_once(autojump_clock: trio.testing.MockClock) -> None:
    kernel = FakeKernel(DOCKER)
    recorder = Recorder(kernel)
    async with running(recorder):
        await recorder.until(interpret(DOCKER))
        for generation in range(5):
            kernel.rules = replace(DOCKER, generation=1000 + generation)
            recorder.watch.wake()
            await trio.sleep(LONGEST_REST)
    assert len(recorder.told) == 1
    assert recorder.watch.counters().reads == 6


async def test_a_storm_of_changes_is_a_bounded_number_of_reads_and_the_last_change_counts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    kernel = FakeKernel(DOCKER)
    recorder = Recorder(kernel)
    storm = 5.0
    async with running(recorder):
        begin = trio.current_time()
        number = 0
        while trio.current_time() < begin + storm:
            number += 1
            kernel.rules = replace((DOCKER, PORTMAP)[number % 2], generation=number)
            recorder.watch.wake()
            await trio.sleep(0.001)
        kernel.rules = PORTMAP
        recorder.watch.wake()
        await recorder.until(interpret(PORTMAP))
        await trio.sleep(TICK / 2)
    assert len(recorder.told) > 2
    assert recorder.told[-1] == interpret(PORTMAP)
    assert recorder.watch.counters().reads <= storm / SHORTEST_REST + 3


async def test_a_change_during_a_read_leads_to_another_read(autojump_clock: trio.testing.MockClock) -> None:
    kernel = FakeKernel(DOCKER)
    recorder = Recorder(kernel)

    def change() -> None:
        kernel.rules = PORTMAP
        recorder.watch.wake()
        kernel.during_read = lambda: None

    kernel.during_read = change
    async with running(recorder):
        await recorder.until(interpret(PORTMAP))
    assert recorder.told == [interpret(DOCKER), interpret(PORTMAP)]


FAILURES = {
    "refused": (PermissionError(errno.EPERM, "no"), "not permitted"),
    "unreadable": (KernelDataError("half a message"), "half a message"),
    "too large": (RulesTooLargeError("more than 32 MiB"), "32 MiB"),
    "changing": (RulesChangingError("under 4 attempts"), "4 attempts"),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_failed_read_closes_nothing_and_says_why(failure: str, autojump_clock: trio.testing.MockClock) -> None:
    kernel = FakeKernel(DOCKER)
    recorder = Recorder(kernel)
    async with running(recorder):
        await recorder.until(interpret(DOCKER))
        kernel.failure, words = FAILURES[failure]
        recorder.watch.wake()
        await trio.sleep(1)
        report = recorder.watch.report()
        assert not report.live
        assert words in report.reason
        assert recorder.watch.counters().failed_reads >= 1
        assert recorder.told == [interpret(DOCKER)]
        kernel.failure, kernel.rules = None, PORTMAP
        recorder.watch.wake()
        await recorder.until(interpret(PORTMAP))
        assert recorder.watch.report().live


async def test_rules_that_are_changing_all_the_time_are_tried_again_without_a_wakeup(
    autojump_clock: trio.testing.MockClock,
) -> None:
    kernel = FakeKernel(DOCKER)
    kernel.failure = RulesChangingError("again")
    recorder = Recorder(kernel)
    async with running(recorder):
        await trio.sleep(1)
        kernel.failure = None
        with trio.fail_after(TICK / 2):
            await recorder.until(interpret(DOCKER))


@pytest.mark.parametrize(("covered", "tick"), [(True, TICK), (False, POLL_TICK)])
async def test_what_no_event_announced_is_found_by_a_tick(
    covered: bool, tick: float, autojump_clock: trio.testing.MockClock
) -> None:
    kernel = FakeKernel(DOCKER)
    recorder = Recorder(kernel, covered=covered)
    async with running(recorder):
        await recorder.until(interpret(DOCKER))
        kernel.rules = PORTMAP
        began = trio.current_time()
        await recorder.until(interpret(PORTMAP))
        assert tick - 0.1 <= trio.current_time() - began <= tick + LONGEST_REST


async def test_what_is_left_out_is_named(autojump_clock: trio.testing.MockClock) -> None:
    rules = CAPTURES["by_hand.iptables by iptables-nft"]
    recorder = Recorder(FakeKernel(rules))
    async with running(recorder):
        await recorder.until(interpret(rules))
    assert set(recorder.watch.skipped()) == {"match ttl", "a translation of more than 1024 ports"}
