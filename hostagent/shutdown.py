"""Ends an instance: through its host agent where there is one, or by QEMU's own means."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from hostagent.api_client import ApiClient
from hostagent.errors import UserError
from hostagent.instance_lock import is_locked, kill_host_agent
from hostagent.paths import InstancePaths
from hostagent.phases import Show
from hostagent.qemu.machine import Machine, StopBounds, attach

END_BOUND = 10.0
"""Seconds that a host agent whose guest is off may take to end."""

API_BOUND = 10.0
"""Seconds between a host agent's start and its first answer, on a busy machine."""

UP_BOUND = 10.0
"""Seconds that a `hostagent up` whose machine was ended may take to notice."""

PATIENCE = 5.0
"""Seconds after which whoever waits for a guest is told what for."""

_INTERVAL = 0.01


def down(paths: InstancePaths, *, force: bool, show: Show) -> str:
    """End the instance; returns what was needed, "not running" when it did not run. Raises `UserError`."""
    if is_locked(paths.lock):
        _say(show, f"stopping {paths.name}")
        wait_for(lambda: _answers(paths) or not is_locked(paths.lock), API_BOUND)
        try:
            if force:
                ApiClient(paths).status()  # one that hangs shows at once that it does
            goes_on = f"{paths.name} goes on stopping"
            with _told_if_interrupted(goes_on, show), _told_what_is_waited_for(paths, show):
                needed = ApiClient(paths).stop(force=force)
            # It answers before it ends, and until then `up` would say that it runs.
            wait_for(lambda: not is_locked(paths.lock), END_BOUND)
        except UserError:
            if not force:
                raise
            _say(show, f"the host agent of {paths.name} does not answer: killing it")
            kill_host_agent(paths)
            needed = trio.run(_stop_orphan, attach(paths), force)
        return needed
    if is_locked(paths.up_lock):
        raise UserError(f"{paths.name} is being prepared", "wait until it is up, or interrupt that `hostagent up`")
    if (machine := attach(paths)) is None:
        return "not running"
    _say(show, f"stopping {paths.name}")
    if force:
        return trio.run(_stop_orphan, machine, force)
    _say(
        show,
        f"the host agent of {paths.name} is gone: pressing the guest's power button; "
        f"`hostagent down --force {paths.name}` does not wait for that",
    )
    with _told_if_interrupted(f"{paths.name} goes off only if its guest has taken notice of the power button", show):
        return trio.run(_stop_orphan, machine, force)


def _say(show: Show, message: str) -> None:
    show({"event": "notice", "message": message})


@contextmanager
def _told_if_interrupted(words: str, show: Show) -> Iterator[None]:
    """Tell whoever interrupts the block what becomes of the instance, which was asked to stop: nothing takes that back.

    trio may pack the interrupt into a group, where whatever else is in it speaks for itself.
    """
    try:
        yield
    except (KeyboardInterrupt, BaseExceptionGroup) as exc:
        if isinstance(exc, KeyboardInterrupt) or exc.subgroup(KeyboardInterrupt):
            _say(show, words)
        raise


@contextmanager
def _told_what_is_waited_for(paths: InstancePaths, show: Show) -> Iterator[None]:
    words = f"the guest is ending its programs; `hostagent down --force {paths.name}` does not wait for that"
    timer = threading.Timer(PATIENCE, _say, [show, words])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _answers(paths: InstancePaths) -> bool:
    """Whether the host agent takes connections: it holds the lock a moment earlier."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        return client.connect_ex(str(paths.api_socket)) == 0


def wait_for(condition: Callable[[], bool], bound: float) -> None:
    """Return when `condition` is true, or after `bound` seconds. flock(2) knows no wait with a bound."""
    deadline = time.monotonic() + bound
    while not condition() and time.monotonic() < deadline:
        time.sleep(_INTERVAL)


async def _stop_orphan(machine: Machine | None, force: bool) -> str:
    """End a QEMU whose host agent has died."""
    if machine is None:
        return "not running"
    return str(await machine.stop(bounds=StopBounds(power_button=0) if force else None))
