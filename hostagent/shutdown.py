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
from hostagent.qemu.machine import StopBounds, attach
from hostagent.qemu.pid_file import is_held

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
        show({"event": "notice", "message": f"stopping {paths.name}"})
        wait_for(lambda: _answers(paths) or not is_locked(paths.lock), API_BOUND)
        try:
            if force:
                ApiClient(paths).status()  # one that hangs shows at once that it does
            with _told_what_is_waited_for(paths, show):
                needed = ApiClient(paths).stop(force=force)
            # It answers before it ends, and until then `up` would say that it runs.
            wait_for(lambda: not is_locked(paths.lock), END_BOUND)
        except UserError:
            if not force:
                raise
            show({"event": "notice", "message": f"the host agent of {paths.name} does not answer: killing it"})
            kill_host_agent(paths)
            needed = trio.run(_stop_orphan, paths, force)
        return needed
    if is_locked(paths.up_lock):
        raise UserError(f"{paths.name} is being prepared", "wait until it is up, or interrupt that `hostagent up`")
    if is_held(paths.qemu_pid):
        show({"event": "notice", "message": f"stopping {paths.name}, whose host agent is gone"})
        if not force:
            words = f"its power button is pressed; `hostagent down --force {paths.name}` does not wait for the guest"
            show({"event": "notice", "message": words})
    return trio.run(_stop_orphan, paths, force)


@contextmanager
def _told_what_is_waited_for(paths: InstancePaths, show: Show) -> Iterator[None]:
    words = f"the guest is ending its programs; `hostagent down --force {paths.name}` does not wait for that"
    timer = threading.Timer(PATIENCE, show, [{"event": "notice", "message": words}])
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


async def _stop_orphan(paths: InstancePaths, force: bool) -> str:
    """End a QEMU whose host agent has died."""
    machine = attach(paths)
    if machine is None:
        return "not running"
    return str(await machine.stop(bounds=StopBounds(power_button=0) if force else None))
