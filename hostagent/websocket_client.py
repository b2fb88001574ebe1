"""A WebSocket to the host agent, from the client's side: wsproto on a trio stream.

Thin: it knows HTTP's handshake and WebSocket messages, and nothing of what is in them.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Message,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.events import Event as WebSocketEvent
from wsproto.utilities import LocalProtocolError as WebSocketLocalError
from wsproto.utilities import RemoteProtocolError as WebSocketError

from hostagent.errors import UserError

_HANDSHAKE_BOUND: Final = 10.0
_CLOSE_BOUND: Final = 1.0
_READ: Final = 65_536


class ConnectionLostError(Exception):
    """The server went away, or what it sent is no WebSocket."""


class WebSocketClient:
    """An open WebSocket. One task may receive while others send."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._connection = WSConnection(ConnectionType.CLIENT)
        self._sending = trio.Lock()
        self._arrived: deque[WebSocketEvent] = deque()

    async def handshake(self, target: str) -> None:
        """Become a WebSocket; raises `UserError` when the server refuses, and `ConnectionLostError`."""
        await self._send(Request(host="localhost", target=target))
        refused = False
        body = bytearray()
        while True:
            match await self._event():
                case AcceptConnection():
                    return
                case RejectConnection(has_body=False):
                    raise _refusal(b"")
                case RejectConnection():
                    refused = True
                case RejectData(data, body_finished) if refused:
                    body += data
                    if body_finished:
                        raise _refusal(bytes(body))

    async def send(self, message: bytes | str) -> None:
        """Send a message whole; raises `ConnectionLostError`."""
        await self._send(BytesMessage(message) if isinstance(message, bytes) else TextMessage(message))

    async def messages(self) -> AsyncIterator[bytes | str]:
        """Whole messages until the server closes, or breaks the rules of WebSockets; raises `ConnectionLostError`."""
        parts: list[bytes | bytearray | str] = []
        while True:
            match event := await self._event():
                case Message():
                    parts.append(event.data)
                    if event.message_finished:
                        yield "".join(map(str, parts)) if isinstance(event, TextMessage) else _joined(parts)
                        parts.clear()
                case Ping():
                    await self._send(event.response())
                case CloseConnection():
                    return

    async def close(self) -> None:
        """Say goodbye, and do not wait for the answer."""
        with trio.move_on_after(_CLOSE_BOUND) as scope:
            scope.shield = True
            try:
                await self._send(CloseConnection(code=1000))
            except ConnectionLostError:
                return  # which is what was wanted

    async def _send(self, event: WebSocketEvent) -> None:
        async with self._sending:
            try:
                await self._stream.send_all(self._connection.send(event))
            except (trio.BrokenResourceError, trio.ClosedResourceError, WebSocketLocalError) as exc:
                raise ConnectionLostError from exc

    async def _event(self) -> WebSocketEvent:
        try:
            while not self._arrived:
                data = await self._stream.receive_some(_READ)
                if not data:
                    raise ConnectionLostError
                self._connection.receive_data(data)
                self._arrived.extend(self._connection.events())
        except (trio.BrokenResourceError, WebSocketError) as exc:
            raise ConnectionLostError from exc
        return self._arrived.popleft()


def _joined(parts: list[bytes | bytearray | str]) -> bytes:
    return b"".join(part for part in parts if not isinstance(part, str))


def _refusal(body: bytes) -> UserError:
    try:
        document = json.loads(body)
        return UserError(str(document["message"]), str(document["hint"]))
    except (ValueError, KeyError, TypeError):
        return UserError("the host agent does not run commands", "it may be of another version: start it anew")


@asynccontextmanager
async def open_websocket(path: Path, target: str) -> AsyncIterator[WebSocketClient]:
    """A WebSocket to `target` on the unix socket `path`, closed afterwards.

    Raises OSError when nobody listens there, `UserError` when the handshake is refused or not answered, and
    `ConnectionLostError`.
    """
    async with await trio.open_unix_socket(path) as stream:
        client = WebSocketClient(stream)
        try:
            with trio.fail_after(_HANDSHAKE_BOUND):
                await client.handshake(target)
        except trio.TooSlowError as exc:
            raise UserError("the host agent does not answer", "see `hostagent logs`") from exc
        try:
            yield client
        finally:
            await client.close()
