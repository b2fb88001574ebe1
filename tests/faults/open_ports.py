"""Ports of the guest that come and go while the rest dies, and the table that they should make."""

from __future__ import annotations

import random
import socket

from tests.e2e.server_control import GuestServer
from tests.faults.traffic import Served

MOST = 8

PORTS = range(20_000, 32_768)
"""Above those of the traffic's servers, which close with a port of the same number, and below those that either kernel
gives to clients: one of the traffic's own had a port that was to be listened at, once in 850 faults."""


def is_free(port: int) -> bool:
    """Whether nobody on the host has the port at a loopback address."""
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as probe:
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True


class OpenPorts:
    """What the guest has open: the servers of the traffic, and some ports that change."""

    def __init__(self, server: GuestServer, served: Served) -> None:
        self._server = server
        self._steady = {("tcp", port) for port in served.tcp} | {("udp", served.echo)}
        self._changing: list[int] = []

    @property
    def expected(self) -> set[tuple[str, int]]:
        """Protocol and port of every forward that there should be."""
        return self._steady | {("tcp", port) for port in self._changing}

    async def churn(self, rng: random.Random) -> None:
        """Open a port, and close another one if there are some."""
        port = next(port for port in iter(lambda: rng.choice(PORTS), 0) if port not in self._changing and is_free(port))
        self._changing.append(await self._server.tcp("banner", rng.choice(("127.0.0.1", "0.0.0.0")), port))
        if len(self._changing) > MOST or rng.random() < 0.5:
            await self._server.close(self._changing.pop(rng.randrange(len(self._changing))))

    async def calm(self) -> None:
        """Close those that change."""
        while self._changing:
            await self._server.close(self._changing.pop())

    async def close(self) -> None:
        """Close all of them, also those of the traffic."""
        await self.calm()
        while self._steady:
            await self._server.close(self._steady.pop()[1])
