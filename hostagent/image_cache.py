"""The folder of images: what an entry is, and how two processes share it.

Promises: an entry is either complete or absent (it is prepared in a folder of its own and renamed), only one process
at a time prepares it (flock, released by the kernel when that process dies), and nothing here deletes a complete
entry, because overlay disks of instances have it as their backing file.

Refuses: waiting in a way that cannot be cancelled. A thread blocked in flock(2) cannot be interrupted, so the lock is
tried without blocking and tried again; the kernel offers no event for "the lock is free".
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from hostagent.errors import UserError
from hostagent.progress import Progress

LOCK_RETRY_SECONDS = 0.2
"""How long a process waits before it tries a lock again that another process holds."""


@dataclass(frozen=True, slots=True)
class Image:
    """A disk image that is complete and verified, and how to boot it. Its files are never written to."""

    disk: Path
    format: str
    """QEMU's name of the disk's format: `qcow2` or `raw`."""
    kernel: Path | None
    initrd: Path | None
    command_line: str
    """Kernel command line; empty when the image boots through firmware."""
    origin: str
    """Where the image comes from, in words for the user."""
    notes: tuple[str, ...] = ()
    """Why better candidates were not taken, in words for the user, one sentence each."""
    again: str = "correct the location of the image"
    """What to do when the disk turns out to be damaged, in words for the user."""


@asynccontextmanager
async def entry_lock(path: Path, what: str, progress: Progress) -> AsyncIterator[None]:
    """Hold the exclusive lock on the file `path`; while another process holds it, wait and say so as `what`.

    Raises `UserError` when there can be no such file.
    """
    descriptor = _opened_lock(path)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress.update(f"waiting for another hostagent that prepares {what}", 0, None)
                await trio.sleep(LOCK_RETRY_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _opened_lock(path: Path) -> int:
    """The descriptor of a lock in a folder that is made where there is none: the first use of the cache, so that
    whatever is wrong with its place is the user's to mend.
    """
    try:
        with disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise UserError(
            f"{path.parent} cannot be made: {exc.strerror}", "set HOSTAGENT_CACHE to a folder that you may write to"
        ) from exc


_SAYABLE = {
    errno.ENOSPC: ("the disk that holds {} is full", "free some space, or set HOSTAGENT_CACHE to a larger disk"),
    errno.EDQUOT: ("your disk quota for {} is used up", "free some space, or set HOSTAGENT_CACHE to another disk"),
    errno.EROFS: ("{} is on a read-only file system", "set HOSTAGENT_CACHE to a folder that can be written"),
    errno.EACCES: ("{} cannot be written: permission denied", "set HOSTAGENT_CACHE to a folder of your own"),
    errno.EPERM: ("{} cannot be written: not permitted", "set HOSTAGENT_CACHE to a folder of your own"),
    errno.ENOTDIR: ("a part of {} is a file, not a folder", "move that file away, or set HOSTAGENT_CACHE"),
}


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Turn an `OSError` about `place` that the user can mend into a `UserError`; others pass."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in _SAYABLE:
            raise
        message, hint = _SAYABLE[exc.errno]
        raise UserError(message.format(place), hint) from exc
