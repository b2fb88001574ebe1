"""Clients on the host, without anything between the test and the socket."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

LOOPBACKS = ("127.0.0.1", "::1")
ABORT = struct.pack("ii", 1, 0)
"""SO_LINGER with a time of 0: close(2) sends RST (socket(7))."""


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


@asynccontextmanager
async def tcp_client(port: int, host: str = "127.0.0.1") -> AsyncIterator[trio.socket.SocketType]:
    """A connected socket, closed at the end."""
    with trio.socket.socket(_family(host)) as client:
        await client.connect((host, port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield client


@asynccontextmanager
async def udp_client(port: int, host: str = "127.0.0.1") -> AsyncIterator[trio.socket.SocketType]:
    """A connected UDP socket with room for large datagrams."""
    with trio.socket.socket(_family(host), socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        await client.connect((host, port))
        yield client


async def send_all(client: trio.socket.SocketType, data: bytes | bytearray | memoryview) -> None:
    """Send all of `data`."""
    with memoryview(data) as rest:
        sent = 0
        while sent < len(rest):
            sent += await client.send(rest[sent:])


async def receive_exactly(client: trio.socket.SocketType, size: int) -> bytes:
    """`size` bytes; raises `EOFError` when the other side finished before."""
    received = bytearray()
    while len(received) < size:
        data = await client.recv(min(1 << 18, size - len(received)))
        if not data:
            raise EOFError(f"the end came after {len(received)} of {size} bytes")
        received += data
    return bytes(received)


async def receive_to_end(client: trio.socket.SocketType) -> bytes:
    """All bytes up to the end of data."""
    received = bytearray()
    while data := await client.recv(1 << 18):
        received += data
    return bytes(received)


def abort_at_close(client: trio.socket.SocketType) -> None:
    """Whenever it is closed, that is an RST."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)


def abort(client: trio.socket.SocketType) -> None:
    """Close with RST."""
    abort_at_close(client)
    client.close()


async def exchange(client: trio.socket.SocketType, datagram: bytes, seconds: float = 10.0) -> bytes:
    """The answer to one datagram; raises `trio.TooSlowError`."""
    with trio.fail_after(seconds):
        await client.send(datagram)
        return await client.recv(1 << 17)


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float) -> None:
    """Look until `condition` holds; `TooSlowError` after `seconds`. For what is seen from outside, without an event."""
    with trio.fail_after(seconds):
        while not await condition():  # noqa: ASYNC110
            await trio.sleep(0.002)
