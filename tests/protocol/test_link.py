"""The pump over the fake link: short reads, late back-pressure, an absent host, stale bytes, time."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol import limits
from protocol.connection import GenerationEnded, GenerationStarted, Role
from protocol.framing import Preamble, PreambleKind
from protocol.link import Link
from protocol.messages import PortsChanged
from protocol.ports import Port, Protocol
from protocol.stream_messages import Data, StreamKind
from tests.fakes.link import LATE, PAGE, TO_GUEST, FakeLink
from tests.protocol.pair import TARGET
from tests.protocol.tunnel import Agent, tunnel

CHANGE = PortsChanged((Port(Protocol.TCP, "0.0.0.0", 80),), ())


async def test_a_message_leaves_with_the_flush(autojump_clock: trio.testing.MockClock) -> None:
    async with tunnel() as both:
        writes = both.link.guest.writes
        both.guest.connection.send(CHANGE)
        assert both.link.guest.writes == writes
        both.guest.flush()
        assert both.link.guest.writes == writes + 1
        await both.host.news.wait()
        assert both.host.heard[-1] == CHANGE


async def test_an_idle_link_does_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with tunnel() as both:
        host = both.link.host
        assert host is not None
        await wait_all_tasks_blocked()
        reads, writes = host.reads + both.link.guest.reads, host.writes + both.link.guest.writes
        await trio.sleep(60.0)
        await wait_all_tasks_blocked()
        # Two PINGs and two PONGs in each period of silence, and no more.
        periods = 60.0 / limits.PING_AFTER
        assert host.writes + both.link.guest.writes - writes <= 4 * periods
        assert host.reads + both.link.guest.reads - reads <= 8 * periods


def fill(agent: Agent, streams: int) -> int:
    """Queue far more than the link takes; returns how many bytes."""
    connection = agent.connection
    for _ in range(streams):
        flow = connection.open_stream(StreamKind.UDP, TARGET)
        while connection.send_data(flow, bytes(60_000)):
            pass
    agent.flush()
    return sum(flow.counters.sent for flow in connection.streams) * 60_000


async def test_a_link_that_takes_no_more_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    async with tunnel() as both:
        host = both.link.host
        assert host is not None
        total = fill(both.host, 4)
        assert len(both.link.to_guest) == TO_GUEST
        writes = host.writes
        both.host.flush()  # blocked: it is not asked again
        assert host.writes == writes
        heard = 0
        while heard < total:
            await both.guest.news.wait()
            heard = sum(len(event.payload) for event in both.guest.heard if isinstance(event, Data))
        # The guest reads a page at a time, so the host is woken that often at most, to write a page or find no room.
        assert host.writes < 3 * total / PAGE


async def test_the_guest_blocks_late_and_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    async with tunnel() as both:
        total = fill(both.guest, 12)
        assert total > LATE
        assert len(both.link.to_host) == LATE
        heard = 0
        while heard < total:
            await both.host.news.wait()
            heard = sum(len(event.payload) for event in both.host.heard if isinstance(event, Data))
        assert both.host.connection.running


async def test_the_host_goes_away_and_comes_back(autojump_clock: trio.testing.MockClock) -> None:
    async with tunnel() as both:
        for cycle in range(2, 12):
            fill(both.guest, 2)
            fill(both.host, 2)
            both.link.cut(keep_to_host=None if cycle % 2 else 100_000, keep_to_guest=None if cycle % 3 else 70)
            await both.host.until_started(cycle)
            await both.guest.until_started(cycle)
        assert trio.current_time() < 60.0


async def test_a_lost_middle_is_survived(autojump_clock: trio.testing.MockClock) -> None:
    async with tunnel() as both:
        for lane, sender in ((both.link.to_host, both.guest), (both.link.to_guest, both.host)):
            count = len([event for event in both.host.heard if isinstance(event, GenerationStarted)])
            fill(sender, 2)
            both.link.lose(lane, 10_000, 777)
            await both.host.until_started(count + 1)
            await both.guest.until_started(count + 1)


async def test_an_absent_host_costs_no_spinning(autojump_clock: trio.testing.MockClock) -> None:
    """Poll says ready at once and for ever; the pump ends at the first empty read, with something to write or not."""
    async with trio.open_nursery() as nursery:
        agent = Agent(FakeLink(), Role.GUEST, nursery)
        nursery.start_soon(agent.run)
        await trio.sleep(10.0)
        device = agent.link.guest
        assert 90 <= device.reads <= 110
        assert device.writes <= 2 * device.reads
        nursery.cancel_scope.cancel()


async def test_a_silent_peer_is_given_up_in_time(autojump_clock: trio.testing.MockClock) -> None:
    async with tunnel() as both:
        start = trio.current_time()
        both.link.guest.write = len  # type: ignore[method-assign, assignment]  # all that it says is lost
        while not isinstance(both.host.heard[-1], GenerationEnded):
            await both.host.news.wait()
        assert both.host.heard[-1] == GenerationEnded("the peer has been silent", False)
        assert trio.current_time() - start <= limits.PING_AFTER + limits.PONG_WITHIN + 5.0


@pytest.mark.parametrize("task", ["read", "write", "write while the device is full", "keep_time"])
async def test_cancelled_at_each_await_and_started_again(task: str, autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        link = FakeLink()
        host = Agent(link, Role.HOST, nursery)
        pump = host.pump = Link(host.connection, link.connect(), link.waits, host.dispatch, host.unpaused)
        host.connection.connected(trio.current_time())
        pump.flush()
        if task.endswith("full"):
            for _ in range(3):
                host.connection.handle_time(host.connection.deadline)  # asks again, with another flush
                pump.flush()
            assert len(link.to_guest) == TO_GUEST
        for _ in range(2):
            async with trio.open_nursery() as inner:
                inner.start_soon(getattr(pump, task.split()[0]))
                await wait_all_tasks_blocked()
                inner.cancel_scope.cancel()
        for run in (pump.read, pump.write, pump.keep_time):
            nursery.start_soon(run)
        guest = Agent(link, Role.GUEST, nursery)
        nursery.start_soon(guest.run)
        await host.until_started()
        await guest.until_started()
        nursery.cancel_scope.cancel()


async def test_a_deadline_that_comes_earlier_wakes_the_timer(autojump_clock: trio.testing.MockClock) -> None:
    """The timer sleeps until the next PING is due when the guest says LOST, and the host's question is lost."""
    async with tunnel() as both:
        await trio.sleep(1.5 * limits.SYNC_RETRY)  # the timer has forgotten when it would have asked again
        start = trio.current_time()
        host = both.link.host
        assert host is not None
        host.write = len  # type: ignore[method-assign, assignment]
        both.link.to_host += Preamble(PreambleKind.LOST, bytes(16)).encode()
        both.link.changed.unpark_all()
        await wait_all_tasks_blocked()
        assert isinstance(both.host.heard[-1], GenerationEnded)
        del host.write
        await both.host.until_started(2)
        assert trio.current_time() - start == pytest.approx(limits.SYNC_RETRY)
