"""What an agent holds while it rests, so that what it holds after a fault can be held against it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

import psutil
import trio

from hostagent.api_client import ApiClient
from tests.e2e.host_side import HostSide
from tests.e2e.server_control import AGENT, GuestServer

MEMORY_SLACK = 12 << 10
"""KiB by which an agent at rest may be larger than it was: what the allocator keeps of the largest moment. A leak of a
stream's window at each fault would be more after fifty."""

REST_SECONDS = 30.0
"""Bound on coming to rest; flows of UDP clients that are gone take the longest, and are not waited for."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Descriptors, tasks (-1 where nobody tells) and resident memory in KiB."""

    descriptors: int
    tasks: int
    resident: int

    def leaks(self, before: Footprint, who: str) -> list[str]:
        """What there is now and was not `before`."""
        found = []
        if self.descriptors > before.descriptors:
            found.append(f"{who}: {self.descriptors} descriptors, {before.descriptors} before")
        if self.tasks > before.tasks:
            found.append(f"{who}: {self.tasks} tasks, {before.tasks} before")
        if self.resident > before.resident + MEMORY_SLACK:
            found.append(f"{who}: {self.resident} KiB resident, {before.resident} before")
        return found


Look = Callable[[], Awaitable[Footprint]]


async def settled(look: Look, before: Footprint, who: str, seconds: float = REST_SECONDS) -> list[str]:
    """What is still held more than `before` when that no longer shrinks, at the latest after `seconds`."""
    leaks = (await look()).leaks(before, who)
    with trio.move_on_after(seconds):
        while leaks:
            await trio.sleep(0.2)
            leaks = (await look()).leaks(before, who)
    return leaks


def process_footprint(pid: int, tasks: int = -1) -> Footprint:
    """Of a process of this host."""
    process = psutil.Process(pid)
    return Footprint(process.num_fds(), tasks, process.memory_info().rss >> 10)


async def own_footprint() -> Footprint:
    """Of this process and the trio tasks in it."""
    statistics = trio.lowlevel.current_statistics()
    return process_footprint(psutil.Process().pid, statistics.tasks_living)


async def guest_footprint(server: GuestServer, counters: dict[str, int]) -> Footprint:
    """Of the guest agent and its supervisor; `counters` are those of its status."""
    agents = await server.processes(AGENT)
    # Not `ls`, which looks at each of them once more, and complains of one that was closed meanwhile.
    counts = [await server.run(f"set -- /proc/{agent['pid']}/fd/*; echo $#") for agent in agents]
    descriptors = sum(int(count.output) for count in counts)
    return Footprint(descriptors, counters["tasks"], sum(agent["memory"] for agent in agents))


def guest_by_host_side(server: GuestServer, host: HostSide) -> Look:
    """The guest agent's footprint, as told to a `HostSide`."""

    async def look() -> Footprint:
        return await guest_footprint(server, dict((await host.fresh_status()).counters))

    return look


def guest_by_api(server: GuestServer, api: ApiClient) -> Look:
    """The guest agent's footprint, as told to a host agent."""

    async def look() -> Footprint:
        status = await trio.to_thread.run_sync(api.status)
        counters = status["guest_agent"]["counters"]
        assert isinstance(counters, dict)
        return await guest_footprint(server, counters)

    return look


def listening_ports(pid: int) -> set[tuple[str, str, int]]:
    """("tcp" | "udp", address, port) of every internet socket on which that process waits for strangers."""
    connections = psutil.Process(pid).net_connections("inet")
    return {
        ("tcp" if one.type.name == "SOCK_STREAM" else "udp", one.laddr.ip, one.laddr.port)
        for one in connections
        if one.status == psutil.CONN_LISTEN or (one.type.name == "SOCK_DGRAM" and not one.raddr)
    }


def wanted_listeners(ports: Collection[tuple[str, int]]) -> set[tuple[str, str, int]]:
    """The listeners that forwards of loopback ports have: on both families."""
    return {(protocol, address, port) for protocol, port in ports for address in ("127.0.0.1", "::1")}
