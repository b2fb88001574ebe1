"""Unix sockets on the host that lead to the guest.

Only the user may connect: the file's mode is 0600, from the first moment on (`unix_bind_bsd` in net/unix/af_unix.c
takes it from the unbound socket), and each folder that has to be made is 0700. The file of a dead process, which
nothing removes, is replaced: it is a socket, and connect(2) says ECONNREFUSED (unix(7)). Anything else there stays.

A living program is not connected to, however often it is asked for: the question is a datagram socket's connect(2),
which a stream's server never hears of. The kernel says EPROTOTYPE (`unix_find_bsd` in net/unix/af_unix.c), also where a
program has bound its socket and does not listen yet. A file exists for a moment before its socket does: a fresh one is
left for the next try.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import stat
import time
from pathlib import Path

BACKLOG = 1_024
FRESH = 1.0
"""Seconds for which a file may belong to a program that is only making it."""

_OWNER_ONLY = 0o600
_FOLDER = 0o700


class SocketFileListener(socket.socket):
    """A listening, non-blocking unix socket that takes its file with it when it is closed, if that is still there."""

    _made: tuple[Path, int, int] | None = None

    def listen_at(self, path: Path) -> None:
        """Make the file. Raises `OSError` with a `strerror` for users; EADDRINUSE when something is in the way."""
        _make_folder(path.parent)
        os.fchmod(self.fileno(), _OWNER_ONLY)
        try:
            self.bind(str(path))
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise
            _remove_stale(path)
            self.bind(str(path))
        found = path.lstat()
        self._made = path, found.st_dev, found.st_ino
        self.listen(BACKLOG)

    def has_its_file(self) -> bool:
        """Whether the file is still at its path. The kernel gives its number to no other while this socket is open."""
        if self._made is None:
            return False
        path, *identity = self._made
        try:
            found = path.lstat()
        except OSError:  # it was removed, or its folder is out of reach: for the user's clients as for us
            return False
        return [found.st_dev, found.st_ino] == identity

    def close(self) -> None:
        """Close the socket, and remove its file."""
        if self._made is not None and self.has_its_file():
            with contextlib.suppress(OSError):
                self._made[0].unlink()
        self._made = None
        super().close()


def listen_at(path: str) -> SocketFileListener:
    """A listener at `path`. Raises `OSError`."""
    sock = SocketFileListener(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.listen_at(Path(path))
    except BaseException:
        sock.close()
        raise
    return sock


def _make_folder(folder: Path) -> None:
    """Make `folder` and all that is missing above it, which `parents=True` would leave to the umask."""
    missing = itertools.takewhile(lambda part: not part.exists(), (folder, *folder.parents))
    for part in reversed(tuple(missing)):
        part.mkdir(mode=_FOLDER, exist_ok=True)


def _remove_stale(path: Path) -> None:
    """Remove the socket of a dead process; raises `OSError` where anything else is."""
    found = path.lstat()
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, "is there, and no socket: move it away, or change hostSocket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        error = probe.connect_ex(str(path))
    if error != errno.ECONNREFUSED or 0 <= time.time() - found.st_mtime < FRESH:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    path.unlink()
