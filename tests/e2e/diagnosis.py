"""What is told of an instance when a test in it fails: enough to see which part of it stands still, and why.

A guest that does not answer has either stopped (its virtual CPUs use no time), spins (one of them uses all of it), or
runs well and only its agent is away. The host agent's log says what it heard last, the serial console what the kernel
said.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import psutil

from hostagent.serial_log import last_lines
from tests.e2e.vm import Installation

LINES = 25
"""From the end of each log."""

SAMPLE_SECONDS = 1.0
"""How long the CPU use of QEMU's threads is looked at."""


def diagnosis(at: Installation) -> str:
    """All of it, for each instance of an installation, as far as it can be had."""
    parts = []
    for folder in sorted(at.home.glob("*/")):
        parts.append(f"---- {folder.name}\n{status(at, folder.name)}")
        for name in ("agent.log", "agent.err", "serial.log"):
            parts += [f"-- {name}", *last_lines(folder / name, LINES)]
    parts.append(f"-- CPU time of QEMU's threads in {SAMPLE_SECONDS:.0f} s")
    try:
        parts += busy_threads(at)
    except psutil.Error as exc:
        parts.append(f"(one ended meanwhile: {exc})")
    return "\n".join(parts)


def status(at: Installation, name: str) -> str:
    """What `hostagent status` says."""
    try:
        done = at.try_run("status", name, seconds=30)
    except subprocess.TimeoutExpired:
        return "(no answer within 30 s)"
    return (done.stdout + done.stderr).decode(errors="replace")


def busy_threads(at: Installation) -> Iterator[str]:
    """Each thread of each QEMU, and the CPU time that it used in a moment."""
    qemus = [process for process in at.processes() if "qemu-system" in process.name()]
    before = {thread.id: _cpu(thread) for process in qemus for thread in process.threads()}
    time.sleep(SAMPLE_SECONDS)
    for process in qemus:
        for thread in process.threads():
            yield f"{process.pid}, thread {thread.id}: {_cpu(thread) - before.get(thread.id, 0.0):.2f} s"


def _cpu(thread: psutil._ntuples.pthread) -> float:
    return float(thread.user_time + thread.system_time)
