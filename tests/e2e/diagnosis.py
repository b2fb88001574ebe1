"""What is told of an instance when a test in it fails: enough to see which part of it stands still, and why.

A guest that does not answer has either stopped (its virtual CPUs use no time), spins (one of them uses all of it), or
runs well and only its agent is away. The host agent's log says what it heard last, the serial console what the kernel
said. A tiny guest's monitor is free, and tells where each of its virtual CPUs is, twice.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence

import psutil
import trio

from hostagent.serial_log import last_lines
from tests.e2e.shared_guest import SharedGuest
from tests.e2e.virtual_cpus import virtual_cpus
from tests.e2e.vm import Installation

LINES = 25
"""From the end of each log."""

SAMPLE_SECONDS = 1.0
"""How long the CPU use of QEMU's threads is looked at."""


def of_tiny_guest(guest: SharedGuest) -> str:
    """All of it, as far as it can be had."""
    before = trio.run(virtual_cpus, guest.monitor_socket)
    used = used_time([psutil.Process(guest.pid)])
    after = trio.run(virtual_cpus, guest.monitor_socket)
    title = "-- virtual CPUs"
    return "\n".join(["-- serial console", guest.serial.tail(LINES), title, before, *used, title, after])


def of_installation(at: Installation) -> str:
    """All of it, for each instance, as far as it can be had."""
    parts = []
    for folder in sorted(at.home.glob("*/")):
        parts.append(f"---- {folder.name}\n{status(at, folder.name)}")
        for name in ("agent.log", "agent.err", "serial.log"):
            parts += [f"-- {name}", *last_lines(folder / name, LINES)]
    parts += used_time([process for process in at.processes() if "qemu-system" in process.name()])
    return "\n".join(parts)


def status(at: Installation, name: str) -> str:
    """What `hostagent status` says."""
    try:
        done = at.try_run("status", name, seconds=30)
    except subprocess.TimeoutExpired:
        return "(no answer within 30 s)"
    return (done.stdout + done.stderr).decode(errors="replace")


def used_time(qemus: Sequence[psutil.Process]) -> list[str]:
    """The CPU time that each thread of these processes used in a moment."""
    title = f"-- CPU time of QEMU's threads in {SAMPLE_SECONDS:.0f} s"
    try:
        return [title, *_used_time(qemus)]
    except psutil.Error as exc:
        return [title, f"(one ended meanwhile: {exc})"]


def _used_time(qemus: Sequence[psutil.Process]) -> Iterator[str]:
    before = {thread.id: _cpu(thread) for process in qemus for thread in process.threads()}
    time.sleep(SAMPLE_SECONDS)
    for process in qemus:
        for thread in process.threads():
            yield f"{process.pid}, thread {thread.id}: {_cpu(thread) - before.get(thread.id, 0.0):.2f} s"


def _cpu(thread: psutil._ntuples.pthread) -> float:
    return float(thread.user_time + thread.system_time)
