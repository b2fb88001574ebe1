"""Runs mmdebstrap, with or without root, so that it can be watched and stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from functools import partial
from pathlib import Path

import trio

from hostagent.build_output import BuildOutput, explain_failure
from hostagent.errors import UserError
from hostagent.progress import Progress

_STOP_SECONDS = 10
"""How long mmdebstrap may take to remove its root after it was told to stop."""


async def usable_mode() -> str:
    """mmdebstrap's mode: root when we are, else a user namespace, which is tried out first.

    Raises `UserError` when the user may not make one.
    """
    if os.geteuid() == 0:
        return "root"
    if shutil.which("newuidmap") is None:
        raise UserError("building without root needs newuidmap", "on Debian or Ubuntu: sudo apt-get install uidmap")
    probe = ["mmdebstrap", "--unshare-helper", "true"]
    done = await trio.run_process(probe, capture_stdout=True, capture_stderr=True, check=False)
    if done.returncode != 0:
        raise UserError(
            f"this user cannot make user namespaces: {done.stderr.decode(errors='replace').strip()[-300:]}",
            "give the user a range of ids: sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER"
            " (and allow user namespaces where a sysctl or AppArmor forbids them), or run this once as root",
        )
    return "unshare"


async def run_mmdebstrap(command: list[str], environment: dict[str, str], log: Path, progress: Progress) -> None:
    """Run `command`, reporting what it says; all of it is kept in `log`. Raises `UserError` with the cause."""
    output = BuildOutput(progress)
    with log.open("wb") as log_file:
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(
                partial(
                    trio.run_process,
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # so that all of it can be stopped, and Ctrl-C reaches it through us only
                    check=False,
                    deliver_cancel=_stop,
                )
            )
            assert process.stdout is not None
            async for chunk in process.stdout:
                log_file.write(chunk)
                output.feed(chunk)
    if process.returncode != 0:
        raise explain_failure(output.tail, log)


async def _stop(process: trio.Process) -> None:
    """Let mmdebstrap remove its root; kill what is left of its session after a while."""
    os.killpg(process.pid, signal.SIGTERM)
    with trio.move_on_after(_STOP_SECONDS):
        await process.wait()
        return
    os.killpg(process.pid, signal.SIGKILL)
