"""Reaching what runs on the host, for clients in the guest."""

from __future__ import annotations

import errno
import os
import socket

import trio

from hostagent.forwards import Endpoint, HostEnd, SocketFile

DIAL_BOUND = 10.0
"""Seconds that a dial may take: as long as the guest's own dials."""

UNIX_RETRY = 0.02
"""Seconds until a unix socket whose queue was full is dialled again: connect(2) says EAGAIN, and nothing says when."""

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (reached on the loopback, never bound)
_OTHER_FAMILY = {"127.0.0.1": "::1", "::1": "127.0.0.1"}


def addresses(end: Endpoint) -> list[tuple[str, int]]:
    """Where a server of the host at `end` may be: loopback is two addresses."""
    first = _LOOPBACK.get(end.address, end.address)
    other = _OTHER_FAMILY.get(first)
    return [(address, end.port) for address in (first, other) if address is not None]


async def dial(end: HostEnd) -> socket.socket:
    """A connected, non-blocking stream socket. Raises `OSError`, after `DIAL_BOUND` seconds at the latest."""
    with trio.move_on_after(DIAL_BOUND):
        if isinstance(end, SocketFile):
            return await _dial(socket.AF_UNIX, end.path)
        return await _dial_one_of(addresses(end))
    raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


async def _dial_one_of(candidates: list[tuple[str, int]]) -> socket.socket:
    """The first that answers; raises what the first one said."""
    first, *others = candidates
    try:
        return await _dial_tcp(first)
    except ConnectionRefusedError:
        for other in others:
            try:
                return await _dial_tcp(other)
            except OSError:
                continue
        raise


async def _dial_tcp(address: tuple[str, int]) -> socket.socket:
    sock = await _dial(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, address)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


async def _dial(family: socket.AddressFamily, address: tuple[str, int] | str) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        error = await _connect(sock, address)
    except BaseException:
        sock.close()
        raise
    if not error and _is_connected_to_itself(sock):
        error = errno.ECONNREFUSED
    if error:
        sock.close()
        raise OSError(error, os.strerror(error))
    return sock


async def _connect(sock: socket.socket, address: tuple[str, int] | str) -> int:
    """0 or an error's number. Not trio's own `connect`: that takes EAGAIN of a unix socket for "in progress"."""
    error = sock.connect_ex(address)
    while error == errno.EAGAIN and sock.family is socket.AF_UNIX:
        await trio.sleep(UNIX_RETRY)
        error = sock.connect_ex(address)
    if error == errno.EINPROGRESS:
        await trio.lowlevel.wait_writable(sock)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return error


def _is_connected_to_itself(sock: socket.socket) -> bool:
    """Whether nobody listened, and the kernel happened to choose the destination as the source (RFC 9293, 3.5)."""
    try:
        return sock.family is not socket.AF_UNIX and sock.getsockname() == sock.getpeername()
    except OSError:
        return False  # reset meanwhile; the first read says so
