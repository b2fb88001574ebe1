"""Where a guest's virtual CPUs stand, told by QEMU's monitor: whether a guest that does not answer spins or sleeps."""

from __future__ import annotations

from pathlib import Path

import trio

from hostagent.qemu.monitor import MonitorError, open_monitor

BOUND = 10.0
"""Seconds for QEMU to tell. Also a caller that was cancelled waits for it: that is when it is asked."""


async def virtual_cpus(monitor_socket: Path) -> str:
    """Where each of them is: its instruction pointer and whether it is halted; or why that cannot be had."""
    with trio.move_on_after(BOUND, shield=True):
        try:
            async with open_monitor(monitor_socket) as monitor:
                told = await monitor.execute("human-monitor-command", {"command-line": "info registers -a"})
        except MonitorError as exc:
            return f"(the monitor does not tell: {exc})"
        return "\n".join(line for line in told.splitlines() if line.startswith(("CPU#", "RIP=")))
    return f"(the monitor does not tell within {BOUND:.0f} s)"
