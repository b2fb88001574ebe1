"""The host agent as a process of its own, started for a living QEMU."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

import psutil
import pytest
import trio

from hostagent import agent_process
from hostagent.agent_process import start_agent
from hostagent.api_client import ApiClient
from hostagent.errors import UserError
from hostagent.instance_lock import is_locked
from hostagent.paths import InstancePaths
from protocol.messages import PowerOff
from protocol.ports import Port, Protocol
from tests.fakes.connected_channel import eventually
from tests.fakes.instance_folder import instance_folder
from tests.fakes.living_qemu import living_qemu


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> InstancePaths:
    monkeypatch.setenv("HOSTAGENT_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(agent_process.__file__).parents[1]))
    return instance_folder("web")


async def started(paths: InstancePaths) -> tuple[trio.Process, list[dict[str, object]]]:
    """A host agent that is ready, and what it said until then."""
    said: list[dict[str, object]] = []
    await start_agent(paths, said.append)
    return agent_process._detached[-1], said


def is_refused(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


async def test_a_killed_one_is_replaced_and_its_guest_keeps_its_ports(paths: InstancePaths) -> None:
    port = Port(Protocol.TCP, "127.0.0.2", 20_998)
    async with living_qemu(paths) as qemu:
        qemu.guest.open_ports(port)
        first, _ = await started(paths)
        await eventually(lambda: not is_refused(port.number))
        first.kill()
        await first.wait()
        assert is_refused(port.number)
        assert qemu.process.returncode is None
        began = time.monotonic()
        second, _ = await started(paths)
        await eventually(lambda: not is_refused(port.number))
        print(f"re-attached after {time.monotonic() - began:.2f} s")
        assert qemu.guest.generations == 2
        second.terminate()
        await second.wait()


async def test_a_killed_qemu_takes_its_agent_and_its_ports_along(paths: InstancePaths) -> None:
    port = Port(Protocol.TCP, "127.0.0.2", 20_997)
    async with living_qemu(paths) as qemu:
        qemu.guest.open_ports(port)
        process, _ = await started(paths)
        await eventually(lambda: not is_refused(port.number))
        qemu.process.kill()
        assert await process.wait() == 0
        assert is_refused(port.number)
        assert not is_locked(paths.lock)
        assert not paths.api_socket.exists()


def program(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


async def test_it_is_ready_when_the_start_returns_and_ends_with_its_guest(paths: InstancePaths) -> None:
    async with living_qemu(paths) as qemu:
        process, said = await started(paths)
        assert said[-1] == {"event": "ready", "name": "web"}
        assert [line["phase"] for line in said[:-1]] == ["qemu", "qemu", "hello", "hello", "ports", "ports"]
        assert os.getsid(process.pid) == process.pid, "a session of its own"
        status = await trio.to_thread.run_sync(ApiClient(paths).status)
        assert status["state"] == "running"
        process.send_signal(signal.SIGHUP)  # the terminal of `up` was closed
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert any(isinstance(message, PowerOff) for message in qemu.guest.received)
        assert paths.agent_errors.read_text() == ""


async def test_one_that_was_killed_is_followed_by_another(paths: InstancePaths) -> None:
    async with living_qemu(paths) as qemu:
        first, _ = await started(paths)
        first.kill()
        await first.wait()
        assert qemu.process.returncode is None
        second, said = await started(paths)
        assert "attached to the running one" in str(said)
        assert qemu.guest.generations == 2
        qemu.process.kill()
        assert await second.wait() == 0


async def test_its_error_is_the_starts_error(paths: InstancePaths) -> None:
    paths.launch_plan.write_text("{}")
    with pytest.raises(UserError, match=r"launch\.json cannot be used") as caught:
        await started(paths)
    assert "hostagent up" in caught.value.hint


async def test_last_words_of_one_that_died(
    paths: InstancePaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    crash = program(tmp_path / "python", 'echo \'{"event": "phase"}\'', "echo 'Traceback: a bug' >&2", "exit 3")
    monkeypatch.setattr(sys, "executable", str(crash))
    said: list[dict[str, object]] = []
    with pytest.raises(UserError, match=r"ended with status 3 .*\n.*Traceback: a bug") as caught:
        await start_agent(paths, said.append)
    assert said == [{"event": "phase"}]
    assert "hostagent logs web" in caught.value.hint


async def test_a_start_that_is_interrupted_leaves_no_process(
    paths: InstancePaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """While QEMU is being started: here by a QEMU that never gets ready."""
    (tmp_path / "bin").mkdir()
    pid = tmp_path / "pid"
    program(tmp_path / "bin" / "qemu-system-x86_64", f"echo $$ > {pid}.new", f"mv {pid}.new {pid}", "exec sleep 600")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with trio.CancelScope() as interrupted:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(started, paths)
            await eventually(pid.exists)
            interrupted.cancel()
            interrupted_at = trio.current_time()
    assert trio.current_time() - interrupted_at < agent_process.STOP_BOUND / 2
    await eventually(lambda: not psutil.pid_exists(int(pid.read_text())))
    assert not is_locked(paths.lock)
