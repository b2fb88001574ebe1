"""A virtio-serial port and the chardev socket behind it, with the faults that were measured on the real thing.

- One read of the guest gives at most 4 KiB, one write takes at most 32 KiB.
- With no host, the guest's poll is ready at once and for ever, a read gives b"" and a write blocks; the same device
  works again when the host is back.
- After a reconnect the host first reads what the guest wrote to the host before, up to megabytes; or the link dropped
  it, or the middle of it.
- A guest whose host does not read blocks late, after 4.4 MB.

`FakeLink.waits` waits for these devices and, with trio, for real descriptors as well, so that one `Waits` serves a
`Link` over this and a `SocketRelay` over a socket.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from protocol.waits import Event, Waits

PAGE = 4_096
GUEST_WRITE = 32_768
HOST_READ = 262_144
LATE = 4_400_000
"""Bytes that the guest can write while the host does not read."""
TO_GUEST = 131_072
"""Bytes that the host can write while the guest does not read: the socket's buffer and the port's queue."""


class FakeDevice:
    """One end, as `protocol.link.Device` wants it."""

    def __init__(self, link: FakeLink, number: int) -> None:
        self._link = link
        self._number = number
        self.reads = 0
        self.writes = 0

    def fileno(self) -> int:
        """A number that is no descriptor, for `FakeLink.waits`."""
        return self._number

    def _moved(self) -> None:
        self._link.changed.unpark_all()


class GuestDevice(FakeDevice):
    """/dev/virtio-ports/..., which stays open whatever the host does."""

    def read(self) -> bytes:
        """At most a page; empty while no host is there and nothing is left."""
        self.reads += 1
        lane = self._link.to_guest
        if not lane:
            if self._link.host is None:
                return b""
            raise BlockingIOError
        data = bytes(lane[:PAGE])
        del lane[:PAGE]
        self._moved()
        return data

    def write(self, data: memoryview) -> int:
        """At most 32 KiB; blocks without a host, and late with one."""
        self.writes += 1
        lane = self._link.to_host
        room = 0 if self._link.host is None else min(GUEST_WRITE, LATE - len(lane))
        if room <= 0:
            raise BlockingIOError
        lane += data[:room]
        self._moved()
        return min(len(data), room)

    @property
    def readable(self) -> bool:
        """As poll says it: also when the host is away."""
        return bool(self._link.to_guest) or self._link.host is None

    @property
    def writable(self) -> bool:
        """As poll says it: also when the host is away."""
        return self._link.host is None or len(self._link.to_host) < LATE


class HostDevice(FakeDevice):
    """One connection to the chardev socket. Of no use after `FakeLink.cut`."""

    def read(self) -> bytes:
        """What is there; empty after the cut."""
        self.reads += 1
        if self._link.host is not self:
            return b""
        lane = self._link.to_host
        if not lane:
            raise BlockingIOError
        data = bytes(lane[:HOST_READ])
        del lane[:HOST_READ]
        self._moved()
        return data

    def write(self, data: memoryview) -> int:
        """What fits; after the cut all of it, to nobody, as an agent's device does with EPIPE."""
        self.writes += 1
        if self._link.host is not self:
            return len(data)
        lane = self._link.to_guest
        room = TO_GUEST - len(lane)
        if room <= 0:
            raise BlockingIOError
        lane += data[:room]
        self._moved()
        return min(len(data), room)

    @property
    def readable(self) -> bool:
        """Whether a read would not block."""
        return bool(self._link.to_host) or self._link.host is not self

    @property
    def writable(self) -> bool:
        """Whether a write would not block."""
        return len(self._link.to_guest) < TO_GUEST or self._link.host is not self


class FakeLink:
    """Both ends of a port, and what may happen between them."""

    def __init__(self) -> None:
        self.to_host = bytearray()
        """Bytes that the guest wrote and the host has not read. They outlive the host."""
        self.to_guest = bytearray()
        """Bytes that the host wrote and the guest has not read."""
        self.changed = trio.lowlevel.ParkingLot()
        self.guest = GuestDevice(self, -1)
        self.host: HostDevice | None = None
        self._devices: dict[int, GuestDevice | HostDevice] = {-1: self.guest}
        self.waits = Waits(
            readable=lambda number: self._ready(number, lambda device: device.readable, trio.lowlevel.wait_readable),
            writable=lambda number: self._ready(number, lambda device: device.writable, trio.lowlevel.wait_writable),
            event=trio.Event,
            now=trio.current_time,
            event_until=_event_until,
        )

    def connect(self) -> HostDevice:
        """The host connects; there can be one host only."""
        assert self.host is None
        self.host = HostDevice(self, -2 - len(self._devices))
        self._devices[self.host.fileno()] = self.host
        self.changed.unpark_all()
        return self.host

    def cut(self, *, keep_to_host: int | None = None, keep_to_guest: int | None = None) -> None:
        """The host's socket is gone. All that was under way is kept, or so many of its first bytes."""
        self.host = None
        del self.to_host[len(self.to_host) if keep_to_host is None else keep_to_host :]
        del self.to_guest[len(self.to_guest) if keep_to_guest is None else keep_to_guest :]
        self.changed.unpark_all()

    def lose(self, lane: bytearray, start: int, size: int) -> None:
        """Some bytes that were under way in `lane` are lost."""
        del lane[start : start + size]
        self.changed.unpark_all()

    async def _ready(
        self,
        number: int,
        is_ready: Callable[[GuestDevice | HostDevice], bool],
        otherwise: Callable[[int], object],
    ) -> None:
        if number >= 0:
            await otherwise(number)  # type: ignore[misc]
            return
        await trio.lowlevel.checkpoint()
        while not is_ready(self._devices[number]):
            await self.changed.park()


async def _event_until(event: Event, deadline: float) -> None:
    with trio.move_on_at(deadline):
        await event.wait()
