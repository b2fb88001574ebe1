"""TCP streams, and streams to unix sockets: dials what the host asks for, and ties the socket to the stream.

The host names the guest's own endpoint, and 0.0.0.0 and :: are reached on the loopback. A dial on the loopback is over
when connect(2) returns: the handshake runs in softirq context before the socket is unlocked, so that a second call
tells how it went. Only a dial that takes longer costs a task. A unix socket whose queue is full says EAGAIN instead of
letting the dial wait (unix(7)), and has no event for the moment when it is not full any more.

What happens to the socket happens to the stream (`protocol.relay`). Here its descriptors are waited for in one epoll
set. That also notices an abort while the socket is not read because the host is slow.

Unless both directions came to their ends, a socket is closed with a reset, also by the kernel when this process is
killed (SO_LINGER with no time, socket(7)): a server must not take a stream that was cut short for a whole one.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections import Counter
from collections.abc import Callable

import trio

from guestagent.channel import WAITS
from guestagent.readiness import Readiness
from guestagent.stream_table import StreamTable
from protocol.connection import Connection
from protocol.relay import SocketRelay
from protocol.stream_messages import SocketTarget, UnixTarget
from protocol.streams import Stream

DIAL_SECONDS = 10.0
"""Bound on a dial. The kernel's own (tcp_syn_retries, two minutes) is longer than any client of the host waits."""

UNIX_RETRY = 0.02
"""Seconds until a unix socket whose queue was full is dialled again."""

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - this binds nothing
_ABORT, _IN_ORDER = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)
_OUT, _ERROR, _HANGUP, _FINISHED = select.EPOLLOUT, select.EPOLLERR, select.EPOLLHUP, select.EPOLLRDHUP
_IN = select.EPOLLIN | _FINISHED


def destination(target: SocketTarget | UnixTarget) -> tuple[socket.AddressFamily, tuple[str, int] | str]:
    """Where to connect to for `target`: itself, or the loopback where it names every address."""
    if isinstance(target, UnixTarget):
        return socket.AF_UNIX, target.path
    address = _LOOPBACK.get(target.address, target.address)  # in canonical text form, as the protocol makes sure
    return socket.AF_INET6 if ":" in address else socket.AF_INET, (address, target.port)


def error_name(number: int) -> str:
    """The errno name that REFUSED carries."""
    return errno.errorcode.get(number, "EIO")


def _nothing() -> None:
    """The batch is flushed as a whole, by `Readiness` or by the link."""


class TcpRelay(SocketRelay):
    """One connected socket and its stream, without tasks of its own."""

    def __init__(
        self, sock: socket.socket, connection: Connection, stream: Stream, readiness: Readiness, table: StreamTable
    ) -> None:
        super().__init__(sock, connection, stream, waits=WAITS, flush=_nothing, finish=self._close)
        self.stream = stream
        self._socket = sock
        self._readiness = readiness
        self._table = table
        self._reading = True
        self._paused = False
        self._interest: int | None = _IN
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        readiness.register(sock.fileno(), _IN, self)

    def ready(self, events: int) -> None:
        """The socket became readable, writable, or failed."""
        if events & _OUT and self.waiting:
            self.drain()
        if self.finished:
            return
        if not events & ~_OUT:
            pass
        elif self._reading and self.stream.room():
            self._reading = self.read_turn()
            if events & _FINISHED and self._reading and self.stream.room():
                self._reading = self.read_turn()  # so that a short answer and its end leave together
        elif events & _ERROR and (number := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
            self.fail(OSError(number, os.strerror(number)))
        else:
            self._paused = self._reading
            if events & _HANGUP and not self.finished:
                # Both directions are shut and the rest may not be read yet: epoll would say so for ever.
                self._readiness.unregister(self._socket.fileno())
                self._interest = None
        self._watch()

    def unpaused(self) -> None:
        """The stream has room again."""
        self._paused = False
        self._watch()

    def receive_data(self, payload: bytes) -> None:
        """Bytes came for the socket."""
        super().receive_data(payload)
        if self.waiting:
            self._watch()

    def _watch(self) -> None:
        """Wait for what can be done now."""
        if self.finished:
            return
        wanted = (_IN if self._reading and not self._paused else 0) | (_OUT if self.waiting else 0)
        if wanted == self._interest:
            return
        if self._interest is not None:
            self._readiness.modify(self._socket.fileno(), wanted)
        elif wanted:
            self._readiness.register(self._socket.fileno(), wanted, self)
        else:
            return
        self._interest = wanted

    def _close(self, abort: bool) -> None:
        self._readiness.unregister(self._socket.fileno())
        if not abort:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _IN_ORDER)
        self._socket.close()
        self._table.remove(self)


class _Dial:
    """A dial that has not ended yet."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.scope = trio.CancelScope()
        self.over = False

    def receive_data(self, payload: bytes) -> None:
        raise AssertionError("the host was granted nothing yet")

    def receive_end(self) -> None:
        raise AssertionError("the protocol has no END before OPENED")

    def receive_reset(self) -> None:
        self.over = True
        self.scope.cancel()

    def unpaused(self) -> None:
        raise AssertionError("nothing was sent yet")


class TcpRelays:
    """Opens a relay for each OPEN of a tcp or unix stream. `flush` is for what is said outside of a batch."""

    def __init__(
        self,
        connection: Connection,
        table: StreamTable,
        readiness: Readiness,
        nursery: trio.Nursery,
        flush: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._table = table
        self._readiness = readiness
        self._nursery = nursery
        self._flush = flush
        self.counters: Counter[str] = Counter()

    def open(self, stream: Stream, target: SocketTarget | UnixTarget) -> None:
        """Dial `target` and answer the stream's OPEN, now or when it is known."""
        family, address = destination(target)
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as exc:
            self._refuse(stream, exc.errno or errno.EIO)
            return
        error = sock.connect_ex(address)
        if error == errno.EINPROGRESS:
            error = sock.connect_ex(address)
        if error in (errno.EALREADY, errno.EINPROGRESS) or (error == errno.EAGAIN and family is socket.AF_UNIX):
            dial = _Dial(stream)
            self._table.add(dial)
            self._nursery.start_soon(self._wait, dial, sock, address)
        else:
            self._answer(stream, sock, error)

    async def _wait(self, dial: _Dial, sock: socket.socket, address: tuple[str, int] | str) -> None:
        error = errno.ETIMEDOUT
        try:
            dial.scope.deadline = trio.current_time() + DIAL_SECONDS
            with dial.scope:
                error = await _end_of_dial(sock, address)
            if dial.over:
                sock.close()
                return
        except BaseException:
            sock.close()
            raise
        self._table.remove(dial)
        self._answer(dial.stream, sock, error)
        self._flush()

    def _answer(self, stream: Stream, sock: socket.socket, error: int) -> None:
        if error in (0, errno.EISCONN) and _is_connected_to_itself(sock):
            error = errno.ECONNREFUSED
        if error not in (0, errno.EISCONN):
            sock.close()
            self._refuse(stream, error)
            return
        if sock.family is socket.AF_UNIX:
            self.counters["unix connections"] += 1
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.counters["tcp connections"] += 1
        self._connection.accept_stream(stream)
        relay = TcpRelay(sock, self._connection, stream, self._readiness, self._table)
        self._table.add(relay)

    def _refuse(self, stream: Stream, error: int) -> None:
        self.counters[f"{stream.kind} refused"] += 1
        self._connection.refuse_stream(stream, error_name(error), os.strerror(error))


async def _end_of_dial(sock: socket.socket, address: tuple[str, int] | str) -> int:
    """How a dial went that could not be ended at once: 0 or an error's number."""
    if sock.family is not socket.AF_UNIX:
        await trio.lowlevel.wait_writable(sock)
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    error = errno.EAGAIN
    while error == errno.EAGAIN:
        await trio.sleep(UNIX_RETRY)
        error = sock.connect_ex(address)
    return error


def _is_connected_to_itself(sock: socket.socket) -> bool:
    """Whether nobody listened, and the kernel happened to choose the destination as the source (RFC 9293, 3.5)."""
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:
        return False  # reset meanwhile; the first read says so
