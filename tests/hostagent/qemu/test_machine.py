"""The QEMU process, with the real QEMU and a guest of 20 instructions that answers the power button."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import trio

from hostagent.errors import UserError
from hostagent.paths import InstancePaths
from hostagent.qemu import machine as machine_module
from hostagent.qemu.command_line import MIB, AcceleratorName, Architecture, Disk, MachineSpec
from hostagent.qemu.machine import Machine, StopBounds, StopStep, attach, start
from hostagent.qemu.monitor import open_monitor
from hostagent.qemu.pid_file import HeldPidFile, ProcessIdentity
from tests.fakes.firmware import POWER_BUTTON


@pytest.fixture
def paths(tmp_path: Path) -> InstancePaths:
    return InstancePaths(tmp_path)


@pytest.fixture
def spec(paths: InstancePaths) -> MachineSpec:
    firmware = paths.directory / "firmware"
    firmware.write_bytes(POWER_BUTTON)
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
async def started(spec: MachineSpec, paths: InstancePaths) -> AsyncIterator[Machine]:
    machine = await start(spec, paths)
    try:
        yield machine
    finally:
        with trio.CancelScope(shield=True):
            await machine.stop(bounds=StopBounds(0, 0, 0))


def qemus_of(paths: InstancePaths) -> list[int]:
    """Processes whose command line names the instance's folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if process.pid != os.getpid() and any(str(paths.serial_log) in word for word in words):
            found.append(process.pid)
    return found


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The button is pressed again soon: the guest does not hear it before its tenth instruction."""
    monkeypatch.setattr(machine_module, "PRESS_INTERVAL", 0.02)


async def test_a_machine_that_is_started_answers_and_is_found_again(spec: MachineSpec, paths: InstancePaths) -> None:
    async with started(spec, paths) as machine:
        async with open_monitor(machine.monitor_socket) as monitor:
            assert (await monitor.execute("query-status"))["status"] == "running"
            assert (await monitor.execute("query-name")) == {"name": "box"}
        channel = await trio.open_unix_socket(paths.channel_socket)
        await channel.aclose()
        recorded = json.loads(paths.qemu_pid.read_text())
        assert recorded["pid"] == machine.identity.pid
        assert abs(psutil.Process(recorded["pid"]).create_time() - recorded["started"]) < 2
        assert os.getsid(recorded["pid"]) == recorded["pid"], "a session of its own"
        again = attach(paths)
        assert again is not None
        assert again.identity == machine.identity
        assert paths.qemu_log.stat().st_mode & 0o777 == paths.qemu_pid.stat().st_mode & 0o777 == 0o600
    assert attach(paths) is None


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("bounds", "step", "status"),
    [
        (StopBounds(), StopStep.POWER_BUTTON, 0),
        (StopBounds(power_button=0), StopStep.QUIT, 0),
        (StopBounds(power_button=0, quit=0), StopStep.TERMINATED, 0),
        (StopBounds(power_button=0, quit=0, terminate=0), StopStep.KILLED, -signal.SIGKILL),
    ],
    ids=str,
)
async def test_every_step_of_stopping(
    spec: MachineSpec, paths: InstancePaths, bounds: StopBounds, step: StopStep, status: int
) -> None:
    async with started(spec, paths) as machine:
        assert await machine.stop(bounds=bounds) is step
        assert not machine.is_running()
        assert await machine.wait_exit() == status
        assert await machine.stop() is StopStep.NOT_RUNNING
    assert qemus_of(paths) == []


async def test_a_guest_that_ignores_the_button_is_ended_all_the_same(spec: MachineSpec, paths: InstancePaths) -> None:
    deaf = dataclasses.replace(spec, firmware=paths.directory / "deaf")
    assert deaf.firmware is not None
    deaf.firmware.write_bytes(bytes(65520) + bytes.fromhex("f4ebfd").ljust(16, b"\0"))
    async with started(deaf, paths) as machine, open_monitor(machine.monitor_socket) as monitor:
        assert await machine.stop(monitor, StopBounds(power_button=0.05)) is StopStep.QUIT


async def test_a_qemu_that_hangs_is_killed(spec: MachineSpec, paths: InstancePaths) -> None:
    async with started(spec, paths) as machine, open_monitor(machine.monitor_socket) as monitor:
        os.kill(machine.identity.pid, signal.SIGSTOP)
        bounds = StopBounds(power_button=0.05, quit=0.05, terminate=0.05)
        assert await machine.stop(monitor, bounds) is StopStep.KILLED


@pytest.mark.usefixtures("impatient")
async def test_it_survives_the_process_that_started_it(spec: MachineSpec, paths: InstancePaths) -> None:
    script = (
        "import trio\nfrom pathlib import Path, PosixPath\n"
        "from hostagent.paths import InstancePaths\nfrom hostagent.qemu.machine import start\n"
        "from hostagent.qemu.command_line import *\n"
        f"spec = {spec!r}\n"
        f"trio.run(start, spec, InstancePaths(Path({str(paths.directory)!r})))\n"
    ).replace("<Architecture.X86_64: 'x86_64'>", "Architecture.X86_64")
    script = script.replace("<AcceleratorName.TCG: 'tcg'>", "AcceleratorName.TCG")
    await trio.run_process([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    machine = attach(paths)
    assert machine is not None
    try:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(machine.wait_exit)
                assert await machine.stop() is StopStep.POWER_BUTTON
        assert paths.serial_log.read_bytes() == b"hi"
        assert await machine.wait_exit() is None, "not our child, so its status is not known"
    finally:
        await machine.stop(bounds=StopBounds(0, 0, 0))


@pytest.mark.parametrize("has_pidfd", [True, False])
async def test_its_end_is_noticed(
    spec: MachineSpec, paths: InstancePaths, has_pidfd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_pidfd:
        monkeypatch.delattr(os, "pidfd_open")
        monkeypatch.setattr(machine_module, "POLL_INTERVAL", 0.005)
    async with started(spec, paths) as machine:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(machine.wait_exit)
                nursery.start_soon(machine.wait_exit)
                assert await machine.stop(bounds=StopBounds(power_button=0, quit=0)) is StopStep.TERMINATED
        assert await machine.wait_exit() == 0
        assert "terminating on signal 15" in machine.last_words()


async def test_only_one_at_a_time(spec: MachineSpec, paths: InstancePaths) -> None:
    async with started(spec, paths) as machine:
        with pytest.raises(UserError, match="already running"):
            await start(spec, paths)
        assert machine.is_running()
        again = attach(paths)
        assert again is not None
        assert again.identity == machine.identity


async def test_a_killed_qemu_leaves_nothing_in_the_way(spec: MachineSpec, paths: InstancePaths) -> None:
    async with started(spec, paths) as machine:
        await machine.stop(bounds=StopBounds(0, 0, 0))
        assert paths.monitor_socket.exists(), "what a killed QEMU leaves"
    async with started(spec, paths) as machine:
        assert machine.is_running()


async def test_a_stranger_with_the_same_pid_is_left_alone(paths: InstancePaths) -> None:
    async with trio.open_nursery() as nursery:
        stranger: trio.Process = await nursery.start(trio.run_process, ["sleep", "60"])
        try:
            paths.qemu_pid.write_text(json.dumps({"pid": stranger.pid, "started": 0.0}))
            assert attach(paths) is None
            machine = Machine(paths, ProcessIdentity(stranger.pid, 0.0))
            assert await machine.stop() is StopStep.NOT_RUNNING
            machine._send_signal(signal.SIGKILL)
            assert stranger.poll() is None
        finally:
            nursery.cancel_scope.cancel()


async def test_death_at_once_has_qemus_own_words(spec: MachineSpec, paths: InstancePaths) -> None:
    paths.qemu_log.write_text("qemu-system-x86_64: trouble of an earlier run\n")
    with pytest.raises(UserError, match=r"^QEMU ended at once: could not open kernel file '/missing'") as caught:
        await start(dataclasses.replace(spec, kernel=Path("/missing")), paths)
    assert str(paths.qemu_log) in caught.value.hint
    assert "earlier" not in caught.value.message
    assert qemus_of(paths) == []


async def test_a_disk_in_use_is_said(spec: MachineSpec, paths: InstancePaths, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(MIB))
    spec = dataclasses.replace(spec, disk=Disk(disk, "raw"))
    (tmp_path / "other").mkdir()
    async with started(spec, paths):
        with pytest.raises(UserError, match=f"^another process uses the disk {disk}"):
            await start(spec, InstancePaths(tmp_path / "other"))


@pytest.mark.parametrize("moment", [0.0, 0.02, 0.05])
async def test_a_cancelled_start_leaves_no_process(spec: MachineSpec, paths: InstancePaths, moment: float) -> None:
    with trio.move_on_after(moment) as scope:
        machine = await start(spec, paths)
        await machine.stop(bounds=StopBounds(0, 0, 0))
        await trio.sleep_forever()
    assert scope.cancelled_caught
    assert qemus_of(paths) == []
    assert attach(paths) is None


async def test_a_qemu_that_never_answers(
    spec: MachineSpec, paths: InstancePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "qemu-system-x86_64"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(machine_module, "FAREWELL_BOUND", 0.01)
    with pytest.raises(UserError, match=r"QEMU did not get ready: .* did not greet within 0\.05 s"):
        await start(spec, paths, bound=0.05)
    assert attach(paths) is None


async def test_a_process_that_cannot_be_recorded_is_ended(
    spec: MachineSpec, paths: InstancePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_is_full(_: HeldPidFile, __: ProcessIdentity) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(HeldPidFile, "record", disk_is_full)
    with pytest.raises(UserError, match=r"QEMU could not be started: .*No space left"):
        await start(spec, paths)
    assert qemus_of(paths) == []


async def test_a_folder_that_is_not_there(spec: MachineSpec, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="QEMU could not be started"):
        await start(spec, InstancePaths(tmp_path / "missing"))


async def test_the_log_starts_anew_when_it_has_grown(
    spec: MachineSpec, paths: InstancePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_module, "LOG_LIMIT", 10)
    paths.qemu_log.write_text("a lot of trouble\n")
    async with started(spec, paths) as machine:
        assert b"trouble" not in paths.qemu_log.read_bytes()
        assert machine.last_words() == ""
