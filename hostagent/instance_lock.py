"""Who has an instance: locks on files in its folder, held by living processes and by nobody else (flock(2))."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hostagent.errors import UserError
from hostagent.paths import InstancePaths


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold the lock on `path` inside the block, if nobody else does; says whether it is held."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock on `path`."""
    if not path.exists():
        return False
    with try_lock(path) as free:
        return not free


@contextmanager
def held_lock(paths: InstancePaths) -> Iterator[None]:
    """Be the host agent of the instance inside the block; raises `UserError` when another one is."""
    with try_lock(paths.lock) as held:
        if not held:
            raise UserError(f"{paths.name} is running already", f"see `hostagent status {paths.name}`")
        yield
