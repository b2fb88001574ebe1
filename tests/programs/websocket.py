"""A WebSocket on a plain socket, from the client's side: what a browser does, one step at a time."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    Pong,
    Request,
    TextMessage,
)

Awaited = TypeVar("Awaited", bound=Event)

_READ = 1 << 16
_FRAGMENT = 100_000


class WebSocket:
    """An open WebSocket whose waits are bounded by the socket's timeout."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._arrived: list[Event] = []

    def send(self, event: Event) -> None:
        """Send what wsproto makes of an event."""
        self._socket.sendall(self._protocol.send(event))

    def receive(self, kind: type[Awaited]) -> Awaited:
        """The next event, which must be of this kind."""
        while not self._arrived:
            data = self._socket.recv(_READ)
            self._protocol.receive_data(data or None)
            self._arrived += self._protocol.events()
        event = self._arrived.pop(0)
        assert isinstance(event, kind), f"{event} instead of a {kind.__name__}"
        return event

    def say(self, message: str | bytes) -> None:
        """Send a message, in several frames if it is long."""
        for start in range(0, len(message), _FRAGMENT) or (0,):
            part, finished = message[start : start + _FRAGMENT], start + _FRAGMENT >= len(message)
            if isinstance(part, str):
                self.send(TextMessage(part, message_finished=finished))
            else:
                self.send(BytesMessage(part, message_finished=finished))

    def hear(self) -> str | bytes:
        """The next message, whole."""
        first = self.receive(Message)
        parts, finished = [first.data], first.message_finished
        while not finished:
            part = self.receive(Message)
            parts.append(part.data)
            finished = part.message_finished
        return "".join(parts) if isinstance(parts[0], str) else b"".join(parts)

    def ping(self, payload: bytes) -> bytes:
        """Ask for a pong; what is in it."""
        self.send(Ping(payload))
        return bytes(self.receive(Pong).payload)

    def close(self, code: int, reason: str) -> CloseConnection:
        """Say goodbye; the other side's answer. The connection has ended after it."""
        self.send(CloseConnection(code=code, reason=reason))
        answer = self.receive(CloseConnection)
        self.ended()
        return answer

    def ended(self) -> None:
        """The server ends the connection, and has nothing more to say."""
        assert self._socket.recv(1) == b""


@contextmanager
def open_websocket(host: str, port: int, path: str) -> Iterator[WebSocket]:
    """A WebSocket to a server, open; its connection ends with the block."""
    with socket.create_connection((host, port), 60) as connection:
        opened = WebSocket(connection)
        opened.send(Request(host="localhost", target=path))
        opened.receive(AcceptConnection)
        yield opened
