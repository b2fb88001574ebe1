"""Ends an instance: through its host agent where there is one, or by QEMU's own means."""

from __future__ import annotations

import trio

from hostagent.api_client import ApiClient
from hostagent.instance_lock import is_locked
from hostagent.paths import InstancePaths
from hostagent.phases import Show
from hostagent.qemu.machine import StopBounds, attach


def down(paths: InstancePaths, *, force: bool, show: Show) -> str:
    """End the instance; returns what was needed, "not running" when it did not run. Raises `UserError`."""
    if is_locked(paths.lock):
        show({"event": "notice", "message": f"stopping {paths.name}"})
        return ApiClient(paths).stop(force=force)
    return trio.run(_stop_orphan, paths, force)


async def _stop_orphan(paths: InstancePaths, force: bool) -> str:
    """End a QEMU whose host agent has died."""
    machine = attach(paths)
    if machine is None:
        return "not running"
    return str(await machine.stop(bounds=StopBounds(power_button=0) if force else None))
