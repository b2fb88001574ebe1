"""What a real host agent says is what openapi.json documents: no key lacks, none is new, every type is right."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import get_args

import trio

from hostagent import api_shapes
from hostagent.api_client import ApiClient
from hostagent.forward_rules import RuleSet
from hostagent.paths import InstancePaths
from protocol import messages
from protocol.ports import Port, PortOwner, Protocol, WakeupSource
from tests.documents import problems
from tests.hostagent.test_agent import PORT, Running, ready
from tests.hostagent.test_agent import paths as paths  # a fixture

SHAPE_OF: Mapping[str, str] = {
    "phase": "PhaseEvent",
    "state": "StateEvent",
    "forward": "ForwardEvent",
    "guest": "GuestEvent",
    "qemu": "QemuEvent",
    "rules": "RulesEvent",
    "log": "LogEvent",
    "lost": "LostEvent",
}


async def test_ports_are_as_documented(paths: InstancePaths) -> None:
    async with ready(paths) as running:
        running.qemu.guest.open_ports(PORT, Port(Protocol.UDP, "10.0.0.1", 5_353))
        running.qemu.guest.name_owner(PORT, PortOwner("postgres", 7, 70, "docker-4711.scope"))
        await running.event("forward", process="postgres")
        ports = await trio.to_thread.run_sync(ApiClient(paths).ports)
        assert {port["state"] for port in ports} == {"listening", "ignored"}
        assert problems({"ports": ports}, "PortList") == []


async def test_the_status_is_as_documented(paths: InstancePaths) -> None:
    async with ready(paths) as running:
        source = WakeupSource("audit", False, "compiled out", 0)
        running.qemu.guest._send([messages.Status((source,), (("misses", 0),))])
        running.qemu.guest.open_ports(PORT)
        await running.event("forward", state="listening")
        status = await trio.to_thread.run_sync(ApiClient(paths).status)
        assert status["guest_agent"]["counters"] == {"misses": 0}
        assert problems(status, "Status") == []
        running.qemu.guest.kill()
        running.qemu.guest.cut()
        await running.status(lambda status: status["state"] == "degraded")
        assert problems(await trio.to_thread.run_sync(ApiClient(paths).status), "Status") == []


async def test_events_are_as_documented(paths: InstancePaths) -> None:
    async with ready(paths) as running:
        await everything_happens(running)
        client = ApiClient(paths)
        events = await trio.to_thread.run_sync(lambda: list(client.events(after=0)))
        lost = (await trio.to_thread.run_sync(lambda: list(client.events(after=10**9))))[:1]
        assert {event["kind"] for event in (*events, *lost)} == SHAPE_OF.keys()
        for event in (*events, *lost):
            assert problems(event, SHAPE_OF[event["kind"]]) == [], event


async def everything_happens(running: Running) -> None:
    guest = running.qemu.guest
    guest.open_ports(PORT)
    await running.event("forward", state="listening")
    guest.close_ports(PORT)
    await running.event("forward", state="gone")
    running.agent._rules_changed(RuleSet())
    await running.event("rules", enabled=True)
    time = {"seconds": 1_700_000_000, "microseconds": 0}
    await running.qemu.monitor.say({"event": "RESET", "data": {"guest": True}, "timestamp": time})
    await running.event("qemu", name="RESET")
    guest.restart("second boot")
    await running.event("guest", agent="present", boot_id="second boot")
    guest.versions = (7, 9)
    guest.restart()
    await running.event("guest", agent="incompatible")
    logging.getLogger("test").error("something", exc_info=LookupError("told with its traceback"))
    await running.event("log", logger="test")


def test_every_kind_of_event_is_documented() -> None:
    assert {shape.__name__ for shape in get_args(api_shapes.AnyEvent)} == set(SHAPE_OF.values())
