"""The end of one connection to the API, against whatever is being sent on it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

import pytest
import trio
import trio.testing
from hypercorn.config import Config
from hypercorn.events import RawData
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from hostagent.control_api import _Server


class Protocol:
    """What hypercorn tells of the connection's end, and nobody listens."""

    async def handle(self, event: object) -> None:
        await trio.lowlevel.checkpoint()


def connected() -> tuple[_Server, trio.SocketStream]:
    """hypercorn's side of a connection, and the client's."""
    near, far = trio.socket.socketpair()
    stream = cast("Any", trio.SocketStream(near))
    server = _Server(cast("Any", None), Config(), WorkerContext(None), ConnectionState({}), stream)
    server.protocol = cast("Any", Protocol())
    return server, trio.SocketStream(far)


@pytest.mark.parametrize("answer_first", [False, True])
async def test_an_answer_that_meets_the_end_fails_nothing(answer_first: bool) -> None:
    server, client = connected()
    works: list[Callable[[], Awaitable[None]]] = [server._close, partial(server.protocol_send, RawData(b"answer"))]
    async with client:
        async with trio.open_nursery() as nursery:
            for work in reversed(works) if answer_first else works:
                nursery.start_soon(work)
                await trio.lowlevel.checkpoint()  # let it begin
        assert await client.receive_some() in (b"answer", b"")


async def test_the_end_does_not_wait_for_a_client_that_does_not_read() -> None:
    server, client = connected()
    async with client, trio.open_nursery() as nursery:
        nursery.start_soon(server.protocol_send, RawData(bytes(1 << 24)))
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(10):
            await server._close()
