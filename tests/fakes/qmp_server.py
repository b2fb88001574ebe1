"""A QMP server that says what a test tells it to, cut as the test likes.

`tests/hostagent/qemu/test_monitor.py` runs the same exchange against this and against the real QEMU.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import trio

GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": "fake"}, "capabilities": []}}


class QmpServer:
    """Serves one client after another, like QEMU. Override nothing: script it through its methods."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        """Every command after the handshake."""
        self.greets = True
        """False: accept the connection and stay silent, as QEMU does to its second client."""
        self._stream: trio.SocketStream | None = None
        self._arrived = trio.Event()

    async def say(self, *messages: object) -> None:
        """Send each message as a line of JSON."""
        await self.say_bytes(b"".join(json.dumps(message).encode() + b"\r\n" for message in messages))

    async def say_bytes(self, data: bytes) -> None:
        """Send `data` as it is."""
        assert self._stream is not None, "no client yet"
        await self._stream.send_all(data)

    async def answer(self, command: dict[str, Any], value: object) -> None:
        """Reply to `command`."""
        await self.say({"return": value, "id": command["id"]})

    async def next_command(self, number: int) -> dict[str, Any]:
        """The command that arrived as `number` (from 0), when it has."""
        while len(self.received) <= number:
            await self._arrived.wait()
        return self.received[number]

    async def hang_up(self) -> None:
        """Close the connection to the client."""
        assert self._stream is not None, "no client yet"
        await self._stream.aclose()

    async def _serve(self, listener: trio.SocketListener) -> None:
        while True:
            self._stream = await listener.accept()
            async with self._stream:
                # either side hung up, which is what the test wanted
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await self._handle(self._stream)

    async def _handle(self, stream: trio.SocketStream) -> None:
        if self.greets:
            await self.say(GREETING)
        buffer = bytearray()
        while data := await stream.receive_some(65536):
            buffer += data
            *lines, rest = buffer.split(b"\n")
            buffer = bytearray(rest)
            for line in lines:
                await self._accept(json.loads(line))

    async def _accept(self, command: dict[str, Any]) -> None:
        if command["execute"] == "qmp_capabilities":
            await self.answer(command, {})
            return
        self.received.append(command)
        self._arrived.set()
        self._arrived = trio.Event()


@contextlib.asynccontextmanager
async def qmp_server(path: Path) -> AsyncIterator[QmpServer]:
    """A server that listens on the unix socket `path` until the end of the block."""
    server = QmpServer()
    with trio.socket.socket(trio.socket.AF_UNIX) as sock:
        await sock.bind(str(path))
        sock.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server._serve, trio.SocketListener(sock))
            try:
                yield server
            finally:
                nursery.cancel_scope.cancel()
