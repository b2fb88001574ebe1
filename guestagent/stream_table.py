"""Which handler each stream has, and what its bugs may break: that stream.

Handlers are called on the event loop and never block. What they say leaves with the flush that ends the batch, so they
do not flush where they are called from here. A handler stays in the table until it takes itself out, or the generation
ends.
"""

from __future__ import annotations

import logging
from typing import Protocol as Seam

from protocol.connection import Connection
from protocol.stream_messages import Data, EndOfData, Reset
from protocol.streams import Stream

_log = logging.getLogger(__name__)


class StreamHandler(Seam):
    """What a stream's messages lead to."""

    stream: Stream

    def receive_data(self, payload: bytes) -> None:
        """Bytes came, or one datagram."""

    def receive_end(self) -> None:
        """The host finished sending."""

    def receive_reset(self) -> None:
        """The stream is over: say nothing more on it, and free what it held."""

    def unpaused(self) -> None:
        """The stream has room again."""


class StreamTable:
    """The handlers of the streams of this generation."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._handlers: dict[int, StreamHandler] = {}

    def __len__(self) -> int:
        return len(self._handlers)

    def add(self, handler: StreamHandler) -> None:
        """Hand the stream's messages to `handler` from now on, in the place of any before it."""
        self._handlers[handler.stream.number] = handler

    def remove(self, handler: StreamHandler) -> None:
        """Let the stream's messages be dropped from now on, unless another handler has taken over."""
        if self._handlers.get(handler.stream.number) is handler:
            del self._handlers[handler.stream.number]

    def get(self, number: int) -> StreamHandler | None:
        """The handler of a stream."""
        return self._handlers.get(number)

    def data(self, message: Data) -> None:
        """Act on DATA."""
        handler = self._handlers.get(message.stream)
        if handler is None:
            return  # it ended here while the message was under way
        try:
            handler.receive_data(message.payload)
        except Exception:
            self.failed(handler)

    def end(self, message: EndOfData) -> None:
        """Act on END."""
        handler = self._handlers.get(message.stream)
        if handler is None:
            return
        try:
            handler.receive_end()
        except Exception:
            self.failed(handler)

    def reset(self, message: Reset) -> None:
        """Act on RESET."""
        if handler := self._handlers.pop(message.stream, None):
            self._end(handler)

    def unpaused(self, number: int) -> None:
        """Let the source go on that was told to pause."""
        handler = self._handlers.get(number)
        if handler is None:
            return
        try:
            handler.unpaused()
        except Exception:
            self.failed(handler)

    def end_generation(self) -> None:
        """End everything: no stream outlives its generation."""
        handlers, self._handlers = self._handlers, {}
        for handler in handlers.values():
            self._end(handler)

    def failed(self, handler: StreamHandler) -> None:
        """In an except block: `handler` has a bug. Show it, end its stream, and go on with the others."""
        _log.exception("%r failed; it is reset", handler.stream)
        if self._handlers.pop(handler.stream.number, None) is handler:
            self._connection.send_reset(handler.stream, "bug in the guest agent; see its log")
        self._end(handler)

    def _end(self, handler: StreamHandler) -> None:
        try:
            handler.receive_reset()
        except Exception:
            _log.exception("%r could not be ended", handler.stream)
