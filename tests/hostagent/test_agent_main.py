"""The host agent's entry point: what it says on its pipe, and what it holds while it lives."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from hostagent import agent_main
from hostagent.api_client import ApiClient
from hostagent.errors import UserError
from hostagent.instance_lock import is_locked, try_lock
from hostagent.paths import InstancePaths
from tests.fakes.connected_channel import eventually
from tests.fakes.instance_folder import instance_folder
from tests.fakes.living_qemu import living_qemu


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> InstancePaths:
    monkeypatch.setenv("HOSTAGENT_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(agent_main.__file__).parents[1]))
    return instance_folder("web")


async def agent(paths: InstancePaths) -> trio.Process:
    return await trio.lowlevel.open_process(
        [sys.executable, "-m", "hostagent.agent_main", paths.name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )


async def lines(process: trio.Process) -> list[dict[str, object]]:
    """All that it says, to the end of the pipe."""
    assert process.stdout is not None
    return [json.loads(line) for line in b"".join([chunk async for chunk in process.stdout]).splitlines()]


async def test_the_pipe_ends_when_it_is_ready_and_the_lock_is_held(paths: InstancePaths) -> None:
    async with living_qemu(paths) as qemu:
        process = await agent(paths)
        assert (await lines(process))[-1] == {"event": "ready", "name": "web"}
        assert process.returncode is None
        assert is_locked(paths.lock)
        qemu.process.kill()
        assert await process.wait() == 0
    assert not is_locked(paths.lock)
    assert not paths.api_socket.exists()


async def test_a_starter_that_left_is_not_missed(paths: InstancePaths) -> None:
    async with living_qemu(paths) as qemu:
        process = await agent(paths)
        assert process.stdout is not None
        await process.stdout.aclose()
        await qemu.guest.generation(1)
        await eventually(lambda: state(paths) == "running")
        qemu.process.kill()
        assert await process.wait() == 0


def state(paths: InstancePaths) -> object:
    try:
        return ApiClient(paths).status()["state"]
    except UserError:
        return None


async def test_a_second_one_says_so_in_one_line_and_exits_with_1(paths: InstancePaths) -> None:
    with try_lock(paths.lock):
        process = await agent(paths)
        (line,) = await lines(process)
        hint = "see `hostagent status web`"
        assert line == {"event": "error", "message": "web is running already", "hint": hint}
        assert await process.wait() == 1


async def test_an_error_inside_of_it_is_one_line_too(paths: InstancePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    process = await agent(paths)
    *_, line = await lines(process)
    assert line["event"] == "error"
    assert "qemu-system-x86_64 is not installed" in str(line["message"])
    assert await process.wait() == 1


async def test_it_may_open_as_many_files_as_the_host_lets_it(paths: InstancePaths) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with living_qemu(paths) as qemu:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(1_024, limits[1]), limits[1]))
        try:
            process = await agent(paths)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        await lines(process)
        soft, _ = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        assert soft == min(agent_main.DESCRIPTORS, limits[1])
        qemu.process.kill()
        await process.wait()
