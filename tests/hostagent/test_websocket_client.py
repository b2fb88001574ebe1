from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)

from hostagent import websocket_client
from hostagent.errors import UserError
from hostagent.websocket_client import ConnectionLostError, WebSocketClient, open_websocket


class Server:
    """The other end of one WebSocket, event by event."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.connection = WSConnection(ConnectionType.SERVER)

    async def send(self, event: Event) -> None:
        await self.stream.send_all(self.connection.send(event))

    async def next(self) -> Event:
        while True:
            for event in self.connection.events():
                return event
            self.connection.receive_data(await self.stream.receive_some() or None)


Script = Callable[[Server], Awaitable[None]]


@asynccontextmanager
async def client_of(script: Script, tmp_path: Path) -> AsyncIterator[WebSocketClient]:
    path = tmp_path / "s"
    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(str(path))
        listener.listen()

        async def serve() -> None:
            connection, _ = await listener.accept()
            async with trio.SocketStream(connection) as stream:
                server = Server(stream)
                assert isinstance(await server.next(), Request)
                await script(server)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                async with open_websocket(path, "/v1/exec") as client:
                    yield client


async def test_messages_are_whole_and_pings_are_answered(tmp_path: Path) -> None:
    async def script(server: Server) -> None:
        await server.send(AcceptConnection())
        await server.send(TextMessage("he", message_finished=False))
        await server.send(Ping(b"there?"))
        await server.send(TextMessage("llo"))
        await server.send(BytesMessage(b"\1", message_finished=False))
        await server.send(BytesMessage(b"\2"))
        assert await server.next() == Pong(b"there?")
        assert await server.next() == BytesMessage(b"answer")
        assert await server.next() == TextMessage("text")
        await server.send(CloseConnection(code=1000))

    async with client_of(script, tmp_path) as client:
        messages = client.messages()
        assert [await anext(messages), await anext(messages)] == ["hello", b"\1\2"]
        await client.send(b"answer")
        await client.send("text")
        assert [message async for message in messages] == []


async def test_a_refusal_is_shown_in_the_servers_words(tmp_path: Path) -> None:
    async def script(server: Server) -> None:
        body = b'{"message": "the guest is away", "hint": "wait"}'
        length = str(len(body)).encode()
        await server.send(RejectConnection(status_code=409, headers=[(b"content-length", length)], has_body=True))
        await server.send(RejectData(body[:20], body_finished=False))
        await server.send(RejectData(body[20:], body_finished=True))

    with pytest.RaisesGroup(pytest.RaisesExc(UserError, match="the guest is away"), flatten_subgroups=True):
        async with client_of(script, tmp_path):
            pass


async def test_a_refusal_without_words(tmp_path: Path) -> None:
    async def script(server: Server) -> None:
        await server.send(RejectConnection(status_code=404))

    with pytest.RaisesGroup(pytest.RaisesExc(UserError, match="does not run commands"), flatten_subgroups=True):
        async with client_of(script, tmp_path):
            pass


@pytest.mark.parametrize("garbage", [b"", b"HTTP/1.1 200 OK\r\n\r\n", b"\0\xff\r\n\r\n", b"x" * 100_000])
async def test_what_is_no_websocket(tmp_path: Path, garbage: bytes) -> None:
    async def script(server: Server) -> None:
        await server.stream.send_all(garbage)

    with pytest.RaisesGroup(pytest.RaisesExc((ConnectionLostError, UserError)), flatten_subgroups=True):
        async with client_of(script, tmp_path):
            pass


async def test_a_connection_that_breaks_off_is_no_end(tmp_path: Path) -> None:
    async def script(server: Server) -> None:
        await server.send(AcceptConnection())

    async with client_of(script, tmp_path) as client:
        with pytest.raises(ConnectionLostError):
            await anext(client.messages())


async def test_garbage_after_the_handshake_ends_the_messages(tmp_path: Path) -> None:
    async def script(server: Server) -> None:
        await server.send(AcceptConnection())
        assert await server.next() == TextMessage("now")
        await server.stream.send_all(b"\xff" * 100)

    async with client_of(script, tmp_path) as client:
        await client.send("now")
        assert [message async for message in client.messages()] == []


async def test_a_server_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket_client, "_HANDSHAKE_BOUND", 0.05)

    async def script(server: Server) -> None:
        assert await server.stream.receive_some() == b"", "the client gives up"

    with pytest.RaisesGroup(pytest.RaisesExc(UserError, match="does not answer"), flatten_subgroups=True):
        async with client_of(script, tmp_path):
            pass
