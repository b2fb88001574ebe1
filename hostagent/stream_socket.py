"""Sockets of the host's side of forwards: made so that nothing about them surprises."""

from __future__ import annotations

import socket
import struct

import trio

from hostagent.forward_plan import ListenerKey
from hostagent.forwards import SocketFile
from hostagent.socket_file import listen_at
from protocol.ports import Protocol

BACKLOG = 1_024
_ABORT, _IN_ORDER = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)


def listen(key: ListenerKey) -> socket.socket:
    """A bound, non-blocking socket for `key`; TCP listens. Raises `OSError`.

    SO_REUSEADDR only for TCP: on Linux it lets two UDP sockets share a port, and one of them hears nothing (socket(7)).
    """
    host = key.host
    if isinstance(host, SocketFile):
        return listen_at(host.path)
    family = socket.AF_INET6 if ":" in host.address else socket.AF_INET
    tcp = key.protocol is Protocol.TCP
    sock = socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if family is socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if tcp:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host.address, host.port))
        if tcp:
            sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


async def wait_readable(sock: socket.socket) -> bool:
    """Return when there is something to read: True, or False when `sock` is closed, whether before, meanwhile or since.

    Whoever closes it calls `trio.lowlevel.notify_closing` first. That wakes a task that waits, and no other: one that
    has not begun yet, or was woken by data in the same moment, finds a closed socket.
    """
    if sock.fileno() >= 0:
        try:
            await trio.lowlevel.wait_readable(sock)
        except trio.ClosedResourceError:
            return False
    return sock.fileno() >= 0


def reset_unless_finished(sock: socket.socket) -> None:
    """From now on a close is a reset, also the kernel's after kill -9, until `finish` is called (SO_LINGER, socket(7)).

    Otherwise a peer could not tell a stream that this process's death cut short from one that came to its end.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)


def finish(sock: socket.socket) -> None:
    """Close with an orderly end."""
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _IN_ORDER)
