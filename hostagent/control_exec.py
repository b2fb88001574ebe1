"""The server's side of `/v1/exec`: joins a client's WebSocket to a command in the guest.

Promises: a signal or resize never waits behind input that the command does not read; output that the client does not
read slows the command and nothing else; a client that goes away takes its command with it.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, NoReturn

import trio
from starlette.websockets import WebSocket

from hostagent import exec_frames
from hostagent.errors import UserError
from hostagent.exec_frames import (
    INPUT_WINDOW,
    ClientFrame,
    Credit,
    EndOfInput,
    ErrorOutput,
    Exited,
    Failed,
    Input,
    Output,
    Resize,
    SendSignal,
    ServerFrame,
    Start,
    Started,
)
from hostagent.running_instance import Execution, RunningInstance
from protocol.errors import RemoteProtocolError

_PROTOCOL_HINT = "the client and the host agent speak different versions: run `hostagent down` and `hostagent up`"
_MAX_REASON = 1_000
_END: Final = b""
"""Stands for the end among the pieces of input."""


class _ClientGoneError(Exception):
    """The client closed its WebSocket."""


class _Client:
    """The client's WebSocket as frames. Sending to a client that has gone is no error; reading says so."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._sending = trio.Lock()

    async def receive(self) -> ClientFrame:
        """The next frame; raises `_ClientGoneError` or `RemoteProtocolError`."""
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise _ClientGoneError
        data: bytes | str | None = message.get("bytes")
        return exec_frames.client_frame_untrusted(message["text"] if data is None else data)

    async def send(self, frame: ServerFrame) -> None:
        """Send a frame whole; waits while the client does not read."""
        data = exec_frames.encode(frame)
        async with self._sending:
            await self._websocket.send(
                {"type": "websocket.send", **({"bytes": data} if isinstance(data, bytes) else {"text": data})}
            )


async def serve_exec(websocket: WebSocket, instance: RunningInstance) -> None:
    """Serve one command to one client, from handshake to close."""
    await websocket.accept()
    client = _Client(websocket)
    end = await _last_frame(partial(_run, client, instance))
    if end is not None:
        await client.send(end)
        await websocket.close()


async def _run(client: _Client, instance: RunningInstance) -> ServerFrame | None:
    match await client.receive():
        case Start(target):
            async with instance.execute(target) as execution:
                await client.send(Started(INPUT_WINDOW))
                return await _Session(client, execution).run()
        case _:
            raise RemoteProtocolError("the first frame is start")


async def _last_frame(work: Callable[[], Awaitable[ServerFrame | None]]) -> ServerFrame | None:
    """What the client is told at the end, whichever way `work` ends; None when the client has gone."""
    try:
        return await work()
    except _ClientGoneError:
        return None
    except RemoteProtocolError as exc:
        return Failed(str(exc)[:_MAX_REASON], _PROTOCOL_HINT)
    except UserError as exc:
        return Failed(exc.message[:_MAX_REASON], exc.hint[:_MAX_REASON], exc.status)


class _Session:
    """A running command. The first of its tasks to finish or fail decides how it ends."""

    def __init__(self, client: _Client, execution: Execution) -> None:
        self._client = client
        self._execution = execution
        # Bounded in bytes by the credit.
        self._give, self._take = trio.open_memory_channel[bytes](math.inf)
        self._unpaid = 0
        self._end: ServerFrame | None = None

    async def run(self) -> ServerFrame | None:
        """Carry bytes until the command or the client ends; returns the last frame, None for a client that left."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pass_input)
            for work in (self._obey_client, self._pass_output):
                nursery.start_soon(self._decide, work, nursery.cancel_scope)
        return self._end

    async def _decide(self, work: Callable[[], Awaitable[ServerFrame]], scope: trio.CancelScope) -> None:
        self._end = await _last_frame(work)
        scope.cancel()

    async def _obey_client(self) -> NoReturn:
        """Take every frame at once, so that none waits behind another."""
        while True:
            match await self._client.receive():
                case Input(data):
                    self._unpaid += len(data)
                    if self._unpaid > INPUT_WINDOW:
                        raise RemoteProtocolError(f"more than {INPUT_WINDOW} bytes of input without credit")
                    if data:
                        self._give.send_nowait(data)
                case EndOfInput():
                    self._give.send_nowait(_END)
                case Resize(size):
                    self._execution.resize(size)
                case SendSignal(name):
                    self._execution.send_signal(name)
                case Start():
                    raise RemoteProtocolError("a WebSocket starts one command")

    async def _pass_input(self) -> None:
        """Give the command its input, and the client credit for what was taken."""
        listening = True
        async for data in self._take:
            try:
                if listening and data is _END:
                    self._execution.end_input()
                elif listening:
                    await self._execution.send_input(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                listening = False  # a command may close its input and go on; what follows is for nobody
            self._unpaid -= len(data)
            if data:
                await self._client.send(Credit(len(data)))

    async def _pass_output(self) -> ServerFrame:
        output = self._execution.output()
        try:
            async for name, data in output:
                await self._client.send(Output(data) if name == "stdout" else ErrorOutput(data))
        finally:
            await output.aclose()  # left to the garbage collector, it would end at any time
        return Exited(self._execution.status)
