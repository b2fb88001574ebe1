"""A wire between an agent and QEMU's socket, that a test can cut, and on which it can do to bytes what links do.

`Wire` carries bytes as they are until it is told otherwise. A `Surgery` is done once, to the next bytes of one
direction: it says what arrives instead, and whether the connection ends there.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio


class Direction(enum.StrEnum):
    """Who receives."""

    GUEST = "guest"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class Operated:
    """What a surgery leaves: the bytes that arrive, and whether the connection is cut behind them."""

    arrives: bytes
    cut: bool = False


Surgery = Callable[[bytes], Operated]


class Wire:
    """Carries bytes between whoever connects to `path` and the socket `there`."""

    def __init__(self, path: Path, there: Path) -> None:
        self.path = path
        self._there = there
        self._scope = trio.CancelScope()
        self._whole = trio.Event()
        self._whole.set()
        self._ends: dict[Direction, trio.SocketStream] = {}
        self._surgeries: dict[Direction, tuple[Surgery, trio.Event]] = {}
        self._recent = dict.fromkeys(Direction, b"")
        self._stale = dict.fromkeys(Direction, b"")
        self.connected_at = 0.0
        """When the last connection was made (trio's clock): when the link was back."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve one connection after the other, until cancelled."""
        listener = trio.socket.socket(trio.socket.AF_UNIX)
        with listener:
            await listener.bind(str(self.path))
            listener.listen(1)
            task_status.started()
            while True:
                accepted, _ = await listener.accept()
                await self._whole.wait()
                with trio.CancelScope() as self._scope:
                    await self._carry(trio.SocketStream(accepted))

    async def _carry(self, near: trio.SocketStream) -> None:
        async with near, await trio.open_unix_socket(str(self._there)) as far, trio.open_nursery() as nursery:
            self._ends = {Direction.GUEST: far, Direction.HOST: near}
            self.connected_at = trio.current_time()
            nursery.start_soon(self._pump, near, Direction.GUEST)
            nursery.start_soon(self._pump, far, Direction.HOST)

    async def _pump(self, source: trio.SocketStream, toward: Direction) -> None:
        target = self._ends[toward]
        try:
            if stale := self._stale[toward]:
                self._stale[toward] = b""
                await target.send_all(stale)
            while data := await source.receive_some(1 << 18):
                self._recent[toward] = data
                surgery, done = self._surgeries.pop(toward, (None, None))
                operated = surgery(data) if surgery else Operated(data)
                if operated.arrives:
                    await target.send_all(operated.arrives)
                if done is not None:
                    done.set()
                if operated.cut:
                    break
        except (trio.BrokenResourceError, trio.BusyResourceError):
            pass  # a test wrote at the same time, or an end is gone: either way this connection is over
        self._scope.cancel()

    def cut(self, *, mended: bool = True) -> None:
        """Drop the connection that is there; the next one works at once, or only after `mend`."""
        if not mended:
            self._whole = trio.Event()
        self._scope.cancel()

    def mend(self) -> None:
        """Let the next connection through."""
        self._whole.set()

    def deliver_stale(self, toward: Direction) -> None:
        """Begin the next connection with the last bytes of this one, as QEMU does with what was under way."""
        self._stale[toward] = self._recent[toward]

    async def operate(self, toward: Direction, surgery: Surgery) -> None:
        """Return when `surgery` was done to the next bytes of that direction."""
        done = trio.Event()
        self._surgeries[toward] = surgery, done
        await done.wait()
