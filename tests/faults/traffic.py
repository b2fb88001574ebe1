"""Traffic in which every byte is checked, while things die: downloads, uploads, exchanges, datagrams.

A client that meets a fault must see a reset. An end that comes early, a wrong byte or a wrong digest is written down
in `Traffic.problems`, and so is a refusal where the listener should have stayed. Every client begins again at once.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from tests.e2e.clients import LOOPBACKS, abort_at_close, receive_to_end, send_all, tcp_client, udp_client
from tests.e2e.guest_server import BLOCK, NumberedStream, numbered_block
from tests.e2e.server_control import GuestServer

AGAIN = 0.02
"""Seconds before a client that met a fault tries again."""

ANSWER = 0.5
"""Seconds that a datagram's answer is waited for, before it counts as lost."""

LARGEST_EXCHANGE = 200_000
LARGEST_DATAGRAM = 9_000


@dataclass(frozen=True, slots=True)
class Served:
    """Ports of the guest's servers."""

    numbered: int
    verify: int
    digest: int
    echo: int
    """UDP."""

    @property
    def tcp(self) -> frozenset[int]:
        """Those of them that are TCP."""
        return frozenset({self.numbered, self.verify, self.digest})


async def serve(server: GuestServer, udp_port: int) -> Served:
    """Start the servers that the clients need."""
    return Served(
        numbered=await server.tcp("numbered", "127.0.0.1"),
        verify=await server.tcp("verify", "127.0.0.1"),
        digest=await server.tcp("digest", "127.0.0.1"),
        echo=await server.udp("echo", "127.0.0.1", udp_port),
    )


async def guest_problems(server: GuestServer) -> list[str]:
    """What the guest's servers saw that must not happen."""
    counters = await server.counters()
    return [f"guest: {counters[name]} uploads {name}" for name in ("wrong", "cut short") if counters.get(name)]


class Traffic:
    """All clients, and what they saw."""

    def __init__(self, served: Served, seed: int, *, may_be_refused: bool) -> None:
        self._served = served
        self._rng = random.Random(seed)
        self._may_be_refused = may_be_refused
        self.problems: list[str] = []
        self.seen: Counter[str] = Counter()
        """Bytes, exchanges and datagrams that were right, and resets."""
        self._progress = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        """Keep all of them busy, until cancelled."""
        async with trio.open_nursery() as nursery:
            for client in (self._download, self._upload, self._exchange, self._datagrams):
                nursery.start_soon(self._again, client)

    def _count(self, what: str, amount: int = 1) -> None:
        self.seen[what] += amount
        self._progress.unpark_all()

    async def more(self, *what: str) -> None:
        """Wait until each of `what` has grown: all of that works now."""
        before = {name: self.seen[name] for name in what}
        while not all(self.seen[name] > count for name, count in before.items()):
            await self._progress.park()

    async def _again(self, client: Callable[[str], Awaitable[None]]) -> None:
        while True:
            try:
                await client(self._rng.choice(LOOPBACKS))
            except ConnectionRefusedError:
                if not self._may_be_refused:
                    self.problems.append(f"{client.__name__.strip('_')}: refused, so that the listener was gone")
                self._count("refused")
                await trio.sleep(AGAIN)
            except OSError:
                self._count("resets")
                await trio.sleep(AGAIN)

    async def _download(self, host: str) -> None:
        stream = NumberedStream()
        async with tcp_client(self._served.numbered, host) as client:
            while data := await client.recv(BLOCK):
                if not stream.accepts(data):
                    self.problems.append(f"download: wrong bytes behind {stream.position}")
                    return
                self._count("downloaded", len(data))
        self.problems.append(f"download: an end after {stream.position} bytes")

    async def _upload(self, host: str) -> None:
        number = 0
        async with tcp_client(self._served.verify, host) as client:
            abort_at_close(client)  # when the traffic is over: an end would be one that comes early
            while True:
                await send_all(client, numbered_block(number))
                number += 1
                self._count("uploaded", BLOCK)

    async def _exchange(self, host: str) -> None:
        data = self._rng.randbytes(self._rng.randint(0, LARGEST_EXCHANGE))
        async with tcp_client(self._served.digest, host) as client:
            await send_all(client, data)
            client.shutdown(trio.socket.SHUT_WR)
            answer = await receive_to_end(client)
        if answer != hashlib.sha256(data).hexdigest().encode() + b"\n":
            self.problems.append(f"exchange of {len(data)} bytes: answered {answer!r}")
        self._count("exchanges")

    async def _datagrams(self, host: str) -> None:
        """One after the other; late answers are taken too, and none twice."""
        expected: dict[bytes, bytes] = {}
        async with udp_client(self._served.echo, host) as client:
            for number in range(1_000):
                datagram = number.to_bytes(8, "big") + self._rng.randbytes(self._rng.randint(0, LARGEST_DATAGRAM))
                expected[datagram[:8]] = datagram
                await client.send(datagram)
                with trio.move_on_after(ANSWER):
                    while (answer := await client.recv(1 << 16)) != datagram:
                        self._check_late(expected, answer)
                    del expected[datagram[:8]]
                    self._count("datagrams")

    def _check_late(self, expected: dict[bytes, bytes], answer: bytes) -> None:
        if expected.pop(answer[:8], None) != answer:
            self.problems.append(f"datagram: {len(answer)} bytes that were not sent, or came twice")


@asynccontextmanager
async def traffic(served: Served, seed: int, *, may_be_refused: bool) -> AsyncIterator[Traffic]:
    """Traffic for as long as the block lasts."""
    clients = Traffic(served, seed, may_be_refused=may_be_refused)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clients.run)
        yield clients
        nursery.cancel_scope.cancel()
