"""`up`, with a guest that is there already: what is decided, what is left behind, who waits for whom."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, NoReturn

import pytest
import trio

from hostagent import startup
from hostagent.errors import EndedBySignalError, UserError
from hostagent.instance_lock import is_locked, try_lock
from hostagent.launch_plan import LaunchPlan
from hostagent.paths import InstancePaths
from hostagent.startup import up
from tests.fakes.command_line import running
from tests.fakes.connected_channel import BOUND, eventually
from tests.fakes.instance_folder import PLAN, instance_folder
from tests.fakes.living_qemu import LivingQemu, living_qemu

CONFIG = "images: [{build: debian-12}]\n"


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> InstancePaths:
    monkeypatch.setenv("HOSTAGENT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(Path(startup.__file__).parents[1]))
    monkeypatch.chdir(tmp_path)
    Path("web.yaml").write_text(CONFIG)
    return InstancePaths.of("web")


class Shown:
    """What an `up` showed."""

    def __init__(self) -> None:
        self.lines: list[dict[str, object]] = []

    def __call__(self, line: dict[str, object]) -> None:
        self.lines.append(line)

    def messages(self, kind: str) -> list[str]:
        return [str(line["message"]) for line in self.lines if line["event"] == kind]

    def phases(self) -> list[str]:
        return [str(line["phase"]) for line in self.lines if line.get("state") == "done"]


async def bring_up(
    shown: Callable[[dict[str, object]], None], argument: str = "web.yaml", *, foreground: bool = False
) -> InstancePaths:
    """`up` runs trio by itself, so here it gets a thread."""
    with trio.fail_after(BOUND):
        return await trio.to_thread.run_sync(partial(up, argument, name=None, foreground=foreground, show=shown))


async def let_end(qemu: LivingQemu, paths: InstancePaths) -> None:
    qemu.process.kill()
    await eventually(lambda: not is_locked(paths.lock))


def instance(text: str = CONFIG) -> InstancePaths:
    paths = instance_folder("web")
    paths.config.write_text(text)
    return paths


def no_image(*_: object) -> NoReturn:
    raise UserError("no image can be reached", "look at the network")


async def test_a_qemu_without_host_agent_is_taken_over_as_it_is(paths: InstancePaths) -> None:
    instance("cpus: 1\n" + CONFIG)
    shown = Shown()
    async with living_qemu(paths) as qemu:
        assert await bring_up(shown) == paths
        assert shown.messages("notice") == ["the QEMU of web runs without a host agent: taking over"]
        assert shown.phases() == ["validate", "qemu", "hello", "ports"]
        assert shown.lines[-1] == {"event": "ready", "name": "web"}
        assert paths.config.read_text() == "cpus: 1\n" + CONFIG, "it is still what the guest runs with"
        await let_end(qemu, paths)


async def test_what_runs_is_left_alone(paths: InstancePaths) -> None:
    instance()
    async with living_qemu(paths) as qemu:
        await bring_up(Shown())
        again = Shown()
        await bring_up(again)
        assert again.messages("notice") == ["web is running already"]
        assert again.messages("warning") == []
        assert again.phases() == ["validate"]
        Path("web.yaml").write_text("cpus: 1\n" + CONFIG)
        changed = Shown()
        await bring_up(changed)
        assert "another configuration" in changed.messages("warning")[0]
        in_the_foreground = Shown()
        await bring_up(in_the_foreground, "web", foreground=True)
        assert in_the_foreground.messages("notice") == [
            "web is running already, in the background or another terminal: `hostagent down web` stops it"
        ]
        by_name = Shown()
        await bring_up(by_name, "web")
        assert by_name.messages("warning") == []
        assert qemu.guest.generations == 1
        await let_end(qemu, paths)


async def test_the_second_of_two_waits_and_finds_it_running(paths: InstancePaths) -> None:
    instance()
    first, second = Shown(), Shown()
    async with living_qemu(paths) as qemu:
        qemu.guest.kill()  # until the second one waits
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bring_up, first)
            await eventually(lambda: is_locked(paths.lock))
            nursery.start_soon(bring_up, second)
            await eventually(lambda: bool(second.messages("notice")))
            qemu.guest.restart()
        assert first.lines[-1]["event"] == "ready"
        assert second.messages("notice") == [
            "another `hostagent up` is starting web: waiting for it",
            "web is running already",
        ]
        await let_end(qemu, paths)


def test_mistakes_create_nothing(paths: InstancePaths) -> None:
    Path("web.yaml").write_text("cpus: many\n")
    shown = Shown()
    with pytest.raises(UserError):
        up("web.yaml", name=None, foreground=False, show=shown)
    assert shown.lines[-1]["state"] == "failed"
    assert not paths.directory.parent.exists()


def test_a_folder_with_something_else_in_it_is_not_made_an_instance(paths: InstancePaths) -> None:
    paths.directory.mkdir(parents=True)
    (paths.directory / "thesis.txt").touch()
    Path("web.yaml").write_text(CONFIG)
    with pytest.raises((UserError, ExceptionGroup)) as caught:
        up("web.yaml", name=None, foreground=False, show=Shown())
    assert "has something else in it" in user_error(caught).message
    assert [file.name for file in paths.directory.iterdir()] == ["thesis.txt"]


def test_keys_that_are_not_acted_on_are_warned_of(paths: InstancePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "prepare", no_image)
    Path("web.yaml").write_text(CONFIG + "minimumLimaVersion: 1.1.0\n")
    shown = Shown()
    with pytest.raises((UserError, ExceptionGroup)):
        up("web.yaml", name=None, foreground=False, show=shown)
    assert "minimumLimaVersion" in shown.messages("warning")[0]


def user_error(caught: pytest.ExceptionInfo[BaseException]) -> UserError:
    exc = caught.value
    while isinstance(exc, BaseExceptionGroup):
        (exc,) = exc.exceptions
    assert isinstance(exc, UserError)
    return exc


@pytest.mark.parametrize("foreground", [True, False])
def test_a_new_instance_that_does_not_come_to_be_leaves_no_trace(
    paths: InstancePaths, monkeypatch: pytest.MonkeyPatch, foreground: bool
) -> None:
    monkeypatch.setattr(startup, "prepare", no_image)
    with pytest.raises((UserError, ExceptionGroup)) as caught:
        up("web.yaml", name=None, foreground=foreground, show=Shown())
    assert user_error(caught).message == "no image can be reached"
    assert list(paths.directory.parent.iterdir()) == []


def test_an_interrupted_one_leaves_no_trace(paths: InstancePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(startup, "prepare", interrupt)
    shown = Shown()
    with suppress(KeyboardInterrupt, BaseExceptionGroup):
        up("web.yaml", name=None, foreground=False, show=shown)
    assert list(paths.directory.parent.iterdir()) == []
    assert shown.messages("notice") == ["nothing is left of web"]
    assert "failed" not in str(shown.lines)


def test_an_interrupted_one_that_was_there_before_is_said_to_be_stopped(
    paths: InstancePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(startup, "prepare", interrupt)
    instance()
    shown = Shown()
    with suppress(KeyboardInterrupt, BaseExceptionGroup):
        up("web", name=None, foreground=False, show=shown)
    assert shown.messages("notice") == ["web is stopped"]


def test_an_interrupt_is_not_lost_wherever_it_comes(paths: InstancePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python drops what is raised in a weak reference's callback, a KeyboardInterrupt too."""

    async def interrupted_in_a_callback(*_: object) -> NoReturn:
        thing = Shown()
        reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
        del thing
        assert reference() is None
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(startup, "prepare", interrupted_in_a_callback)
    shown = Shown()
    with pytest.raises(EndedBySignalError) as caught:
        up("web.yaml", name=None, foreground=False, show=shown, ended_by=[signal.SIGINT])
    assert caught.value.number == signal.SIGINT
    assert shown.messages("notice") == ["nothing is left of web"]


@pytest.mark.parametrize("trace", ["folder", "console"])
def test_an_instance_that_has_been_stays(paths: InstancePaths, monkeypatch: pytest.MonkeyPatch, trace: str) -> None:
    """Its disk may hold what its user made: the folder was there, or QEMU ran in it."""

    def prepared_and_lost(*_: object) -> NoReturn:
        if trace == "console":
            paths.serial_log.touch()
        no_image()

    if trace == "folder":
        instance()
    monkeypatch.setattr(startup, "prepare", prepared_and_lost)
    with pytest.raises((UserError, ExceptionGroup)):
        up("web.yaml", name=None, foreground=False, show=Shown())
    assert paths.directory.is_dir()


def test_a_home_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, paths: InstancePaths) -> None:
    Path("file").touch()
    monkeypatch.setenv("HOSTAGENT_HOME", str(Path("file").absolute()))
    with pytest.raises((UserError, ExceptionGroup)) as caught:
        up("web.yaml", name=None, foreground=False, show=Shown())
    assert "cannot be made" in user_error(caught).message
    assert "HOSTAGENT_HOME" in user_error(caught).hint


async def test_one_that_waited_for_one_that_failed_takes_its_place(
    paths: InstancePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that fails takes its new folder away, and with it the lock that the other waits for."""
    attempts = []

    def fail(*_: object) -> NoReturn:
        attempts.append(is_locked(paths.up_lock))
        no_image()

    monkeypatch.setattr(startup, "prepare", fail)
    shown = Shown()
    paths.directory.mkdir(parents=True)
    async with trio.open_nursery() as nursery:

        async def second() -> None:
            with pytest.raises((UserError, ExceptionGroup)) as caught:
                await bring_up(shown)
            assert user_error(caught).message == "no image can be reached"

        with try_lock(paths.up_lock):
            nursery.start_soon(second)
            await eventually(lambda: bool(shown.messages("notice")))
            shutil.rmtree(paths.directory)
    assert attempts == [True]


@contextmanager
def command(paths: InstancePaths, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """The real `hostagent up web`, which finds a QEMU to take over."""
    arguments = ["up", "web", "--json", *options]
    with running(*arguments, home=paths.directory.parent) as process:
        yield process


async def boots(process: subprocess.Popen[bytes]) -> None:
    """Return when it has said that the guest boots."""
    output = process.stdout
    assert output is not None

    def read() -> bool:
        return any((line.get("phase"), line.get("state")) == ("hello", "started") for line in map(json.loads, output))

    with trio.fail_after(BOUND):
        assert await trio.to_thread.run_sync(read)


async def exit_status(process: subprocess.Popen[bytes]) -> int:
    with trio.fail_after(BOUND):
        return await trio.to_thread.run_sync(process.wait)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
async def test_a_signal_ends_a_boot_with_all_its_processes(paths: InstancePaths, number: signal.Signals) -> None:
    instance()
    async with living_qemu(paths) as qemu:
        qemu.guest.kill()  # it boots for ever
        with command(paths) as process:
            await boots(process)
            process.send_signal(number)
            assert await exit_status(process) == 128 + number
            assert process.stderr is not None
            assert b"Traceback" not in process.stderr.read()
        await qemu.process.wait()
    assert not is_locked(paths.lock)


async def test_ctrl_c_in_the_foreground_is_answered_at_once(paths: InstancePaths) -> None:
    instance()
    async with living_qemu(paths) as qemu:
        with command(paths, "--foreground") as process:
            assert process.stdout is not None
            await trio.to_thread.run_sync(_read_until, process.stdout, {"event": "ready", "name": "web"})
            process.send_signal(signal.SIGINT)
            await trio.to_thread.run_sync(_read_until, process.stdout, {"event": "notice", "message": "stopping web"})
            assert await exit_status(process) == 0
        await qemu.process.wait()


def _read_until(output: IO[bytes], wanted: dict[str, str]) -> None:
    assert any(json.loads(line) == wanted for line in output), f"it did not say {wanted}"


async def test_in_the_foreground_there_is_no_moment_without_a_lock(paths: InstancePaths) -> None:
    instance()
    async with living_qemu(paths) as qemu:
        qemu.guest.kill()
        with command(paths, "--foreground") as process:
            await boots(process)
            assert is_locked(paths.lock)
            assert not is_locked(paths.up_lock)
            process.send_signal(signal.SIGHUP)  # its terminal was closed
            assert await exit_status(process) == 0
        await qemu.process.wait()


def test_the_foreground_holds_its_lock_before_the_other_is_free(
    paths: InstancePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    async def run(paths: InstancePaths, *_: object, **__: object) -> None:
        seen.append((is_locked(paths.lock), is_locked(paths.up_lock)))

    @asynccontextmanager
    async def prepare_alone(paths: InstancePaths, show: object) -> AsyncIterator[None]:
        async with real(paths, show):  # type: ignore[arg-type]
            yield
            seen.append((is_locked(paths.lock), is_locked(paths.up_lock)))

    async def plan(*_: object) -> LaunchPlan:
        return PLAN

    real = startup._prepare_alone
    monkeypatch.setattr(startup, "_prepare_alone", prepare_alone)
    monkeypatch.setattr(startup, "prepare", plan)
    monkeypatch.setattr(startup, "run_agent", run)
    up("web.yaml", name=None, foreground=True, show=Shown())
    assert seen == [(True, True), (True, False)]
    assert not is_locked(paths.lock)
