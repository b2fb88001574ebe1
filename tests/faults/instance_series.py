"""Faults of whole processes: host agent, guest agent, guest, QEMU, and what they stand on, against a real instance.

Each function does one kind of fault under checked traffic, returns what it showed, and leaves the instance running.
What can be seen from outside only is looked at until it is right.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from hostagent.errors import UserError
from protocol.limits import GUEST_PING_AFTER, PONG_WITHIN
from tests.e2e.server_control import AGENT, GuestServer
from tests.faults.footprint import (
    Footprint,
    Look,
    guest_by_api,
    listening_ports,
    process_footprint,
    settled,
    wanted_listeners,
)
from tests.faults.instance import Instance
from tests.faults.open_ports import OpenPorts
from tests.faults.outcome import Outcome
from tests.faults.traffic import Served, Traffic, guest_problems, serve, traffic

BOUND = 90.0
"""Seconds after which a fault counts as not healed at all."""

LOOK = 0.02
"""Seconds between looks at what nobody tells us."""

FROZEN = GUEST_PING_AFTER + PONG_WITHIN + 2.0
"""Seconds that the host agent is stopped: longer than the guest bears its silence."""

ALL = ("downloaded", "uploaded", "exchanges", "datagrams")
UDP_PORT = 18_054


class InstanceSeries:
    """A running instance with traffic, and what is wrong with it."""

    def __init__(self, victim: Instance, server: GuestServer, served: Served, seed: int) -> None:
        self.victim = victim
        self.server = server
        self.served = served
        self.ports = OpenPorts(server, served)
        self.rng = random.Random(seed)

    async def forwarded(self) -> dict[tuple[str, int], str]:
        """State of each forward that is not ignored; none while there is no host agent."""
        try:
            return await trio.to_thread.run_sync(self.victim.forwarded)
        except UserError:
            return {}

    async def until(self, condition: Callable[[dict[tuple[str, int], str]], bool], seconds: float = BOUND) -> float:
        """Wait until the table fulfils `condition`; trio's time then."""
        with trio.fail_after(seconds):
            while not condition(await self.forwarded()):  # noqa: ASYNC110 - seen from outside
                await trio.sleep(LOOK)
        return trio.current_time()

    async def until_right(self, seconds: float = BOUND) -> float:
        """Wait until every port that is open is forwarded, and no other; trio's time then."""
        return await self.until(lambda table: table == dict.fromkeys(self.ports.expected, "listening"), seconds)

    async def problems(self) -> list[str]:
        """Processes and listeners that there should not be, or that are missing."""
        agent = await trio.to_thread.run_sync(self.victim.host_agent)
        found = []
        processes = {process.pid for process in await trio.to_thread.run_sync(self.victim.at.processes)}
        if orphans := processes - {agent.pid, self.victim.qemu_pid()}:
            found.append(f"processes that belong to nobody: {orphans}")
        if astray := listening_ports(agent.pid) ^ wanted_listeners(self.ports.expected):
            found.append(f"listeners {sorted(astray)} are stale or missing")
        return found

    async def guest_identity(self) -> tuple[str, int, tuple[int, ...]]:
        """Boot, QEMU and guest agent: the same for as long as the guest is untouched."""
        boot = (await self.server.run("cat /proc/sys/kernel/random/boot_id")).output
        agents = await self.server.processes(AGENT)
        return boot, self.victim.qemu_pid(), tuple(agent["pid"] for agent in agents)


@asynccontextmanager
async def in_traffic(
    victim: Instance, seed: int, outcome: Outcome, *, may_be_refused: bool = True
) -> AsyncIterator[tuple[InstanceSeries, Traffic]]:
    """A series under traffic. Afterwards no port is open, and both agents must hold what they held before."""
    async with victim.server() as server:
        agent = await trio.to_thread.run_sync(victim.host_agent)
        host_before, look = process_footprint(agent.pid), guest_by_api(server, victim.api)
        guest_before = await look()
        series = InstanceSeries(victim, server, await serve(server, UDP_PORT), seed)
        await series.until_right()
        async with traffic(series.served, seed, may_be_refused=may_be_refused) as clients:
            await flows_again(clients)
            yield series, clients
        outcome.seen += clients.seen
        outcome.problems += clients.problems
        await series.ports.close()
        await series.until(lambda table: not table)
        if agent.is_running():
            outcome.problems += await settled(host_agent_footprint(agent.pid), host_before, "host agent")
        await trio.to_thread.run_sync(restart_host_agent, victim)  # ends the flows of UDP clients that are gone
        outcome.problems += await settled(look, guest_before, "guest agent")
        outcome.problems += await guest_problems(server)
        outcome.problems += await series.problems()


def host_agent_footprint(pid: int) -> Look:
    """A host agent's."""

    async def look() -> Footprint:
        await trio.lowlevel.checkpoint()
        return process_footprint(pid)

    return look


def restart_host_agent(victim: Instance) -> None:
    """kill -9, and `hostagent up`."""
    victim.kill_host_agent()
    victim.up()


async def flows_again(clients: Traffic) -> None:
    """Wait until all traffic flows."""
    with trio.fail_after(BOUND):
        await clients.more(*ALL)


async def host_agents_killed(victim: Instance, seed: int, count: int) -> list[Outcome]:
    """kill -9 of the host agent, then `hostagent up`, which is killed in its turn now and then."""
    outcome = Outcome("host agent killed, then `hostagent up`", 5.0)
    async with in_traffic(victim, seed, outcome) as (series, clients):
        identity = await series.guest_identity()
        qemu = process_footprint(victim.qemu_pid())
        while len(outcome.back) < count and not outcome.problems:
            await trio.sleep(series.rng.uniform(0.0, 0.5))
            await trio.to_thread.run_sync(victim.kill_host_agent)
            if series.rng.random() < 0.5:
                await series.ports.churn(series.rng)
            if series.rng.random() < 0.2:
                outcome.problems += await _killed_up(victim, series.rng.uniform(0.0, 0.6))
            began = trio.current_time()
            await trio.to_thread.run_sync(victim.up)
            outcome.back.append(await series.until_right() - began)
            await flows_again(clients)
            outcome.problems += await series.problems()
            if (now := await series.guest_identity()) != identity:
                outcome.problems.append(f"the guest was touched: {now}, {identity} before")
        outcome.problems += process_footprint(victim.qemu_pid()).leaks(qemu, "QEMU")
    return [outcome]


async def _killed_up(victim: Instance, after: float) -> list[str]:
    """`hostagent up` whose host agent is killed `after` seconds; what was wrong about how it told that."""
    up = victim.at.start("up", victim.paths.name, "--json")
    with up:
        with trio.move_on_after(after):
            await trio.sleep_forever()
        if await trio.to_thread.run_sync(victim.is_running):
            await trio.to_thread.run_sync(victim.kill_host_agent)
        _, errors = await trio.to_thread.run_sync(up.communicate)
    if up.returncode == 0:  # it was quicker, and may still be there
        if await trio.to_thread.run_sync(victim.is_running):
            await trio.to_thread.run_sync(victim.kill_host_agent)
        return []
    return [] if up.returncode == 1 and b"Traceback" not in errors else [f"up: {up.returncode}, {errors.decode()}"]


REBOOTS = {
    "reboot": "reboot -f",
    "panic": "echo c > /proc/sysrq-trigger",  # the tiny guest's kernel has panic=-1: it boots anew at once
}


async def guest_reboots(victim: Instance, seed: int, count: int) -> list[Outcome]:
    """The guest boots anew, because it was told to or because its kernel panicked."""
    gone, back = Outcome("guest reboot or panic: forwards gone", 1.0), Outcome("the same: forwards back", 2.0)
    rng = random.Random(seed)
    for number in range(count + 1):
        async with victim.server() as server:
            series = InstanceSeries(victim, server, await serve(server, UDP_PORT), seed + number)
            began = trio.current_time()
            right = await series.until_right()
            if number:
                hello = right - await trio.to_thread.run_sync(seconds_since_hello, victim)
                back.back.append(right - max(began, hello))
                back.problems += await series.problems()
            if number < count:
                await _reboot(series, rng.choice(list(REBOOTS)), gone)
            else:
                await series.ports.close()
                await series.until(lambda table: not table)
    return [gone, back]


async def _reboot(series: InstanceSeries, way: str, gone: Outcome) -> None:
    """Reboot the guest under traffic; returns when none of its forwards is there any more."""
    async with traffic(series.served, series.rng.getrandbits(32), may_be_refused=True) as clients:
        await flows_again(clients)
        await series.server.run(f"(usleep 200000; {REBOOTS[way]}) >/dev/null 2>&1 &")
        began = trio.current_time() + 0.2
        gone.back.append(max(0.0, await series.until(lambda table: not table) - began))
        agent = await trio.to_thread.run_sync(series.victim.host_agent)
        if stale := listening_ports(agent.pid):
            gone.problems.append(f"{way}: the listeners {sorted(stale)} are stale")
    gone.seen += clients.seen
    gone.problems += clients.problems


def seconds_since_hello(victim: Instance) -> float:
    """How long ago the guest agent came the last time."""
    *_, last = (event for event in victim.api.events() if event.get("agent") == "present")
    return time.time() - float(last["time"])


async def agents_frozen(victim: Instance, seed: int) -> list[Outcome]:
    """SIGSTOP of each agent for longer than its silence is borne."""
    outcomes = [Outcome("guest agent stopped (SIGSTOP)", 2.0), Outcome("host agent stopped (SIGSTOP)", 2.0)]
    for outcome in outcomes:
        async with in_traffic(victim, seed, outcome) as (series, clients):
            if outcome is outcomes[0]:
                pid = (await series.server.agent())["pid"]
                await series.server.run(f"kill -STOP {pid}")
                await series.until(lambda table: set(table.values()) == {"stalled"})
                await series.ports.churn(series.rng)
                await series.server.run(f"kill -CONT {pid}")
            else:
                agent = await trio.to_thread.run_sync(victim.host_agent)
                agent.send_signal(signal.SIGSTOP)
                await trio.sleep(FROZEN)
                await series.ports.churn(series.rng)
                agent.send_signal(signal.SIGCONT)
            began = trio.current_time()
            outcome.back.append(await series.until_right() - began)
            await flows_again(clients)
    return outcomes
