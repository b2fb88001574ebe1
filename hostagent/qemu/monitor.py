"""A running QEMU's monitor over its unix socket.

One task reads for as long as the connection lives and hands replies to whoever waits for them. Promises:

- Every wait ends when the connection does, with `MonitorClosedError` saying why.
- Nobody has to read the events: the newest `EVENT_BACKLOG` are kept, the oldest are dropped and counted, and a slow
  reader never delays a reply.
- A cancelled `execute` costs nothing but its answer: the reply is thrown away when it comes.
- An exception raised inside `async with open_monitor(...)` comes out as itself, not inside a group.

QEMU talks to one client at a time: the next one waits, connected but without a greeting, until the first has gone. So
the greeting has a bound, and whoever holds a connection for long should be asked to run a command on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self, assert_never

import trio

from hostagent.qemu.qmp import Event, Greeting, Message, QmpConnection, Refusal, Reply
from protocol.errors import RemoteProtocolError

GREETING_BOUND = 5.0
"""Seconds until a monitor that accepts connections must have greeted; it is busy with another client otherwise."""

EVENT_BACKLOG = 256
"""Events kept for a reader that is late."""

_CHUNK = 65536


class MonitorError(Exception):
    """The monitor could not do what it was asked; one of the two below."""


class MonitorClosedError(MonitorError):
    """There is no connection to the monitor, or it ended; the message says why."""


class CommandRefusedError(MonitorError):
    """QEMU refused a command, in its own words."""

    def __init__(self, command: str, refusal: Refusal) -> None:
        super().__init__(f"{command}: {refusal.description}")
        self.command = command
        self.error_class = refusal.error_class
        self.description = refusal.description


class _Waiter:
    """Someone who waits for the reply to one command."""

    __slots__ = ("answer", "done")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.answer: Reply | Refusal | None = None


class _EventStream:
    """What `Monitor.events` returns; no async generator, because those must be closed when a loop is left early."""

    __slots__ = ("_next_event",)

    def __init__(self, next_event: Callable[[], Awaitable[Event]]) -> None:
        self._next_event = next_event

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        return await self._next_event()


class Monitor:
    """A connected monitor; made by `open_monitor`."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._connection = QmpConnection()
        self._send_lock = trio.Lock()
        self._waiters: dict[int, _Waiter] = {}
        self._greeted = trio.Event()
        self._greeting: Greeting | None = None
        self._events: deque[Event] = deque(maxlen=EVENT_BACKLOG)
        self._event_arrived = trio.Event()
        self._closed_because: str | None = None
        self.events_dropped = 0
        """Events that came while the backlog was full."""

    @property
    def greeting(self) -> Greeting:
        """QEMU's version and what this monitor can do."""
        assert self._greeting is not None, "open_monitor yields only after the greeting"
        return self._greeting

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """What `command` returned; raises `CommandRefusedError`, or `MonitorClosedError` when the connection ends."""
        self._require_open()
        return await self._transact(command, *self._connection.command(command, arguments))

    def events(self) -> AsyncIterator[Event]:
        """The events from the backlog on, until the connection ends. Each event goes to one reader."""
        return _EventStream(self._next_event)

    async def _next_event(self) -> Event:
        while not self._events:
            if self._closed_because is not None:
                raise StopAsyncIteration
            await self._event_arrived.wait()
        return self._events.popleft()

    async def _negotiate(self) -> None:
        await self._greeted.wait()
        self._require_open()
        await self._transact("qmp_capabilities", *self._connection.negotiate())

    def _require_open(self) -> None:
        if self._closed_because is not None:
            raise MonitorClosedError(self._closed_because)

    async def _transact(self, command: str, identity: int, data: bytes) -> Any:
        waiter = self._waiters[identity] = _Waiter()
        try:
            await self._send(data)
            await waiter.done.wait()
        finally:
            del self._waiters[identity]
        match waiter.answer:
            case Reply(value=value):
                return value
            case Refusal() as refusal:
                raise CommandRefusedError(command, refusal)
            case None:
                raise MonitorClosedError(self._closed_because or "the monitor was closed")
            case _:
                assert_never(waiter.answer)

    async def _send(self, data: bytes) -> None:
        async with self._send_lock:
            self._require_open()
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                self._end("QEMU closed its monitor")
                raise MonitorClosedError("QEMU closed its monitor") from exc
            except trio.Cancelled:
                # half a line may be out, and what follows it would be garbage to QEMU
                self._end("sending a command was cancelled")
                raise

    async def _read(self) -> None:
        reason = "QEMU closed its monitor"
        try:
            while data := await self._stream.receive_some(_CHUNK):
                for message in self._connection.receive_data(bytes(data)):
                    self._dispatch(message)
        except RemoteProtocolError as exc:
            reason = str(exc)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            reason = f"the connection to QEMU's monitor broke ({exc})"
        except trio.Cancelled:
            reason = "the monitor was closed"
            raise
        finally:
            self._end(reason)

    def _dispatch(self, message: Message) -> None:
        match message:
            case Greeting():
                self._greeting = message
                self._greeted.set()
            case Reply() | Refusal():
                if waiter := self._waiters.get(message.id):
                    waiter.answer = message
                    waiter.done.set()
            case Event():
                self.events_dropped += len(self._events) == EVENT_BACKLOG
                self._events.append(message)
                self._event_arrived.set()
                self._event_arrived = trio.Event()
            case _:
                assert_never(message)

    def _end(self, reason: str) -> None:
        if self._closed_because is None:
            self._closed_because = reason
        self._greeted.set()
        self._event_arrived.set()
        for waiter in self._waiters.values():
            waiter.done.set()


async def _connect(path: Path) -> trio.SocketStream:
    try:
        return await trio.open_unix_socket(path)
    except OSError as exc:
        raise MonitorClosedError(f"no QEMU listens on {path} ({exc.strerror})") from exc


@asynccontextmanager
async def open_monitor(path: Path, greeting_bound: float = GREETING_BOUND) -> AsyncIterator[Monitor]:
    """A monitor that is ready for commands, closed at the end of the block.

    Raises `MonitorClosedError` when nothing listens on `path`, when the other side is no QEMU, or when it has not
    greeted within `greeting_bound` seconds.
    """
    stream = await _connect(path)
    try:
        async with stream, trio.open_nursery() as nursery:
            monitor = Monitor(stream)
            nursery.start_soon(monitor._read)  # noqa: SLF001 - its own constructor in all but name
            try:
                with trio.fail_after(greeting_bound):
                    await monitor._negotiate()  # noqa: SLF001
            except trio.TooSlowError as exc:
                words = f"QEMU's monitor {path} did not greet within {greeting_bound:g} s; another program may hold it"
                raise MonitorClosedError(words) from exc
            try:
                yield monitor
            finally:
                nursery.cancel_scope.cancel("the block that used the monitor has ended")
    except BaseExceptionGroup as group:
        # the reader never fails, so a lone exception is that of the block; a cancellation may come as several
        if len(group.exceptions) > 1:
            raise
        error = group.exceptions[0]
        raise error from error.__cause__
