"""Clean power-off and reboot, asked for by the host.

systemd is asked where it runs; it stops every service and unmounts. Elsewhere nobody can be relied on to do that, so
what is in memory is written to the disks and the kernel is told: reboot(2).
"""

from __future__ import annotations

import ctypes
import logging
import os
from pathlib import Path

import trio

_SYSTEMD = Path("/run/systemd/system")
"""Exists when systemd is process 1 (sd_booted(3))."""

_POWER_OFF, _RESTART = 0x4321FEDC, 0x01234567  # linux/reboot.h
_SYSTEMCTL_SECONDS = 30.0

_log = logging.getLogger(__name__)


async def shut_down(*, reboot: bool, systemd: Path = _SYSTEMD) -> None:
    """Begin to shut down. Returns when systemd has taken over, or not at all. Raises `OSError`."""
    verb = "reboot" if reboot else "poweroff"
    _log.info("the host asks for %s", verb)
    if await trio.Path(systemd).is_dir():
        with trio.move_on_after(_SYSTEMCTL_SECONDS):
            result = await trio.run_process(["systemctl", "--no-block", verb], check=False, stdin=None)
            if result.returncode == 0:
                return
        _log.warning("systemctl %s failed; doing it without", verb)
    await trio.to_thread.run_sync(os.sync)
    _reboot(_RESTART if reboot else _POWER_OFF)


def _reboot(command: int) -> None:
    """reboot(2). In a process namespace of its own it ends the namespace's first process instead."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.reboot(ctypes.c_int(command)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
