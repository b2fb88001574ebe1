"""Faults of what an instance stands on: QEMU, the guest's kernel, the host's clock, the disk under the logs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import trio

from protocol.limits import PING_AFTER, PONG_WITHIN
from tests.e2e.clients import eventually
from tests.e2e.server_control import GuestServer
from tests.faults.instance import Instance
from tests.faults.instance_series import InstanceSeries, flows_again, in_traffic
from tests.faults.jumping_clock import CLOCK_FILE
from tests.faults.outcome import Outcome
from tests.faults.traffic import serve, traffic

UDP_PORT = 18_055
JUMPS = (3_600.0, -86_400.0, 0.0)
"""Seconds by which the host's clock is off, one after the other."""

CLOCK_SECONDS = 20.0
"""Bound on the guest's clock following."""


async def qemu_killed(victim: Instance, seed: int) -> list[Outcome]:
    """kill -9 of QEMU: all ends, and the instance can be started again."""
    outcome = Outcome("QEMU killed: all ends", 2.0)
    async with victim.server() as server:
        series = InstanceSeries(victim, server, await serve(server, UDP_PORT), seed)
        await series.until_right()
        async with traffic(series.served, seed, may_be_refused=True) as clients:
            await flows_again(clients)
            began = trio.current_time()
            await trio.to_thread.run_sync(victim.kill_qemu)
            outcome.back.append(trio.current_time() - began)
            await clients.more("refused")
        outcome.seen += clients.seen
        outcome.problems += clients.problems
    outcome.problems += await trio.to_thread.run_sync(what_is_left, victim)
    await trio.to_thread.run_sync(victim.start)
    return [outcome]


async def guest_hangs(victim: Instance, seed: int) -> list[Outcome]:
    """A kernel that panics and stays there: forwards are stalled, and the instance can be ended and started again."""
    promised = PING_AFTER + PONG_WITHIN + 5.0
    outcome = Outcome("guest panic without a reboot: forwards stalled", promised)
    async with victim.server() as server:
        series = InstanceSeries(victim, server, await serve(server, UDP_PORT), seed)
        await series.until_right()
        async with traffic(series.served, seed, may_be_refused=False) as clients:
            await flows_again(clients)
            await server.run("echo 0 > /proc/sys/kernel/panic")
            await server.run("(usleep 200000; echo c > /proc/sysrq-trigger) >/dev/null 2>&1 &")
            began = trio.current_time() + 0.2
            stalled = dict.fromkeys(series.ports.expected, "stalled")
            outcome.back.append(await series.until(lambda table: table == stalled) - began)
        outcome.seen += clients.seen
        outcome.problems += clients.problems
    await trio.to_thread.run_sync(partial(victim.at.run, "down", "--force"))
    outcome.problems += await trio.to_thread.run_sync(what_is_left, victim)
    await trio.to_thread.run_sync(victim.start)
    return [outcome]


def what_is_left(victim: Instance) -> list[str]:
    """Of an instance that is off."""
    victim.wait_without_agent()
    (listed,) = victim.at.document("list")["instances"]
    left = [f"process {process}" for process in victim.at.processes()]
    return left + ([] if listed["state"] == "stopped" else [f"state {listed['state']}: {listed['error']}"])


async def clock_jumps(victim: Instance, seed: int) -> list[Outcome]:
    """The host's clock is set while all goes on: the guest's follows, and nothing else changes."""
    outcome = Outcome("host clock jumps: the guest's follows", CLOCK_SECONDS)
    clock = Path(victim.at.home).with_name("clock")
    await trio.to_thread.run_sync(victim.kill_host_agent)
    with _jumping(victim, clock):
        async with in_traffic(victim, seed, outcome, may_be_refused=False) as (series, clients):
            for offset in JUMPS:
                clock.write_text(str(offset))
                began = trio.current_time()
                await eventually(partial(_guest_has_time, series.server, offset), CLOCK_SECONDS * 3)
                outcome.back.append(trio.current_time() - began)
                await flows_again(clients)
                await series.ports.churn(series.rng)
                await series.until_right()
    return [outcome]


async def _guest_has_time(server: GuestServer, offset: float) -> bool:
    """Whether the guest's clock is that of the host and `offset` seconds, to the second."""
    return abs(time.time() + offset - float((await server.run("date +%s")).output)) <= 2


@contextmanager
def _jumping(victim: Instance, clock: Path) -> Iterator[None]:
    """Inside the block the host agent has the clock that the file says."""
    clock.write_text("0")
    ordinary = victim.starter, victim.environment
    victim.starter, victim.environment = ("-m", "tests.faults.jumping_clock"), {CLOCK_FILE: str(clock)}
    victim.start()
    try:
        yield
    finally:
        victim.starter, victim.environment = ordinary


async def full_disk(victim: Instance, seed: int) -> list[Outcome]:
    """Not a byte more fits the logs of the host agent and of QEMU: that costs lines of them and nothing else."""
    outcome = Outcome("full disk under the logs", 5.0)
    logs = (victim.paths.agent_log, victim.paths.serial_log)
    async with in_traffic(victim, seed, outcome, may_be_refused=False) as (series, clients):
        with _no_room([await trio.to_thread.run_sync(victim.host_agent), psutil.Process(victim.qemu_pid())]):
            before = [log.stat().st_size for log in logs]
            for _ in range(10):
                began = trio.current_time()
                await series.ports.churn(series.rng)
                await series.server.run("echo the disk is full > /dev/ttyS0")
                outcome.back.append(await series.until_right() - began)
            await flows_again(clients)
            outcome.problems += await series.problems()
            if before != [log.stat().st_size for log in logs]:
                outcome.problems.append("the disk was not full")
        await series.ports.churn(series.rng)
        await series.server.run("echo there is room again > /dev/ttyS0")
        await series.until_right()
        await eventually(partial(_all_larger, logs, before), CLOCK_SECONDS)
    return [outcome]


async def _all_larger(logs: Sequence[Path], before: Sequence[int]) -> bool:
    """Whether something was written to each."""
    return all(log.stat().st_size > size for log, size in zip(logs, before, strict=True))


@contextmanager
def _no_room(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """Inside the block no file grows that they write to. That they hear EFBIG, and not ENOSPC, makes no difference."""
    limits = [process.rlimit(psutil.RLIMIT_FSIZE) for process in processes]
    for process, (_, hard) in zip(processes, limits, strict=True):
        process.rlimit(psutil.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        for process, limit in zip(processes, limits, strict=True):
            process.rlimit(psutil.RLIMIT_FSIZE, limit)
