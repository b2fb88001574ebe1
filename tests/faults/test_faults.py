"""The short form: each fault a few times, on one instance. `python -m tests.faults` is the long one."""

from __future__ import annotations

import pytest

from tests.faults.channel_series import Fault, guest_agent_killed, link_fault, run_series, supervisor_killed
from tests.faults.instance import Instance
from tests.faults.instance_series import agents_frozen, guest_reboots, host_agents_killed
from tests.faults.outcome import Outcome
from tests.faults.surroundings_series import clock_jumps, full_disk, guest_hangs, qemu_killed

pytestmark = [pytest.mark.tiny_guest, pytest.mark.timeout(400)]

SEED = 1
BUSY = 15.0
"""How much later than promised things may be on a machine that is busy with something else. The figures of a run of
its own are in RESULTS.md."""


def judge(*outcomes: Outcome) -> None:
    """No problem, and nothing much later than promised."""
    for outcome in outcomes:
        print(f"{outcome.fault}: {[round(seconds, 2) for seconds in outcome.back]}, {dict(outcome.seen)}")
    assert [problem for outcome in outcomes for problem in outcome.problems] == []
    late = {outcome.fault: outcome.back for outcome in outcomes if max(outcome.back) > BUSY + outcome.promised}
    assert late == {}


@pytest.mark.parametrize(("fault", "count"), [(link_fault, 25), (guest_agent_killed, 5), (supervisor_killed, 1)])
async def test_the_link_and_the_guest_agent(without_host_agent: Instance, fault: Fault, count: int) -> None:
    async with without_host_agent.server() as server:
        judge(await run_series(fault, count, without_host_agent.paths.channel_socket, server, SEED))


async def test_the_host_agent_is_killed(victim: Instance) -> None:
    judge(*await host_agents_killed(victim, SEED, 5))


async def test_the_guest_boots_anew(victim: Instance) -> None:
    judge(*await guest_reboots(victim, SEED, 2))


async def test_agents_stop_for_a_while(victim: Instance) -> None:
    judge(*await agents_frozen(victim, SEED))


async def test_the_hosts_clock_jumps(victim: Instance) -> None:
    judge(*await clock_jumps(victim, SEED))


async def test_the_disk_under_the_log_is_full(victim: Instance) -> None:
    judge(*await full_disk(victim, SEED))


async def test_the_guest_panics_and_stays_so(victim: Instance) -> None:
    judge(*await guest_hangs(victim, SEED))


async def test_qemu_is_killed(victim: Instance) -> None:
    judge(*await qemu_killed(victim, SEED))
