"""Faults of the link and of the guest agent, with the host's side in this process: its tasks can be counted.

A series does one kind of fault again and again, under checked traffic and while ports come and go. The same seed gives
the same faults in the same order; what they hit is the machine's doing.
"""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from hostagent.forwards import ForwardState
from tests.e2e.host_side import HostSide, breakable_host_side, port_number
from tests.e2e.server_control import GuestServer
from tests.e2e.wire import Wire
from tests.faults.footprint import guest_by_host_side, listening_ports, own_footprint, settled, wanted_listeners
from tests.faults.instance import FORWARDING
from tests.faults.link_faults import drawn, inflict
from tests.faults.open_ports import OpenPorts
from tests.faults.outcome import Outcome
from tests.faults.traffic import Served, Traffic, guest_problems, serve, traffic

PROMISED = 2.0
"""Seconds until the table is right again."""

SUPERVISOR_PROMISED = 10.0
"""The same where Python has to start first, under emulation."""

BOUND = 60.0
"""Seconds after which a fault counts as not healed at all."""

BATCH = 50
"""Faults between two looks at what the agents hold at rest."""

ALL = ("downloaded", "uploaded", "exchanges", "datagrams")
UDP_PORT = 18_053

Fault = Callable[["Series"], Awaitable[None]]


class Series:
    """Faults, one after the other, on a host's side and its guest."""

    def __init__(self, host: HostSide, wire: Wire, server: GuestServer, served: Served, seed: int) -> None:
        self.host = host
        self.wire = wire
        self.server = server
        self.ports = OpenPorts(server, served)
        self.rng = random.Random(seed)
        self._served = served
        self._seed = seed

    async def batch(self, fault: Fault, count: int, outcome: Outcome) -> None:
        """`count` faults under traffic; afterwards nothing is left but the listeners."""
        # An agent that is told to end, as that of a killed supervisor is, takes its forwards along.
        refused = fault is supervisor_killed
        async with traffic(self._served, self._seed + len(outcome.back), may_be_refused=refused) as clients:
            await clients.more(*ALL)
            for _ in range(count):
                await self._round(fault, clients, outcome)
        outcome.seen += clients.seen
        outcome.problems += clients.problems
        generations = self.host.generations
        self.wire.cut()  # else the flows of UDP clients that are gone would be kept until they have been idle
        await self.ports.calm()
        await self.host.ready(after=generations, seconds=BOUND)
        await self.host.wait_until(self.table_is_right, BOUND)

    async def _round(self, fault: Fault, clients: Traffic, outcome: Outcome) -> None:
        """Do `fault`, wait until the table is right and all traffic flows."""
        generations = self.host.generations
        await fault(self)
        happened = trio.current_time()
        await self.host.ready(after=generations, seconds=BOUND)
        await self.host.wait_until(self.table_is_right, BOUND)
        outcome.back.append(trio.current_time() - happened)
        with trio.fail_after(BOUND):
            await clients.more(*ALL)
        if astray := listening_ports(os.getpid()) ^ wanted_listeners(self.ports.expected):
            outcome.problems.append(f"fault {len(outcome.back)}: listeners {sorted(astray)} are stale or missing")

    def table_is_right(self) -> bool:
        """Whether every port that is open is forwarded, and no other."""
        states = {
            (str(forward.protocol), port_number(forward.guest)): forward.state
            for forward in self.host.forwarder.forwards
            if forward.state is not ForwardState.IGNORED
        }
        return states == dict.fromkeys(self.ports.expected, ForwardState.LISTENING)


async def link_fault(series: Series) -> None:
    """The next fault of the link, somewhere in the traffic."""
    fault = drawn(series.rng)
    await trio.sleep(fault.pause)
    async with trio.open_nursery() as nursery:
        if fault.churn:
            nursery.start_soon(series.ports.churn, series.rng)
        with trio.fail_after(BOUND):
            await inflict(series.wire, fault)


async def guest_agent_killed(series: Series) -> None:
    """kill -9 of the guest agent; its supervisor starts it again."""
    await _kill(series, "pid")


async def supervisor_killed(series: Series) -> None:
    """kill -9 of the supervisor; the agent ends too, and what systemd is elsewhere starts both again."""
    await _kill(series, "parent")


async def _kill(series: Series, which: str) -> None:
    await trio.sleep(series.rng.uniform(0.0, 0.5))
    agent = await series.server.agent()
    await series.server.run(f"kill -9 {agent[which]}")
    if series.rng.random() < 0.5:
        await series.ports.churn(series.rng)


FAULTS: dict[Fault, tuple[str, float]] = {
    link_fault: ("link cut, in mid-frame too, with stale, lost and wrong bytes", PROMISED),
    guest_agent_killed: ("guest agent killed (kill -9)", PROMISED),
    supervisor_killed: ("supervisor of the guest agent killed (kill -9)", SUPERVISOR_PROMISED),
}
"""Each fault in words, and what is promised."""


async def run_series(fault: Fault, count: int, channel: Path, server: GuestServer, seed: int) -> Outcome:
    """Do `fault` `count` times, in batches between which both agents must come to rest. Stops at the first problem."""
    outcome = Outcome(*FAULTS[fault])
    served = await serve(server, UDP_PORT)
    async with breakable_host_side(channel, *FORWARDING.rules) as (host, wire):
        series = Series(host, wire, server, served, seed)
        await host.wait_until(series.table_is_right)
        await series.batch(link_fault, 2, Outcome("warm-up", PROMISED))
        look_at_guest = guest_by_host_side(server, host)
        before, guest_before = await own_footprint(), await look_at_guest()
        while len(outcome.back) < count and not outcome.problems:
            await series.batch(fault, min(BATCH, count - len(outcome.back)), outcome)
            outcome.problems += await settled(own_footprint, before, "host's side")
            outcome.problems += await settled(look_at_guest, guest_before, "guest agent")
            outcome.problems += await guest_problems(server)
        await series.ports.close()
        await host.wait_until(lambda: not listening_ports(os.getpid()))
    return outcome
