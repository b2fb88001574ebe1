"""`down`: through the host agent where there is one, and without it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from hostagent import shutdown
from hostagent.agent_process import start_agent
from hostagent.api_client import ApiClient
from hostagent.errors import UserError
from hostagent.instance_lock import is_locked, try_lock
from hostagent.paths import InstancePaths
from hostagent.shutdown import down
from tests.fakes.command_line import running
from tests.fakes.connected_channel import BOUND, eventually
from tests.fakes.instance_folder import instance_folder
from tests.fakes.living_qemu import living_qemu


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> InstancePaths:
    monkeypatch.setenv("HOSTAGENT_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(shutdown.__file__).parents[1]))
    return instance_folder("web")


async def take_down(paths: InstancePaths, *, force: bool) -> tuple[str, list[object]]:
    """What was needed, and what was shown."""
    shown: list[dict[str, object]] = []
    with trio.fail_after(BOUND):
        step = await trio.to_thread.run_sync(partial(down, paths, force=force, show=shown.append))
    return step, [line["message"] for line in shown]


@pytest.mark.parametrize(("force", "step"), [(False, "guest agent"), (True, "quit")])
async def test_a_running_instance(paths: InstancePaths, force: bool, step: str) -> None:
    async with living_qemu(paths) as qemu:
        await start_agent(paths, lambda _: None)
        assert await take_down(paths, force=force) == (step, ["stopping web"])
        await qemu.process.wait()
        await eventually(lambda: not is_locked(paths.lock))


@pytest.mark.parametrize(("force", "step"), [(False, "power button"), (True, "quit")])
async def test_a_qemu_without_its_host_agent(paths: InstancePaths, force: bool, step: str) -> None:
    async with living_qemu(paths) as qemu:
        needed, (stopping, *more) = await take_down(paths, force=force)
        assert (needed, stopping) == (step, "stopping web")
        if force:
            assert more == []
        else:
            (why,) = map(str, more)
            assert why.startswith("the host agent of web is gone: pressing the guest's power button")
            assert "`hostagent down --force web`" in why
        await qemu.process.wait()


async def interrupted_down(paths: InstancePaths, when: Callable[[], bool]) -> str:
    """The last line that `hostagent down web` prints when it is interrupted as soon as `when` holds."""
    with running("down", "web", home=paths.directory.parent) as process:
        await eventually(when)
        process.send_signal(signal.SIGINT)
        with trio.fail_after(BOUND):
            output, _ = await trio.to_thread.run_sync(process.communicate)
        assert process.returncode == 130
    return str(output.decode().splitlines()[-1])


async def test_an_interrupted_one_says_that_the_instance_goes_on_stopping(paths: InstancePaths) -> None:
    def stopping() -> bool:
        return str(ApiClient(paths).status()["state"]) == "stopping"

    async with living_qemu(paths) as qemu:
        qemu.obeys.clear()
        await start_agent(paths, lambda _: None)
        assert await interrupted_down(paths, stopping) == "web goes on stopping …"
        assert stopping()
        qemu.process.kill()
        await eventually(lambda: not is_locked(paths.lock))


async def test_an_interrupted_one_without_a_host_agent_promises_nothing(paths: InstancePaths) -> None:
    async with living_qemu(paths) as qemu:
        qemu.obeys.clear()
        last = await interrupted_down(paths, lambda: "system_powerdown" in qemu.commands)
        assert last == "web goes off only if its guest has taken notice of the power button …"


@pytest.mark.parametrize("force", [False, True])
async def test_one_that_does_not_run(paths: InstancePaths, force: bool) -> None:
    assert await take_down(paths, force=force) == ("not running", [])


async def test_a_host_agent_that_never_answers(paths: InstancePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutdown, "API_BOUND", 0.05)
    with try_lock(paths.lock), pytest.raises(UserError):
        await take_down(paths, force=False)


async def test_one_that_is_only_starting(paths: InstancePaths) -> None:
    paths.api_socket.touch()  # of one that was killed
    async with living_qemu(paths) as qemu:
        qemu.guest.kill()  # it boots for ever

        async def start() -> None:
            with pytest.raises(UserError, match="web was powered off before it was ready"):
                await start_agent(paths, lambda _: None)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(start)
            await eventually(lambda: is_locked(paths.lock))
            assert await take_down(paths, force=True) == ("quit", ["stopping web"])
        await qemu.process.wait()


async def test_a_host_agent_that_hangs_is_killed_by_force(
    paths: InstancePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hostagent.api_client._ANSWER_BOUND", 0.2)
    async with living_qemu(paths) as qemu:
        await start_agent(paths, lambda _: None)
        agent = int(paths.lock.read_text())
        os.kill(agent, signal.SIGSTOP)
        step, shown = await take_down(paths, force=True)
        assert step == "quit"
        assert "does not answer" in str(shown[-1])
        await qemu.process.wait()
        await eventually(lambda: not is_locked(paths.lock))


async def test_one_that_is_being_prepared(paths: InstancePaths) -> None:
    with try_lock(paths.up_lock), pytest.raises(UserError, match="is being prepared"):
        await take_down(paths, force=False)
