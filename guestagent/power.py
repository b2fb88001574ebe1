"""Clean power-off and reboot, asked for by the host.

systemd is asked where it runs; it stops every service and unmounts. It is asked by a signal, as systemd(1) documents,
and not through `systemctl`: a program of the guest that is started from a frozen one finds our libraries first
(LD_LIBRARY_PATH), and may not run with them (Debian 13's needs a newer libcrypto).

Elsewhere nobody can be relied on to do all that, so what is in memory is written to the disks and the kernel is told:
reboot(2).
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
from pathlib import Path

import trio

_SYSTEMD = Path("/run/systemd/system")
"""Exists when systemd is process 1 (sd_booted(3))."""

_START_POWEROFF_TARGET, _START_REBOOT_TARGET = signal.SIGRTMIN + 4, signal.SIGRTMIN + 5  # systemd(1), "Signals"
_POWER_OFF, _RESTART = 0x4321FEDC, 0x01234567  # linux/reboot.h

_log = logging.getLogger(__name__)


async def shut_down(*, reboot: bool, systemd: Path = _SYSTEMD) -> None:
    """Begin to shut down. Returns when systemd was asked, or not at all. Raises `OSError`."""
    _log.info("the host asks for a %s", "reboot" if reboot else "power-off")
    if await trio.Path(systemd).is_dir():
        os.kill(1, _START_REBOOT_TARGET if reboot else _START_POWEROFF_TARGET)
        return
    await trio.to_thread.run_sync(os.sync)
    _reboot(_RESTART if reboot else _POWER_OFF)


def _reboot(command: int) -> None:
    """reboot(2). In a process namespace of its own it ends the namespace's first process instead."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.reboot(ctypes.c_int(command)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
