"""`hostagent up`: from a configuration, a template or a name to an instance that is ready.

What needs the user's eyes (mistakes in the file, a download, a build) happens here, in the command's own process, one
phase after the other. Then the host agent is started as a process of its own, and what it says is passed on until the
instance is ready.

What a later command finds: until QEMU was started once, a new instance that did not come to be is removed as if it
had never been asked for; after that its disk stays. Two `up` at once: one prepares, the other waits, and then finds
it running. An instance whose host agent died gets a new one, and its guest notices nothing.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial

import trio

from hostagent.agent_main import run_agent
from hostagent.agent_process import start_agent
from hostagent.config.resolved import dump_resolved
from hostagent.errors import EndedBySignalError, UserError
from hostagent.instance_lock import held_lock, is_locked, try_lock
from hostagent.instances import is_instance, runs
from hostagent.launch_plan import write_plan
from hostagent.lifecycle import Phase
from hostagent.paths import InstancePaths, cache, home
from hostagent.phases import Show, ShownPhases
from hostagent.preparation import prepare
from hostagent.qemu.machine import attach
from hostagent.startup_request import StartupRequest, startup_request

ENDED_BY = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Undo what `up` does, and stop the guest of an `up --foreground`: the last one when its terminal goes.

Ctrl-C too is listened for: as an exception of Python's it gets lost in a callback of the garbage collector's, now and
then."""

_LOCK_INTERVAL = 0.2


def up(
    argument: str | None, *, name: str | None, foreground: bool, show: Show, ended_by: Collection[int] = ()
) -> InstancePaths:
    """Bring an instance up and return its paths; raises `UserError`.

    A signal of `ended_by` leaves nothing half done behind, and raises `EndedBySignalError`.
    """
    phases = ShownPhases(show)
    with phases.shown(Phase.VALIDATE) as detail:
        request = startup_request(argument, name)
        detail.append(request.paths.name)
    for warning in request.loaded.warnings:
        phases.warn(warning.described(argument or request.paths.name))
    trio.run(_unless_ended, partial(_up, request, phases, foreground, show), ended_by)
    return request.paths


async def _unless_ended(work: Callable[[], Awaitable[None]], ended_by: Collection[int]) -> None:
    if not ended_by:
        await work()
        return
    received: int | None = None
    with trio.open_signal_receiver(*ended_by) as signals:
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                nonlocal received
                received = await anext(signals)
                nursery.cancel_scope.cancel()

            nursery.start_soon(listen)
            await work()
            received = None  # too late: it is up
            nursery.cancel_scope.cancel()
    if received is not None:
        raise EndedBySignalError(received)


async def _up(request: StartupRequest, phases: ShownPhases, foreground: bool, show: Show) -> None:
    paths = request.paths
    with _folder(paths, show) as used, ExitStack() as kept:
        async with _prepare_alone(paths, show):
            if is_locked(paths.lock):
                used.append(paths)
                _say_running(request, foreground, show)
                return
            if attach(paths) is not None:
                show({"event": "notice", "message": f"the QEMU of {paths.name} runs without a host agent: taking over"})
            else:
                plan = await prepare(paths, request.loaded.config, cache(), phases)
                paths.config.write_text(request.loaded.text, encoding="utf-8")
                paths.resolved_config.write_text(dump_resolved(request.loaded.config), encoding="utf-8")
                write_plan(paths.launch_plan, plan)
            if foreground:
                kept.enter_context(held_lock(paths))  # before the other lock is free
            else:
                await start_agent(paths, show)
        used.append(paths)
        if foreground:
            await run_agent(paths, show, ended_by=ENDED_BY)


def _say_running(request: StartupRequest, foreground: bool, show: Show) -> None:
    paths = request.paths
    how = f", in the background or another terminal: `hostagent down {paths.name}` stops it" if foreground else ""
    show({"event": "notice", "message": f"{paths.name} is running already{how}"})
    if not request.from_instance and paths.config.read_text(encoding="utf-8") != request.loaded.text:
        message = (
            "it runs with another configuration: `hostagent config reload` with the file changes its forwards, "
            f"`hostagent down {paths.name}` and then `up` all of it"
        )
        show({"event": "warning", "message": message})


@contextmanager
def _folder(paths: InstancePaths, show: Show) -> Iterator[list[InstancePaths]]:
    """Make the instance's folder; remove it again if it is new and the block neither ends well nor started QEMU.

    Whoever interrupts a start is told so; an error speaks for itself.
    """
    new = not paths.directory.exists()
    if not new and not is_instance(paths) and any(paths.directory.iterdir()):
        # `delete` would remove all of it one day.
        raise UserError(f"{paths.directory} has something else in it", "choose another name: --name NAME")
    used: list[InstancePaths] = []
    try:
        home().mkdir(mode=0o700, parents=True, exist_ok=True)
        paths.directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise UserError(
            f"{paths.directory} cannot be made: {exc.strerror}", "set HOSTAGENT_HOME to a folder you may write to"
        ) from exc
    interrupted = True
    try:
        yield used
        interrupted = False
    except Exception:
        interrupted = False
        raise
    finally:
        if new and not used and not paths.serial_log.exists():
            shutil.rmtree(paths.directory)
            if interrupted:
                show({"event": "notice", "message": f"nothing is left of {paths.name}"})
        elif interrupted and not used and not is_locked(paths.up_lock) and not runs(paths):
            show({"event": "notice", "message": f"{paths.name} is stopped"})


@asynccontextmanager
async def _prepare_alone(paths: InstancePaths, show: Show) -> AsyncIterator[None]:
    """Wait until no other `up` prepares this instance, and be the one that does."""
    told = False
    while True:
        paths.directory.mkdir(mode=0o700, exist_ok=True)  # the one that we waited for may have failed, and removed it
        with try_lock(paths.up_lock) as held:
            if held:
                yield
                return
        if not told:
            told = True
            show({"event": "notice", "message": f"another `hostagent up` is starting {paths.name}: waiting for it"})
        await trio.sleep(_LOCK_INTERVAL)
