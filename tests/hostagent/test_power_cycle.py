"""With the real QEMU and guests of a few instructions."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from hostagent import power_cycle
from hostagent.errors import UserError
from hostagent.lifecycle import MOST_RESETS
from hostagent.paths import InstancePaths
from hostagent.power_cycle import INTERRUPTED, PowerCycle
from hostagent.qemu.command_line import MIB, AcceleratorName, Architecture, MachineSpec
from hostagent.qemu.machine import StopBounds, attach, start
from hostagent.qemu.monitor import Monitor, MonitorClosedError, open_monitor
from hostagent.qemu.qmp import Event
from tests.fakes.firmware import POWER_BUTTON, RESET_BUTTON
from tests.fakes.living_qemu import living_qemu

BOUND = 60.0
"""Seconds that anything here may take on a busy machine."""

QUIT = StopBounds(power_button=0)
AT_ONCE = StopBounds(0, 0, 0)


class Told:
    """What a `PowerObserver` was told, by the names of its methods."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.details: list[str] = []
        self._changed = trio.lowlevel.ParkingLot()

    def _note(self, word: str) -> None:
        self.words.append(word)
        self._changed.unpark_all()

    def qemu_starting(self) -> None:
        self._note("starting")

    def qemu_started(self, detail: str) -> None:
        self.details.append(detail)
        self._note("started")

    def qemu_said(self, event: Event) -> None:
        self._note(event.name)

    def monitor_lost(self, reason: str) -> None:
        self.details.append(reason)
        self._note("monitor lost")

    def guest_reset(self) -> None:
        self._note("reset")

    async def until(self, word: str, count: int = 1) -> None:
        with trio.fail_after(BOUND):
            while self.words.count(word) < count:
                await self._changed.park()


class Powered:
    """A `PowerCycle` that runs, and what came of it."""

    def __init__(self, paths: InstancePaths, spec: MachineSpec) -> None:
        self.told = Told()
        self.beside = 0
        self.most_beside = 0
        self.cycle = PowerCycle(paths, spec, self.told, self._beside)
        self.over = trio.Event()
        self.status: int | None = None

    async def _beside(self) -> None:
        self.beside += 1
        self.most_beside = max(self.beside, self.most_beside)
        try:
            await trio.sleep_forever()
        finally:
            self.beside -= 1

    async def run(self) -> None:
        self.status = await self.cycle.run()
        self.over.set()

    async def off(self) -> int | None:
        with trio.fail_after(BOUND):
            await self.over.wait()
        return self.status


@pytest.fixture
def paths(tmp_path: Path) -> InstancePaths:
    return InstancePaths(tmp_path)


def machine(paths: InstancePaths, code: bytes = POWER_BUTTON) -> MachineSpec:
    firmware = paths.directory / "firmware"
    firmware.write_bytes(code)
    return MachineSpec(
        name="box",
        architecture=Architecture.X86_64,
        accelerator=AcceleratorName.TCG,
        cpus=1,
        memory=16 * MIB,
        serial_log=paths.serial_log,
        firmware=firmware,
    )


@asynccontextmanager
async def powered(paths: InstancePaths, spec: MachineSpec) -> AsyncIterator[Powered]:
    """A machine that is killed at the end of the block, whatever the test found."""
    try:
        async with trio.open_nursery() as nursery:
            it = Powered(paths, spec)
            nursery.start_soon(it.run)
            yield it
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            if left := attach(paths):
                await left.stop(bounds=AT_ONCE)


async def test_a_guest_that_is_reset_gets_another_qemu(paths: InstancePaths) -> None:
    async with powered(paths, machine(paths)) as it:
        pids = []
        for number in range(1, MOST_RESETS + 3):
            await it.told.until("started", number)
            it.cycle.guest_said_hello()
            pids.append(it.cycle.pid)
            await (await connected_monitor(it.cycle)).execute("system_reset")
            await it.told.until("reset", number)
        await it.told.until("started", number + 1)
        assert len(set(pids)) == len(pids)
        assert await it.cycle.stop(QUIT) == "quit"
        assert await it.off() == 0
        assert (it.beside, it.most_beside) == (0, 1)
    assert attach(paths) is None


async def connected_monitor(cycle: PowerCycle) -> Monitor:
    """Its own connection, once there is one: QEMU has ears for one."""
    with trio.fail_after(BOUND):
        await cycle._settled.wait()
    assert cycle._monitor is not None
    return cycle._monitor


async def press_until_reset(it: Powered, number: int) -> None:
    """Press the power button of boot `number`: the guest does not hear it before its tenth instruction."""
    monitor = await connected_monitor(it.cycle)
    while it.told.words.count("SHUTDOWN") < number:
        with suppress(MonitorClosedError):
            await monitor.execute("system_powerdown")
        with trio.move_on_after(0.02):
            await it.told.until("SHUTDOWN", number)


async def test_a_guest_that_resets_itself_for_ever_is_given_up(paths: InstancePaths) -> None:
    it = Powered(paths, machine(paths, RESET_BUTTON))

    async def give_up() -> None:
        with pytest.raises(UserError, match="in a row before its agent said hello"):
            await it.cycle.run()

    with trio.fail_after(BOUND):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_up)
            for number in range(1, MOST_RESETS + 2):
                await it.told.until("started", number)
                await press_until_reset(it, number)
    assert it.told.words.count("reset") == MOST_RESETS
    assert paths.serial_log.read_text() == "hi" * (MOST_RESETS + 1), "the console of all boots"
    assert attach(paths) is None


async def test_the_power_button_is_the_end(paths: InstancePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hostagent.qemu.machine.PRESS_INTERVAL", 0.02)  # the guest does not hear the first at once
    async with powered(paths, machine(paths)) as it:
        await it.told.until("started")
        assert await it.cycle.stop(StopBounds()) == "power button"
        assert await it.off() == 0
        assert "reset" not in it.told.words


async def test_a_killed_qemu_is_the_end(paths: InstancePaths) -> None:
    async with powered(paths, machine(paths)) as it:
        await it.told.until("started")
        assert it.cycle.pid is not None
        os.kill(it.cycle.pid, signal.SIGKILL)
        assert await it.off() == -signal.SIGKILL
        assert it.cycle.pid is None


async def test_a_reset_while_it_is_being_stopped_is_the_end(paths: InstancePaths) -> None:
    async with powered(paths, machine(paths)) as it:
        await it.told.until("started")
        it.cycle.stopping = True
        await (await connected_monitor(it.cycle)).execute("system_reset")
        assert await it.off() == 0
        assert "reset" not in it.told.words


async def test_a_start_can_be_interrupted(paths: InstancePaths) -> None:
    async with powered(paths, machine(paths)) as it:
        await it.told.until("starting")
        assert await it.cycle.stop(QUIT) == INTERRUPTED
        assert await it.off() is None
    assert attach(paths) is None


async def test_a_stop_before_it_has_begun_ends_a_qemu_that_lives_all_the_same(paths: InstancePaths) -> None:
    spec = machine(paths)
    await start(spec, paths)
    it = Powered(paths, spec)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(it.cycle.stop, QUIT)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(it.run)
        await it.off()
    assert "attached to the running one" in it.told.details[0]
    assert attach(paths) is None


async def test_a_qemu_whose_monitor_is_silent_is_watched_all_the_same(
    paths: InstancePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power_cycle, "open_monitor", partial(open_monitor, greeting_bound=0.1))
    running = await start(machine(paths), paths)
    os.kill(running.identity.pid, signal.SIGSTOP)
    async with powered(paths, machine(paths)) as it:
        await it.told.until("monitor lost")
        assert await it.cycle.stop(AT_ONCE) == "killed"
        await it.off()


async def test_a_guest_that_somebody_paused_goes_on(paths: InstancePaths) -> None:
    async with powered(paths, machine(paths)) as it:
        await it.told.until("started")
        monitor = await connected_monitor(it.cycle)
        await monitor.execute("stop")
        await it.told.until("STOP")
        await monitor.execute("cont")
        await it.told.until("RESUME")
        assert it.cycle.pid is not None
        assert await it.cycle.stop(QUIT) == "quit"
        await it.off()


@pytest.mark.parametrize("greeted", [False, True])
async def test_an_accelerator_that_gives_up_ends_qemu_and_is_not_tried_again(
    greeted: bool, paths: InstancePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered: list[object] = []
    monkeypatch.setattr(power_cycle, "remember_failure", lambda *failure: remembered.append(failure))
    spec = replace(machine(paths), accelerator=AcceleratorName.KVM)
    paths.qemu_log.write_text("KVM internal error. Suberror: 1\nextra data[0]: 0x1\nRAX=0\n")
    async with living_qemu(paths) as qemu, trio.open_nursery() as nursery:
        it = Powered(paths, spec)

        async def fail_it() -> None:
            await connected_monitor(it.cycle)
            if greeted:
                it.cycle.guest_said_hello()
            qemu.status = "internal-error"
            await qemu.monitor.say({"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 0}})

        nursery.start_soon(fail_it)
        with pytest.raises(UserError, match="kvm cannot execute this guest: KVM internal error") as caught:
            await it.run()
        assert qemu.commands == ["query-status", "quit"]
    assert attach(paths) is None
    words = "KVM internal error. Suberror: 1"
    assert remembered == ([] if greeted else [(Architecture.X86_64, AcceleratorName.KVM, words)])
    assert ("the next start emulates the processor" in str(caught.value.hint)) is not greeted
    assert str(paths.qemu_log) in str(caught.value.hint)
