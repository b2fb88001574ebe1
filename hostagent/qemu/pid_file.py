"""Which process is an instance's QEMU, and whether it still lives.

The file holds JSON, `{"pid": 4711, "started": 1795451112.9}` (seconds since 1970), and QEMU inherits an exclusive
flock on it. The kernel drops the lock when QEMU ends, however it ends, so the lock is the truth and the number is only
how to address it: a reused pid, a zombie that nobody reaped, a host that was rebooted or whose clock was set cannot
be mistaken for the QEMU that was started. (A start time alone can: it is derived from the wall clock, which moves.)
The lock also keeps a second QEMU from being started. The file is never unlinked, as that would split it from its lock.

Nothing here waits and trio is not imported, so that listing many instances stays cheap.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hostagent.errors import UserError


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process and when it was started, in seconds since 1970."""

    pid: int
    started: float


class HeldPidFile:
    """A pid file whose lock is held through `fd`; pass the fd on to the process that shall hold it."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def record(self, identity: ProcessIdentity) -> None:
        """Write down who holds the lock from now on."""
        os.pwrite(self.fd, json.dumps({"pid": identity.pid, "started": identity.started}).encode() + b"\n", 0)


@contextlib.contextmanager
def hold_pid_file(path: Path) -> Iterator[HeldPidFile]:
    """The emptied and locked pid file; closing it leaves the lock with whoever inherited it.

    Raises `UserError` when a living QEMU holds it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while not _try_lock(fd, fcntl.LOCK_EX):
            # is_held() of another process locks for microseconds, but shared: then this one succeeds, and we try again
            if not _try_lock(fd, fcntl.LOCK_SH):
                name = path.parent.name
                raise UserError(f"QEMU of {name} is already running", f"see it with: hostagent status {name}")
        os.ftruncate(fd, 0)
        yield HeldPidFile(fd)
    finally:
        os.close(fd)


def is_held(path: Path) -> bool:
    """Whether the instance's QEMU lives, or is being started this moment."""
    return _read_if_held(path) is not None


def living_process(path: Path) -> ProcessIdentity | None:
    """The process that holds the pid file, or None when there is none.

    Raises `UserError` when one holds it without being recorded: it is being started this moment, or the host agent
    was killed in the milliseconds between starting QEMU and writing its pid.
    """
    content = _read_if_held(path)
    return None if content is None else _parse(content, path)


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_if_held(path: Path) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return None if _try_lock(fd, fcntl.LOCK_SH) else os.read(fd, 4096)
    finally:
        os.close(fd)


def _parse(content: bytes, path: Path) -> ProcessIdentity:
    try:
        recorded = json.loads(content)
        return ProcessIdentity(int(recorded["pid"]), float(recorded["started"]))
    except (ValueError, TypeError, KeyError) as exc:
        raise UserError(
            f"QEMU of {path.parent.name} is running, but {path} does not say which process it is",
            f"find it with: fuser {path}; end it with kill, then try again",
        ) from exc
