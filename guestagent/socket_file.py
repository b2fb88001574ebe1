"""Unix sockets in the guest's file system, made for the host.

The file of a dead process is in the way of the next one: nothing removes it. It is replaced if it is a socket and
connect(2) says ECONNREFUSED, which is what says that nobody listens (unix(7)). Whatever else is there stays.

A living program is not connected to, however often it is asked for: the question is a datagram socket's connect(2),
which a stream's server never hears of. The kernel says EPROTOTYPE (`unix_find_bsd` in net/unix/af_unix.c), also where a
program has bound its socket and does not listen yet. A file exists for a moment before its socket does: a fresh one is
left for the next try.

Nobody can connect before mode and owner are right: the mode is that of the unbound socket (`unix_bind_bsd` in
net/unix/af_unix.c takes it from there), so only root can until the owner has it, and the owner is set on the file that
was made, whatever its path leads to by then. Folders are not made: where one is missing, it belongs to something that
is not there yet.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from guestagent.account import find_account
from protocol.listener_messages import UnixAddress

FRESH = 1.0
"""Seconds for which a file may belong to a program that is only making it."""


class SocketFileError(OSError):
    """The socket cannot be made; `errno` and `strerror` say why."""


@dataclass(frozen=True, slots=True)
class SocketFile:
    """A file that was made here, known by more than its path."""

    path: Path
    device: int
    inode: int

    def is_there(self) -> bool:
        """Whether it is still at its path. The kernel gives its number to no other while its socket is open."""
        try:
            found = self.path.lstat()
        except OSError:  # it was removed, or its folder is out of reach
            return False
        return (found.st_dev, found.st_ino) == (self.device, self.inode)

    def remove(self) -> None:
        """Remove the file, if it is still this one."""
        if self.is_there():
            with contextlib.suppress(OSError):
                self.path.unlink()


def bind_socket_file(sock: socket.socket, address: UnixAddress) -> SocketFile:
    """Bind `sock` to `address`, with its mode and owner. Raises `SocketFileError`."""
    path = Path(address.path)
    try:
        account = find_account(address.user)
    except LookupError as exc:
        raise SocketFileError(errno.ENOENT, str(exc)) from exc
    try:
        with _umask(0):
            os.fchmod(sock.fileno(), address.mode)
            _bind(sock, path)
        made = _identify(path)
    except OSError as exc:
        raise _with_path(exc, path) from exc
    try:
        if account.uid != os.geteuid():
            _give(made, account.uid, account.gid)
    except OSError as exc:
        made.remove()
        raise _with_path(exc, path) from exc
    return made


def _with_path(exc: OSError, path: Path) -> SocketFileError:
    return exc if isinstance(exc, SocketFileError) else SocketFileError(exc.errno, f"{path}: {exc.strerror}")


def _bind(sock: socket.socket, path: Path) -> None:
    try:
        sock.bind(str(path))
    except FileNotFoundError as exc:
        raise SocketFileError(errno.ENOENT, f"there is no folder {path.parent}") from exc
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE:
            raise
        _remove_stale(path)
        sock.bind(str(path))


def _remove_stale(path: Path) -> None:
    """Remove the socket of a dead process; raises `SocketFileError` where anything else is."""
    found = path.lstat()
    if not stat.S_ISSOCK(found.st_mode):
        raise SocketFileError(errno.EADDRINUSE, f"{path} is there, and no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        error = probe.connect_ex(str(path))
    if error != errno.ECONNREFUSED or 0 <= time.time() - found.st_mtime < FRESH:
        raise SocketFileError(errno.EADDRINUSE, f"{path} is in use by another program")
    path.unlink()


def _identify(path: Path) -> SocketFile:
    found = path.lstat()
    return SocketFile(path, found.st_dev, found.st_ino)


def _give(made: SocketFile, uid: int, gid: int) -> None:
    """Give the file to its owner. By descriptor: whoever owns the folder could put another file at its path."""
    descriptor = os.open(made.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if (found.st_dev, found.st_ino) != (made.device, made.inode):
            raise SocketFileError(errno.EADDRINUSE, f"{made.path} was replaced by another program")
        os.chown(f"/proc/self/fd/{descriptor}", uid, gid)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    """The process's umask, for as long as nothing else can run."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
