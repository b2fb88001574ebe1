"""A network namespace of the test's own, with the real kernel in it: nobody else's ports are seen or disturbed."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from unittest import mock

from trio._core import _thread_cache

_CLONE_NEWNET = 0x40000000
_SET_INTERFACE_FLAGS = 0x8914  # SIOCSIFFLAGS (netdevice(7))
_UP = 0x1


@contextlib.contextmanager
def network_namespace() -> Iterator[None]:
    """Run the block (and the processes it starts) in a new network namespace with its loopback up. Needs root.

    A thread is in the namespace of the one that started it, for life (clone(2)), and trio keeps idle ones for later
    calls, those that start processes among them. So the block has threads of its own, which nobody is given afterwards.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _check(libc.unshare(_CLONE_NEWNET))
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                fcntl.ioctl(control, _SET_INTERFACE_FLAGS, struct.pack("16sH14x", b"lo", _UP))
            with mock.patch.object(_thread_cache, "THREAD_CACHE", _thread_cache.ThreadCache()):
                yield
        finally:
            _check(libc.setns(before, _CLONE_NEWNET))
    finally:
        os.close(before)


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)} (network namespaces need root)")
