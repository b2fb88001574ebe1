"""Answers of the control API that go on: lines of JSON or server-sent events, for as long as there are any.

A client that stops reading delays neither the agent nor its end; what the agent said last still leaves.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hostagent.event_log import EventLog, Subscription
from hostagent.openapi import LINES


async def event_lines(subscription: Subscription) -> AsyncGenerator[str]:
    """Events as lines of JSON."""
    async for event in subscription:
        yield f"{event.line()}\n"


async def server_sent_events(subscription: Subscription) -> AsyncGenerator[str]:
    """Events as `EventSource` takes them (WHATWG HTML, section 9.2)."""
    async for event in subscription:
        yield f"id: {event.id}\nevent: {event.kind}\ndata: {event.line()}\n\n"


def line_of(document: Mapping[str, Any]) -> str:
    """The document as one line of JSON."""
    return json.dumps(document, separators=(",", ":")) + "\n"


class Lines(Response):
    """A stream of lines of JSON, for as long as there are any and the client listens.

    `make_lines` is called again for the rest when the agent ends while it waits.
    """

    def __init__(
        self, events: EventLog, make_lines: Callable[[], AsyncGenerator[str]], media_type: str = LINES
    ) -> None:
        super().__init__(media_type=media_type)
        del self.headers["content-length"]
        self._events = events
        self._make_lines = make_lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_gone, receive, nursery.cancel_scope)
            try:
                await self._send_lines(send)
            except trio.Cancelled:
                # The agent ends. What it said last, and that nothing follows, still leaves.
                with trio.CancelScope(shield=True):
                    if self._events.closed:
                        await self._send_lines(send)
                raise
            nursery.cancel_scope.cancel()

    async def _send_lines(self, send: Send) -> None:
        async with contextlib.aclosing(self._make_lines()) as lines:
            async for line in lines:
                await _send_whole(send, line.encode(), more=True)
        await _send_whole(send, b"", more=False)


async def _send_whole(send: Send, body: bytes, *, more: bool) -> None:
    """Send a piece of a body, all or nothing. That the client reads it is awaited until the connection is cut."""
    with trio.CancelScope(shield=True):
        await send({"type": "http.response.body", "body": body, "more_body": more})


async def _cancel_when_gone(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
