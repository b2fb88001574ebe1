"""An HTTP server on a real socket that serves one file and misbehaves as told.

Each request takes the next behaviour of the script; the last one stays for all further requests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What the server does with one request. By default it does everything right."""

    content: bytes = b""
    etag: str | None = '"one"'
    status: int | None = None
    """Answer with this status and a page, instead of the file."""
    location: str | None = None
    cut_after: int | None = None
    """Close the connection after so many bytes of the body."""
    stall_after: int | None = None
    """Fall silent after so many bytes of the body, with the connection open."""
    claim: int | None = None
    """The Content-Length that is sent instead of the right one."""
    ranges: bool = True
    """Whether Range is obeyed."""
    wrong_range: bool = False
    """Answer 206 with the start of the file, whatever was asked for."""


@dataclass(slots=True)
class FileServer:
    """The running server: where it is and what it was asked."""

    address: str
    script: list[Behaviour]
    requests: list[dict[str, str]] = field(default_factory=list)
    """Headers of each request, with lower-case names."""

    def next_behaviour(self) -> Behaviour:
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]


@asynccontextmanager
async def file_server(script: Sequence[Behaviour], name: str = "image.img") -> AsyncIterator[FileServer]:
    """A server for as long as the block runs; its file is at `address`, whose last part is `name`."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        server = FileServer(f"http://127.0.0.1:{port}/{name}", list(script))

        async def handle(stream: trio.SocketStream) -> None:
            try:
                await _serve(server, stream)
            except trio.BrokenResourceError:
                pass  # the client went away, as some tests have it do
            finally:
                await trio.aclose_forcefully(stream)

        nursery.start_soon(trio.serve_listeners, handle, listeners)
        yield server
        nursery.cancel_scope.cancel()


async def _serve(server: FileServer, stream: trio.SocketStream) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        if not (data := await stream.receive_some()):
            return
        head += data
    lines = head.decode().split("\r\n")[1:]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    server.requests.append(headers)
    behaviour = server.next_behaviour()
    await stream.send_all(_head(behaviour, headers))
    body = _body(behaviour, headers)
    end = behaviour.cut_after if behaviour.cut_after is not None else behaviour.stall_after
    await stream.send_all(body[:end])
    if behaviour.stall_after is not None:
        await trio.sleep_forever()


def _start(behaviour: Behaviour, headers: dict[str, str]) -> int | None:
    """Where the asked-for range begins, if it is to be obeyed."""
    if not behaviour.ranges or "range" not in headers or headers.get("if-range") not in (None, behaviour.etag):
        return None
    return int(headers["range"].removeprefix("bytes=").removesuffix("-"))


def _unchanged(behaviour: Behaviour, headers: dict[str, str]) -> bool:
    return behaviour.etag is not None and headers.get("if-none-match") == behaviour.etag


def _body(behaviour: Behaviour, headers: dict[str, str]) -> bytes:
    if behaviour.status is not None or _unchanged(behaviour, headers):
        return b""
    start = _start(behaviour, headers)
    return behaviour.content[0 if behaviour.wrong_range else start or 0 :]


def _head(behaviour: Behaviour, headers: dict[str, str]) -> bytes:
    body = _body(behaviour, headers)
    start = _start(behaviour, headers)
    status = behaviour.status or (304 if _unchanged(behaviour, headers) else 200 if start is None else 206)
    fields = [f"HTTP/1.1 {status} Scripted", "Connection: close"]
    if status == 206:
        first, size = 0 if behaviour.wrong_range else start, len(behaviour.content)
        fields.append(f"Content-Range: bytes {first}-{size - 1}/{size}")
    if status != 304:
        fields.append(f"Content-Length: {len(body) if behaviour.claim is None else behaviour.claim}")
    if behaviour.etag:
        fields.append(f"ETag: {behaviour.etag}")
    if behaviour.location:
        fields.append(f"Location: {behaviour.location}")
    return "\r\n".join([*fields, "", ""]).encode()
