"""The guest's end of the channel: finds the virtio port, keeps it open, tells when the host comes and goes.

virtio_console (drivers/char/virtio_console.c) has no connect and no disconnect. While the host's end is closed, poll
says readable and hung up at once and for ever, read gives nothing and write would block. So the descriptor stays open
for the agent's life, "nothing to read" ends the generation, and the return of the host is waited for: the driver wakes
the port's wait queue when it learns of it, which an edge-triggered epoll set notices where level-triggered ones would
spin. `AWAY_TICK` bounds the wait where that wake-up is missed.

One write takes at most 32 KiB, one read gives at most the 4 KiB that one receive buffer holds. A read that was full is
followed by one `readv` over several buffers, which the driver fills one after the other.

A path instead of a name may also be a unix socket or a terminal: tests put themselves at the other end.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import trio

from guestagent.readiness import Readiness
from protocol.connection import Connection, Event
from protocol.link import Link, PeerAwayError
from protocol.waits import Event as Happening
from protocol.waits import Waits

DEFAULT_NAME = "hostagent.0"

AWAY_TICK = 1.0
"""Seconds after which the host's return is looked for without having been noticed."""

REOPEN_PAUSE = 0.2
"""Seconds between two attempts to open a port that is not there."""

_BUFFER = 4096
"""Bytes in one receive buffer of the driver (PAGE_SIZE in `port_fops_*`, on every architecture that we run on)."""

_BUFFERS = 16
_NAMES = Path("/sys/class/virtio-ports")
_GONE = frozenset({errno.EIO, errno.ENODEV, errno.EPIPE, errno.ECONNRESET, errno.ENXIO})
_NOT_THERE = frozenset({*_GONE, errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN, errno.EBUSY})

_log = logging.getLogger(__name__)


async def _event_until(event: Happening, when: float) -> None:
    with trio.move_on_at(when):
        await event.wait()


WAITS = Waits(
    readable=trio.lowlevel.wait_readable,
    writable=trio.lowlevel.wait_writable,
    event=trio.Event,
    now=trio.current_time,
    event_until=_event_until,
)
"""The protocol's pumps under trio."""


class Port:
    """An open port; a `protocol.link.Device`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.unplugged = False
        """Whether the device itself is gone, and not only the host."""
        self._rest = [bytearray(_BUFFER) for _ in range(_BUFFERS - 1)]
        self._hangup = select.poll()
        self._hangup.register(descriptor, 0)  # a hang-up always counts (poll(2))
        self._changes = select.epoll()
        self._changes.register(descriptor, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)

    def fileno(self) -> int:
        """The port's descriptor."""
        return self._descriptor

    def close(self) -> None:
        """Give the descriptors back."""
        self._changes.close()
        os.close(self._descriptor)

    def read(self) -> bytes:
        """All that is there, up to 64 KiB; empty when the host is away. Raises `BlockingIOError`."""
        try:
            first = os.read(self._descriptor, _BUFFER)
        except OSError as exc:
            if exc.errno in _GONE:
                self.unplugged = exc.errno == errno.ENODEV
                return b""
            raise
        if len(first) < _BUFFER:
            return first
        try:
            size = os.readv(self._descriptor, self._rest)
        except OSError:
            return first  # whatever it is, the next read says it again
        full, part = divmod(size, _BUFFER)
        return b"".join((first, *self._rest[:full], memoryview(self._rest[full])[:part] if part else b""))

    def write(self, data: memoryview) -> int:
        """How many bytes were taken. Raises `BlockingIOError`, also while the host is away."""
        try:
            return os.write(self._descriptor, data)
        except OSError as exc:
            if exc.errno in _GONE:  # whoever reads finds out, and says so in one place
                raise BlockingIOError from exc
            raise

    async def host_is_there(self) -> None:
        """Return once the host's end is open."""
        while True:
            self._changes.poll(0)  # before looking, so that no change falls in between
            if not any(events & select.POLLHUP for _descriptor, events in self._hangup.poll(0)):
                return
            with trio.move_on_after(AWAY_TICK):
                await trio.lowlevel.wait_readable(self._changes)


def find_port(name: str, names: Path = _NAMES, devices: Path = Path("/dev")) -> Path | None:
    """The device of the virtio port called `name`, as sysfs knows it: earlier than udev, and without it.

    A name with a slash is a path, and answered as it is.
    """
    if "/" in name:
        return Path(name)
    for entry in sorted(names.iterdir()) if names.is_dir() else ():
        try:
            if (entry / "name").read_text("utf-8", "replace").strip() == name:
                return devices / entry.name
        except OSError:
            continue  # it has no name yet, or has gone
    return None


def open_port(name: str) -> Port | None:
    """The port, or None while it is not there. Raises `OSError` for what will not mend itself."""
    path = find_port(name)
    if path is None:
        return None
    try:
        if stat.S_ISSOCK(path.stat().st_mode):
            return Port(_connect(path))
        return Port(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError as exc:
        if exc.errno in _NOT_THERE:
            return None
        raise


def _connect(path: Path) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        sock.connect(str(path))
        return sock.detach()


def _listen_for_devices() -> socket.socket | None:
    """A socket that becomes readable when the kernel adds a device or names it; None where that is not allowed."""
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 15)  # NETLINK_KOBJECT_UEVENT
    except OSError:
        return None
    try:
        sock.bind((0, 1))  # group 1: the kernel's own events (lib/kobject_uevent.c)
    except OSError:
        sock.close()
        return None
    return sock


async def wait_for_port(name: str) -> Port:
    """The port, once it is there."""
    if port := open_port(name):
        return port
    devices = _listen_for_devices()
    try:
        while (port := open_port(name)) is None:
            with trio.move_on_after(REOPEN_PAUSE):
                if devices is None:
                    await trio.sleep_forever()
                await trio.lowlevel.wait_readable(devices)
                _drain(devices)
        return port
    finally:
        if devices is not None:
            devices.close()


def _drain(devices: socket.socket) -> None:
    try:
        while devices.recv(8192):
            pass
    except OSError:  # nothing more is there, or so much that the kernel dropped some: look either way
        pass


class _Reader:
    """Reads the port when it is ready, until that ends for a `reason`."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.over = trio.Event()
        self.reason: Exception = PeerAwayError()

    def ready(self, events: int) -> None:
        """Something came, or the host went away."""
        if self.over.is_set():
            return
        try:
            self._link.read_turn()
        except Exception as exc:  # not a stream's bug: it ends the agent where `over` is waited for
            self.reason = exc
            self.over.set()


class Channel:
    """Keeps `connection` talking through the port called `name`, whatever the host does."""

    def __init__(
        self,
        name: str,
        connection: Connection,
        readiness: Readiness,
        *,
        dispatch: Callable[[list[Event]], None],
        unpaused: Callable[[int], None],
    ) -> None:
        self._name = name
        self._connection = connection
        self._readiness = readiness
        self._dispatch = dispatch
        self._unpaused = unpaused
        self._link: Link | None = None

    def flush(self) -> None:
        """Write what was said. Once for each batch of work, outside of `dispatch`."""
        if self._link is not None:
            self._link.flush()

    async def run(self) -> NoReturn:
        """Serve until cancelled. Raises `OSError` when the port exists and cannot be used."""
        while True:
            port = await wait_for_port(self._name)
            try:
                await self._serve(port)
            finally:
                port.close()
            await trio.sleep(REOPEN_PAUSE)

    async def _serve(self, port: Port) -> None:
        """One open port, until it is of no use any more: a socket or terminal whose other end is gone."""
        reusable = stat.S_ISCHR(os.fstat(port.fileno()).st_mode) and not os.isatty(port.fileno())
        while True:
            await port.host_is_there()
            _log.info("the host is there")
            try:
                await self._talk(port)
            except* PeerAwayError:
                _log.info("the host is away")
            if port.unplugged or not reusable:
                return

    async def _talk(self, port: Port) -> None:
        connection = self._connection
        self._link = link = Link(connection, port, WAITS, self._dispatch, self._unpaused)
        reader = _Reader(link)
        connection.connected(trio.current_time())
        try:
            link.flush()
            self._readiness.register(port.fileno(), select.EPOLLIN, reader)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.write)
                nursery.start_soon(link.keep_time)
                await reader.over.wait()
                raise reader.reason
        finally:
            self._readiness.unregister(port.fileno())
            self._link = None
            self._dispatch(connection.disconnected("the host is away"))
            self._take_leave(port)

    def _take_leave(self, port: Port) -> None:
        """Tell the host, if it is there, that this generation is over: it would find out by a long silence."""
        self._connection.connected(trio.current_time())
        farewell = memoryview(self._connection.data_to_send())
        try:
            while farewell:
                farewell = farewell[port.write(farewell) :]
        except BlockingIOError:
            pass  # then by the silence
        self._connection.disconnected("the agent ends")
