"""Who has an instance: locks on files in its folder, held by living processes and by nobody else (flock(2)).

Whoever only looks takes the lock too, for microseconds and shared: several may look at once, and one that wants to
hold it and is disturbed by a look tries again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hostagent.errors import UserError
from hostagent.paths import InstancePaths


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold the lock on `path` inside the block, if nobody else does; says whether it is held."""
    with _open(path) as descriptor:
        while not (held := _take(descriptor, fcntl.LOCK_EX)):
            if not _take(descriptor, fcntl.LOCK_SH):
                break
        yield held


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock on `path`."""
    if not path.exists():
        return False
    with _open(path) as descriptor:
        return not _take(descriptor, fcntl.LOCK_SH)


@contextmanager
def held_lock(paths: InstancePaths) -> Iterator[None]:
    """Be the host agent of the instance inside the block; raises `UserError` when another one is."""
    with try_lock(paths.lock) as held:
        if not held:
            raise UserError(f"{paths.name} is running already", f"see `hostagent status {paths.name}`")
        paths.lock.write_text(f"{os.getpid()}\n", encoding="ascii")
        yield


def host_agent_pid(paths: InstancePaths) -> int | None:
    """The process that is the instance's host agent, or was the last one; None where none has said so."""
    try:
        return int(paths.lock.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def kill_host_agent(paths: InstancePaths) -> None:
    """Kill the process that holds the instance's lock as its host agent, if there is one. Nobody else can be hit."""
    if (pid := host_agent_pid(paths)) is None:
        return
    with contextlib.suppress(OSError):
        if not hasattr(os, "pidfd_open"):  # macOS, Linux before 5.3
            if is_locked(paths.lock):
                os.kill(pid, signal.SIGKILL)
            return
        descriptor = os.pidfd_open(pid)
        try:
            # still locked after opening: the pid was the host agent's when it was opened
            if is_locked(paths.lock):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)


@contextmanager
def _open(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
