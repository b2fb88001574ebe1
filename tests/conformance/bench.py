"""What a case works with: servers in the guest, sockets on the host, and the forwarder in between."""

from __future__ import annotations

import enum
import hashlib
import resource
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import trio

from protocol.ports import Port, Protocol
from tests.conformance.forwarder import Counters, Forwarder
from tests.conformance.guest_side import seeded_blocks
from tests.e2e.clients import eventually, receive_exactly, tcp_client, udp_client
from tests.e2e.server_control import GuestServer

PATIENCE = 20.0
"""Bound on what should happen at once; it only has to hold on a machine that is busy with something else as well."""

SIZES = (0, 1, 70_000, 10_000_000)
SEED = 5
_numbers = iter(range(10_000, 20_000))
"""Neither privileged, nor where the kernels of guest and host take the ports of clients from."""


class Family(enum.StrEnum):
    """The address family that a case is tried with, on both sides."""

    IPV4 = "IPv4"
    IPV6 = "IPv6"

    @property
    def loopback(self) -> str:
        """Where clients on the host connect to."""
        return "127.0.0.1" if self is Family.IPV4 else "::1"

    @property
    def wildcard(self) -> str:
        """What servers in the guest bind to, so that any way into the guest leads to them."""
        return "0.0.0.0" if self is Family.IPV4 else "::"


class Bench:
    """One forwarder, one guest, one address family. `long` asks for the full counts and sizes."""

    def __init__(self, forwarder: Forwarder, server: GuestServer, family: Family, *, long: bool = False) -> None:
        self.forwarder = forwarder
        self.server = server
        self.family = family
        self.long = long
        self.notes: list[str] = []
        self._open: list[Port] = []
        self._exposed: set[Port] = set()

    def note(self, text: str) -> None:
        """Put a measured figure beside the outcome."""
        self.notes.append(text)

    # ------------------------------------------------------------------ servers

    def port(self, protocol: Protocol = Protocol.TCP, address: str = "") -> Port:
        """An unused port of the guest, to be closed when the case is over."""
        port = Port(protocol, address or self.family.wildcard, next(_numbers))
        self._open.append(port)
        return port

    async def tcp(self, kind: str, address: str = "", backlog: int = 512) -> Port:
        """A TCP server that can be reached on the host."""
        port = self.port(Protocol.TCP, address)
        await self.server.tcp(kind, port.address, port.number, backlog)
        await self.expose(port)
        return port

    async def many(self) -> Port:
        """The same of the kind that echoes for thousands."""
        port = self.port()
        await self.server.request("many", host=port.address, port=port.number)
        await self.expose(port)
        return port

    async def udp(self, kind: str, address: str = "") -> Port:
        """A UDP server that can be reached on the host."""
        port = self.port(Protocol.UDP, address)
        await self.server.udp(kind, port.address, port.number)
        await self.expose(port)
        return port

    async def expose(self, *ports: Port) -> None:
        """Wait until open ports are reachable."""
        self._exposed.update(ports)
        await self.forwarder.expose(*ports)

    @asynccontextmanager
    async def pretended(self, protocol: Protocol = Protocol.TCP) -> AsyncIterator[Port]:
        """A port that the forwarder shows and that nobody has in the guest."""
        port = self.port(protocol)
        async with self.forwarder.pretended(port):
            yield port

    async def close(self, *ports: Port) -> None:
        """Close ports in the guest and wait until the host has freed them."""
        for port in ports:
            await self.server.close(port.number)
            self._open.remove(port)
        await self.withdraw(*ports)

    async def withdraw(self, *ports: Port) -> None:
        """Wait until closed ports are free on the host."""
        await self.forwarder.withdraw(*ports)
        self._exposed.difference_update(ports)

    async def clear(self) -> None:
        """Close what the case has left open, in whatever state."""
        await self.server.request("gate", open=True)
        for port in self._open:
            await self.server.close(port.number)
        left, self._open, self._exposed = self._exposed, [], set()
        if left:
            await self.forwarder.withdraw(*left)

    async def counters(self, port: Port) -> Counters:
        """What the forward has carried."""
        return await self.forwarder.counters(port)

    async def has_had(self, port: Port, *, alive: int, total: int) -> None:
        """Wait until the forward counts so many connections or flows, now and in all."""

        async def reached() -> bool:
            counters = await self.counters(port)
            return (counters.connections, counters.connections_total) == (alive, total)

        await eventually(reached, PATIENCE)

    async def in_guest(self, counter: str) -> int:
        """One of the guest server's counters."""
        return (await self.server.counters()).get(counter, 0)

    async def in_guest_reaches(self, counter: str, wanted: int, seconds: float = PATIENCE) -> None:
        """Wait until a counter of the guest's server is `wanted` or more."""

        async def reached() -> bool:
            return await self.in_guest(counter) >= wanted

        await eventually(reached, seconds)

    async def batch(self, *requests: dict[str, Any], seconds: float = 60.0) -> list[dict[str, Any]]:
        """Let the guest do several things without a round trip in between."""
        answers: list[dict[str, Any]] = (await self.server.request("batch", requests=requests, seconds=seconds))[
            "answers"
        ]
        return answers

    # ------------------------------------------------------------------ clients

    def client(self, port: Port) -> AbstractAsyncContextManager[trio.socket.SocketType]:
        """A connected TCP socket."""
        return tcp_client(port.number, self.family.loopback)

    def udp_client(self, port: Port) -> AbstractAsyncContextManager[trio.socket.SocketType]:
        """A connected UDP socket."""
        return udp_client(port.number, self.family.loopback)

    async def refused(self, port: Port) -> bool:
        """Whether the host itself says that nobody listens."""
        try:
            async with self.client(port):
                return False
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:  # the guest refused, and the host has not heard of it yet
            return False

    async def echoes(self, port: Port) -> None:
        """Check that an echo server answers."""
        with trio.fail_after(PATIENCE):
            async with self.client(port) as client:
                await client.send(b"anybody there?")
                assert await receive_exactly(client, 14) == b"anybody there?"


@asynccontextmanager
async def served_meanwhile(bench: Bench, port: Port) -> AsyncIterator[list[float]]:
    """One-byte round trips to an echo server all through the block; the seconds that each took."""
    taken: list[float] = []

    async def ping() -> None:
        async with bench.client(port) as client:
            while True:
                began = trio.current_time()
                await client.send(b"?")
                assert await client.recv(1) == b"?"
                taken.append(trio.current_time() - began)
                await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ping)
        yield taken
        nursery.cancel_scope.cancel()
    assert taken, "nothing came through meanwhile"


async def reset_comes(client: trio.socket.SocketType) -> None:
    """Wait for a reset; fails when an end or data comes instead."""
    with trio.fail_after(PATIENCE):
        try:
            received = await client.recv(1)
        except ConnectionResetError:
            return
    raise AssertionError(f"not a reset but {'data' if received else 'an end'}")


async def send_blocks(client: trio.socket.SocketType, blocks: Iterable[bytes], quiet: float | None = None) -> int:
    """Send `blocks`; returns the bytes sent when all are, or when the socket took none for `quiet` seconds."""
    sent = 0
    for block in blocks:
        rest = memoryview(block)
        while rest:
            with trio.move_on_after(float("inf") if quiet is None else quiet) as scope:
                taken = await client.send(rest)
                rest = rest[taken:]
                sent += taken
            if scope.cancelled_caught:
                return sent
    return sent


def digest_of(size: int) -> str:
    """SHA-256 of the `size` bytes that both ends can make."""
    seen = hashlib.sha256()
    for block in seeded_blocks(size, SEED):
        seen.update(block)
    return seen.hexdigest()


async def digest_received(client: trio.socket.SocketType) -> tuple[int, str]:
    """Bytes and SHA-256 of what comes up to the end of data."""
    seen, size = hashlib.sha256(), 0
    while data := await client.recv(1 << 18):
        seen.update(data)
        size += len(data)
    return size, seen.hexdigest()


def raise_descriptor_limit() -> None:
    """Allow as many open files as this process may have: a case holds thousands of connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
