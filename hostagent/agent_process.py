"""Starts the host agent as a detached process and follows what it says until the instance is ready."""

from __future__ import annotations

import json
import subprocess
import sys

import trio

from hostagent.errors import UserError
from hostagent.paths import InstancePaths
from hostagent.phases import Show

STOP_BOUND = 20.0
"""Seconds that a host agent which was told to stop may need to end QEMU."""

_TAIL = 2_000

_detached: list[trio.Process] = []
"""Agents that live on, kept so that Python has no reason to warn that nobody waited for them."""


async def start_agent(paths: InstancePaths, show: Show) -> None:
    """Return when the instance is ready; raises `UserError` when it cannot be. Cancelled, it ends what it started."""
    with paths.agent_errors.open("wb") as errors:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "hostagent.agent_main", paths.name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    ready = False
    try:
        ready = await _follow(process, show)
        if not ready:
            raise _death(paths, await process.wait())
    finally:
        if not ready:
            await _end(process)
    _detached.append(process)


async def _follow(process: trio.Process, show: Show) -> bool:
    """Show the agent's lines; whether it got ready before it stopped talking."""
    assert process.stdout is not None
    pending = b""
    async for chunk in process.stdout:
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            event = json.loads(line)
            if event["event"] == "error":
                raise UserError(event["message"], event["hint"])
            show(event)
            if event["event"] == "ready":
                return True
    return False


async def _end(process: trio.Process) -> None:
    """Stop the agent, which ends its QEMU first."""
    with trio.CancelScope(shield=True):
        if process.poll() is None:
            process.terminate()
        with trio.move_on_after(STOP_BOUND):
            await process.wait()
            return
        process.kill()
        await process.wait()


def _death(paths: InstancePaths, status: int) -> UserError:
    words = paths.agent_errors.read_bytes()[-_TAIL:].decode("utf-8", "replace").strip()
    if status == 0 and not words:  # `down` from elsewhere, or the guest itself
        return UserError(
            f"{paths.name} was powered off before it was ready", f"start it with: hostagent up {paths.name}"
        )
    return UserError(
        f"the host agent ended with status {status} before the instance was ready" + (f":\n{words}" if words else ""),
        f"see `hostagent logs {paths.name}`; the serial console is in {paths.serial_log}",
    )
