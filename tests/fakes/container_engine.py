"""A container engine: a real HTTP/1.0 server on a real unix socket that lists what a test says, or misbehaves.

`tests/guestagent/engines` has an answer of the real thing, which this one's have the form of.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

HEAD = b"HTTP/1.0 200 OK\r\nApi-Version: 1.41\r\nContent-Type: application/json\r\n\r\n"


def listed(name: str, number: int, address: str = "172.17.0.2", identifier: str = "ab" * 32) -> dict[str, object]:
    """A container with one published port, as Docker lists it."""
    return {
        "Id": identifier,
        "Names": [f"/{name}"],
        "Ports": [{"IP": at, "PrivatePort": 80, "PublicPort": number, "Type": "tcp"} for at in ("0.0.0.0", "::")],
        "NetworkSettings": {"Networks": {"bridge": {"IPAddress": address, "GlobalIPv6Address": ""}}},
    }


@dataclass(slots=True)
class ContainerEngine:
    """The running engine: what it says, and what it was asked."""

    containers: list[dict[str, object]] = field(default_factory=list)
    raw: bytes | None = None
    """What is said instead of a list."""
    endless: bool = False
    """Whether the answer never ends."""
    silent: bool = False
    """Whether there is none, with the connection open."""
    requests: list[bytes] = field(default_factory=list)
    asked: trio.Event = field(default_factory=trio.Event)
    """Set by the first request."""

    def answer(self) -> bytes:
        """All that is said to one request."""
        return HEAD + json.dumps(self.containers).encode() + b"\n" if self.raw is None else self.raw


@asynccontextmanager
async def container_engine(path: Path) -> AsyncIterator[ContainerEngine]:
    """An engine for as long as the block runs, whose socket is `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = ContainerEngine()
    folder = os.open(path.parent, os.O_PATH)  # a test's folder may be too deep for a socket's address
    try:
        with trio.socket.socket(trio.socket.AF_UNIX) as sock:
            await sock.bind(f"/proc/self/fd/{folder}/{path.name}")
            sock.listen()
            async with trio.open_nursery() as nursery:
                listener = trio.SocketListener(sock)

                async def handle(stream: trio.SocketStream) -> None:
                    await _serve(engine, stream)

                nursery.start_soon(trio.serve_listeners, handle, [listener])
                yield engine
                nursery.cancel_scope.cancel()
    finally:
        os.close(folder)
        path.unlink()


async def _serve(engine: ContainerEngine, stream: trio.SocketStream) -> None:
    request = b""
    try:
        while not request.endswith(b"\r\n\r\n"):
            if not (chunk := await stream.receive_some()):
                return
            request += chunk
        engine.requests.append(request)
        engine.asked.set()
        if engine.silent:
            await trio.sleep_forever()
        await stream.send_all(engine.answer())
        while engine.endless:
            await stream.send_all(b" " * 65_536)
    except trio.BrokenResourceError:
        pass  # the client has had enough
