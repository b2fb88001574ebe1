"""What 5,000 forwards cost: a listing, and nothing while nothing happens.

CPU times, not seconds on a clock: other programs may have the machine meanwhile.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest
import trio

from hostagent import agent_main
from hostagent.api_client import ApiClient
from hostagent.paths import InstancePaths
from protocol.messages import Ping, PortsChanged, PortsSnapshot
from protocol.ports import Port, Protocol
from tests.fakes.command_line import run
from tests.fakes.instance_folder import instance_folder
from tests.fakes.lying_guest import BOUND, LyingGuest, lying_guest

COUNT = 5_000
LISTING = 1.0
"""Seconds of CPU for `hostagent ports --json`, the host agent's part included. 0.4 on a quiet machine."""

IDLE = 0.05
"""Seconds of CPU in `IDLE_FOR` seconds."""

IDLE_FOR = 3.0


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> InstancePaths:
    monkeypatch.setenv("HOSTAGENT_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(agent_main.__file__).parents[1]))
    return instance_folder("web")


async def test_five_thousand_forwards(paths: InstancePaths, tmp_path: Path) -> None:
    ports = [Port(Protocol.TCP, "127.0.0.2", number) for number in range(20_000, 20_000 + COUNT)]
    async with lying_guest(paths) as (guest, agent):
        await guest.greet()
        await guest.say(PortsSnapshot((), last=True))
        await guest.say(*(PortsChanged(tuple(ports[at : at + 256]), ()) for at in range(0, COUNT, 256)))
        await listed(paths)
        before = agent.cpu_seconds() + cpu_of_children()
        listing = await trio.to_thread.run_sync(partial(run, "ports", "--json", home=tmp_path))
        taken = agent.cpu_seconds() + cpu_of_children() - before
        assert len(json.loads(listing.stdout)["ports"]) == COUNT
        assert taken < LISTING
        await quiet(guest)
        before = agent.cpu_seconds()
        await trio.sleep(IDLE_FOR)  # what is measured is that nothing happens
        assert agent.cpu_seconds() - before <= IDLE


async def listed(paths: InstancePaths) -> None:
    """Return when all ports have a forward."""

    def follow() -> None:
        for forwards in ApiClient(paths).follow_ports(1.0):
            if len(forwards) == COUNT:
                return

    with trio.fail_after(BOUND):
        await trio.to_thread.run_sync(follow)


async def quiet(guest: LyingGuest) -> None:
    """Return when the host agent has done all that was asked of it so far."""
    await guest.say(Ping(1))
    while not any(message.NUMBER == 2 for message in guest.heard):
        await guest.listen()


def cpu_of_children() -> float:
    """CPU time of the commands that have ended."""
    times = os.times()
    return times.children_user + times.children_system
