"""One tiny guest for many tests: booted in a thread with an event loop of its own, used from each test's.

pytest-trio gives every test a fresh event loop, so that nothing which lives longer than a test can be a trio object of
it. Here the guest, its serial console and its control line stay in their own loop; what a test asks for is handed over
and waited for.

Promises: the guest is up when the block begins and gone when it ends; its death makes every request fail at once, and
is told with the end of the serial console.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio

from tests.e2e.server_control import GuestServer
from tests.e2e.tiny_guest import SerialLog, TinyGuest, tiny_guest

_Result = TypeVar("_Result")
_limiter = trio.CapacityLimiter(64)
"""Of requests that wait for the guest's loop at the same time."""


class _GuestServerElsewhere(GuestServer):
    """A `GuestServer` whose control line belongs to another event loop."""

    def __init__(self, there: GuestServer, token: trio.lowlevel.TrioToken) -> None:
        self._there = there
        self._token = token

    async def request(self, do: str, *, seconds: float = 60.0, **fields: Any) -> dict[str, Any]:
        """As `GuestServer.request`."""
        return await run_elsewhere(self._token, partial(self._there.request, do, seconds=seconds, **fields))


async def run_elsewhere(token: trio.lowlevel.TrioToken, function: Callable[[], Awaitable[_Result]]) -> _Result:
    """The result of `function` in the event loop of `token`; raises `trio.RunFinishedError` when that has ended."""
    hand_over = partial(trio.from_thread.run, function, trio_token=token)
    return await trio.to_thread.run_sync(hand_over, limiter=_limiter)


living: list[SharedGuest] = []
"""The guests that there are now: what is told of them when a test fails (`diagnosis`)."""


@dataclass(frozen=True, slots=True)
class SharedGuest:
    """A running guest that any event loop may use."""

    channel_socket: Path
    monitor_socket: Path
    """QEMU's monitor (QMP), which serves one client at a time."""
    server: GuestServer
    serial: SerialLog
    """Only to be read; what waits for a line is in the guest's loop."""
    token: trio.lowlevel.TrioToken
    pid: int
    """QEMU's."""

    async def wait_for_line(self, pattern: str, seconds: float = 90.0) -> None:
        """Wait until the serial console has a match of `pattern`; `TooSlowError` after `seconds`."""
        await run_elsewhere(self.token, partial(self.serial.wait_for_line, pattern, seconds))


@contextmanager
def shared_guest(agent_command: str = "guestagent") -> Iterator[SharedGuest]:
    """A booted guest; raises what `tiny_guest` raises."""
    booted: Future[tuple[TinyGuest, trio.lowlevel.TrioToken, trio.Event]] = Future()

    async def live() -> None:
        async with tiny_guest(agent_command) as guest:
            stop = trio.Event()
            booted.set_result((guest, trio.lowlevel.current_trio_token(), stop))
            await stop.wait()

    with ThreadPoolExecutor(1, thread_name_prefix="tiny-guest") as executor:
        life = executor.submit(trio.run, live)
        either: list[Future[Any]] = [booted, life]
        wait(either, return_when=FIRST_COMPLETED)
        if not booted.done():
            life.result()  # raises what ended it
        guest, token, stop = booted.result()
        server = _GuestServerElsewhere(guest.server, token)
        shared = SharedGuest(guest.channel_socket, guest.monitor_socket, server, guest.serial, token, guest.pid)
        living.append(shared)
        try:
            yield shared
        finally:
            living.remove(shared)
            if not life.done():
                token.run_sync_soon(stop.set)
            life.result()
