"""The host agent of a living QEMU: what it tells, what it answers, and how it ends."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from hostagent import agent as agent_module
from hostagent.agent import Agent
from hostagent.api_client import ApiClient
from hostagent.api_shapes import Status
from hostagent.errors import UserError
from hostagent.forwards import Endpoint, ForwardState
from hostagent.launch_plan import read_plan
from hostagent.lifecycle import USUAL_SECONDS, Phase
from hostagent.paths import InstancePaths
from protocol.messages import Clock, PowerOff
from protocol.ports import Port, PortOwner, Protocol
from protocol.stream_messages import CommandTarget
from tests.fakes.connected_channel import BOUND, nothing_left_open
from tests.fakes.instance_folder import instance_folder
from tests.fakes.living_qemu import LivingQemu, living_qemu

USER = pwd.getpwuid(os.geteuid()).pw_name
PORT = Port(Protocol.TCP, "127.0.0.2", 20_999)


class Running:
    """An agent that runs, and what it announced."""

    def __init__(self, paths: InstancePaths, qemu: LivingQemu) -> None:
        self.paths = paths
        self.qemu = qemu
        self.announced: list[dict[str, object]] = []
        self.agent = Agent(paths, read_plan(paths.launch_plan), "1.0", self._announce)
        self.ended = trio.Event()
        self._news = trio.Event()

    def _announce(self, line: dict[str, object]) -> None:
        self.announced.append(line)
        self._news.set()
        self._news = trio.Event()

    async def run(self) -> None:
        await self.agent.run()
        self.ended.set()

    async def ready(self) -> None:
        with trio.fail_after(BOUND):
            while not self.agent.ready:
                await self._news.wait()

    async def event(self, kind: str, **fields: object) -> None:
        """Return once there is an event with these fields."""
        with trio.fail_after(BOUND):
            async for event in self.agent.events.subscribe(0):
                if event.kind == kind and fields.items() <= event.fields.items():
                    return
        raise AssertionError(f"no {kind} event with {fields}")

    async def status(self, condition: Callable[[Status], bool]) -> Status:
        """The status, once `condition` holds."""
        with trio.fail_after(BOUND):
            while not condition(status := self.agent.status()):
                await self.agent.events.changed()
        return status

    async def over(self) -> None:
        with trio.fail_after(BOUND):
            await self.ended.wait()


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> InstancePaths:
    monkeypatch.setenv("HOSTAGENT_HOME", str(tmp_path))
    return instance_folder("web", user=USER, environment=(("FROM_THE_PLAN", "yes"),))


@asynccontextmanager
async def starting(paths: InstancePaths) -> AsyncIterator[Running]:
    async with living_qemu(paths) as qemu, trio.open_nursery() as nursery:
        running = Running(paths, qemu)
        nursery.start_soon(running.run)
        yield running
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def ready(paths: InstancePaths) -> AsyncIterator[Running]:
    async with starting(paths) as running:
        await running.ready()
        yield running


async def test_it_takes_over_a_living_qemu_and_tells_when_it_is_ready(paths: InstancePaths) -> None:
    async with ready(paths) as running:
        phases = [(line["phase"], line["state"]) for line in running.announced if line["event"] == "phase"]
        assert phases == [(phase, state) for phase in ("qemu", "hello", "ports") for state in ("started", "done")]
        assert running.announced[-1] == {"event": "ready", "name": "web"}
        assert f"attached to the running one, pid {running.qemu.process.pid}" in str(running.announced)
        status = running.agent.status()
        assert (status["name"], status["state"], status["qemu_pid"]) == ("web", "running", running.qemu.process.pid)
        peer = status["guest_agent"]
        assert isinstance(peer, dict)
        assert (peer["present"], peer["boot_id"], peer["description"]) == (True, "first boot", "a fake")


async def test_ports_of_the_guest_are_forwards_and_events(paths: InstancePaths) -> None:
    async with ready(paths) as running:
        running.qemu.guest.open_ports(PORT)
        await running.event("forward", guest="127.0.0.2:20999", state="listening")
        (forward,) = running.agent.forwards()
        assert forward.host[0] == Endpoint("127.0.0.1", PORT.number)
        running.qemu.guest.name_owner(PORT, PortOwner("postgres", 7, 70))
        await running.event("forward", process="postgres")
        running.qemu.guest.close_ports(PORT)
        await running.event("forward", guest="127.0.0.2:20999", state="gone")
        assert running.agent.forwards() == []


async def test_the_guest_agent_is_asked_first_to_stop(paths: InstancePaths) -> None:
    async with ready(paths) as running:
        assert await running.agent.stop(force=False) == "guest agent"
        await running.over()
        assert running.qemu.commands == []
        assert running.agent.status()["state"] == "stopping"


async def test_force_asks_nobody_in_the_guest(paths: InstancePaths) -> None:
    async with ready(paths) as running:
        assert await running.agent.stop(force=True) == "quit"
        await running.over()
        assert not any(isinstance(message, PowerOff) for message in running.qemu.guest.received)


async def test_a_guest_without_its_agent_gets_the_power_button(paths: InstancePaths) -> None:
    async with ready(paths) as running:
        running.qemu.guest.kill()
        running.qemu.guest.cut()
        status = await running.status(lambda status: status["state"] == "degraded")
        assert status["reason"] == "the channel's socket was closed"
        assert await running.agent.stop(force=False) == "power button"
        await running.over()


async def test_a_guest_that_only_boots_is_asked_as_soon_as_its_agent_is_there(paths: InstancePaths) -> None:
    """Most take no notice of the power button until they have booted; and nobody is told that it is ready."""
    async with starting(paths) as running:
        running.qemu.guest.kill()
        running.qemu.obeys.remove("system_powerdown")
        await running.event("phase", phase=Phase.HELLO)
        needed: list[str] = []

        async def stop() -> None:
            needed.append(await running.agent.stop(force=False))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop)
            await running.event("state", state="stopping")
            running.qemu.guest.restart()
        assert needed == ["guest agent"]
        await running.over()
        assert not any(line["event"] == "ready" for line in running.announced)
        assert "it was stopped meanwhile" in str(running.announced[-1])
        assert not any(event.fields.get("state") == "running" for event in running.agent.events.recorded(0))


async def test_a_guest_that_does_not_power_off_is_not_waited_for(
    paths: InstancePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "GUEST_STOP_BOUND", 0.05)
    async with ready(paths) as running:
        running.qemu.obeys.remove("power off")
        assert await running.agent.stop(force=False) == "power button"
        await running.over()


async def test_whoever_asks_over_the_api_hears_what_was_needed(paths: InstancePaths) -> None:
    async with ready(paths) as running:
        answer = await trio.to_thread.run_sync(partial(ApiClient(paths).stop, force=False))
        assert answer == "guest agent"
        await running.over()


async def test_the_end_of_qemu_is_the_end_of_its_agent(paths: InstancePaths) -> None:
    async with ready(paths) as running:
        running.qemu.process.kill()
        await running.over()
        stopped = [event for event in running.agent.events.recorded(0) if event.fields.get("state") == "stopped"]
        assert [event.fields["reason"] for event in stopped] == ["QEMU ended (None)"]


async def test_a_qemu_that_ends_during_the_boot_is_told_with_the_console(paths: InstancePaths) -> None:
    paths.serial_log.write_text("Kernel panic - not syncing: no init found\n")
    async with starting(paths) as running:
        running.qemu.guest.kill()
        await running.event("phase", phase=Phase.HELLO)
        running.qemu.process.kill()
        await running.over()
        failed = [line for line in running.announced if line.get("state") == "failed"]
        assert "QEMU ended during hello" in str(failed)
        assert "Kernel panic" in str(failed)


async def test_a_boot_that_takes_too_long_is_told_with_the_console(
    paths: InstancePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(USUAL_SECONDS, Phase.HELLO, 0.05)
    paths.serial_log.write_text("A start job is running for /dev/sdb\n")
    async with starting(paths) as running:
        running.qemu.guest.kill()
        await running.event("phase", phase=Phase.HELLO, state="stalled", detail="A start job is running for /dev/sdb")
        running.qemu.guest.restart()
        await running.ready()


async def test_a_rebooted_guest_has_none_of_its_old_ports(paths: InstancePaths) -> None:
    async with ready(paths) as running:
        guest = running.qemu.guest
        guest.open_ports(PORT)
        await running.event("forward", state="listening")
        guest.sends_ports = False  # it is still booting
        guest.restart("second boot")
        await running.event("forward", state="gone")
        await running.event("guest", agent="present", boot_id="second boot")
        assert running.agent.forwards() == []


async def test_an_agent_that_only_restarted_has_all_of_them(paths: InstancePaths) -> None:
    async with ready(paths) as running:
        guest = running.qemu.guest
        guest.open_ports(PORT)
        await running.event("forward", state="listening")
        guest.restart()
        await guest.generation(2)
        await running.event("forward", state="stalled")
        await running.status(lambda _: running.agent.forwards()[0].state is ForwardState.LISTENING)
        assert not any(event.fields.get("state") == "gone" for event in running.agent.events.recorded(0))


async def test_a_guest_agent_of_another_age_is_told_with_the_way_out(paths: InstancePaths) -> None:
    async with starting(paths) as running:
        running.qemu.guest.versions = (7, 9)
        running.qemu.guest.restart()
        status = await running.status(lambda status: bool(status["reason"]) and "7 to 9" in str(status["reason"]))
        assert "`hostagent up`" in str(status["reason"])


@pytest.mark.parametrize("how", ["snapshot", "change"])
async def test_a_guest_with_too_many_ports_is_served_as_far_as_that_goes(
    paths: InstancePaths, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    ports = [Port(Protocol.TCP, "192.168.5.15", number) for number in range(1, 1_000)]
    monkeypatch.setattr(agent_module, "MAX_PORTS", 300)
    monkeypatch.setattr("hostagent.forwarder.MAX_PORTS", 300)
    monkeypatch.setattr("hostagent.port_reports.MAX_PORTS", 300)
    async with starting(paths) as running:
        if how == "snapshot":
            running.qemu.guest.ports.update(ports)
            running.qemu.guest.restart()
        await running.ready()
        if how == "change":
            running.qemu.guest.open_ports(*ports)
        status = await running.status(lambda status: "more than 300 ports" in str(status["reason"]))
        assert status["state"] == "running"
        assert 0 < len(running.agent.forwards()) <= 300


async def test_a_command_gets_the_plans_user_and_environment(paths: InstancePaths) -> None:
    target = CommandTarget(("sh", "-c", "id -un; echo $FROM_THE_PLAN $OWN"), (("OWN", "too"),), "", "/", None)
    async with ready(paths) as running, running.agent.execute(target) as execution:
        output = b"".join([payload async for _, payload in execution.output()])
        assert output.decode() == f"{USER}\nyes too\n"
        assert execution.status == 0


async def test_the_guest_is_told_the_time_after_the_host_slept(
    paths: InstancePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = 0.0
    clock = SimpleNamespace(time=lambda: time.time() + slept, time_ns=lambda: time.time_ns() + int(slept * 1e9))
    monkeypatch.setattr(agent_module, "time", clock)
    monkeypatch.setattr(agent_module, "CLOCK_INTERVAL", 0.01)
    async with ready(paths) as running:
        slept = 3_600.0
        with trio.fail_after(BOUND):
            while True:
                told = [message for message in running.qemu.guest.received if isinstance(message, Clock)]
                if told and told[-1].nanoseconds > time.time_ns() + 3_000 * 10**9:
                    break
                await running.qemu.guest.changed()


async def test_a_lost_monitor_costs_neither_the_forwards_nor_a_polite_end(paths: InstancePaths) -> None:
    async with ready(paths) as running:
        await running.qemu.monitor.hang_up()
        await running.event("log", message="the connection to QEMU's monitor ended")
        running.qemu.guest.open_ports(PORT)
        await running.event("forward", state="listening")
        running.qemu.obeys.remove("quit")
        running.qemu.guest.kill()
        running.qemu.guest.cut()
        await running.status(lambda status: status["state"] == "degraded")
        assert await running.agent.stop(force=False) == "power button"
        await running.over()


async def test_without_qemu_there_is_one_clear_error(paths: InstancePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    announced: list[dict[str, object]] = []
    agent = Agent(paths, read_plan(paths.launch_plan), "1.0", announced.append)
    with pytest.raises(UserError, match="qemu-system-x86_64 is not installed"):
        await agent.run()
    assert announced[-1]["state"] == "failed"


def test_nothing_is_left_when_it_has_ended(paths: InstancePaths) -> None:
    async def use() -> None:
        async with ready(paths) as running:
            running.qemu.guest.open_ports(PORT)
            await running.event("forward", state="listening")
            await running.agent.stop(force=False)
            await running.over()

    trio.run(use)
    with nothing_left_open():
        trio.run(use)
