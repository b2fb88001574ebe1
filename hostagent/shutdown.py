"""Ends an instance: through its host agent where there is one, or by QEMU's own means."""

from __future__ import annotations

import time

import trio

from hostagent.api_client import ApiClient
from hostagent.instance_lock import is_locked
from hostagent.paths import InstancePaths
from hostagent.phases import Show
from hostagent.qemu.machine import StopBounds, attach

END_BOUND = 10.0
"""Seconds that a host agent whose guest is off may take to end."""

_END_INTERVAL = 0.01


def down(paths: InstancePaths, *, force: bool, show: Show) -> str:
    """End the instance; returns what was needed, "not running" when it did not run. Raises `UserError`."""
    if is_locked(paths.lock):
        show({"event": "notice", "message": f"stopping {paths.name}"})
        needed = ApiClient(paths).stop(force=force)
        _wait_for_end(paths)
        return needed
    return trio.run(_stop_orphan, paths, force)


def _wait_for_end(paths: InstancePaths) -> None:
    """Return when the host agent is gone: it answers before it ends, and until then `up` would say that it runs."""
    deadline = time.monotonic() + END_BOUND
    while is_locked(paths.lock) and time.monotonic() < deadline:
        time.sleep(_END_INTERVAL)  # flock(2) knows no wait with a bound


async def _stop_orphan(paths: InstancePaths, force: bool) -> str:
    """End a QEMU whose host agent has died."""
    machine = attach(paths)
    if machine is None:
        return "not running"
    return str(await machine.stop(bounds=StopBounds(power_button=0) if force else None))
