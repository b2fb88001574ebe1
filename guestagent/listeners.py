"""Listeners in the guest that lead to the host: what the host asks for with LISTEN, and what connects to them.

A listener is the host's wish and lives in one generation: it ends when the host takes it back or the generation ends,
and the host asks again in the next. What comes in opens a stream that names the listener's number. What it leads to is
known to the host alone.

A socket whose file was removed (by `rm`, or by systemd-tmpfiles, which empties /tmp after the agent has started) is
found by nobody: it ends with LISTEN_FAILED, and the host asks again. The files are looked for every `FILE_CHECK`
seconds while there are any. inotify would cost nothing meanwhile, and not notice a file system mounted on top.

A client's bytes are read only after OPENED, so that a refusal can be a reset, as it would be without us. An accepted
connection outlives its listener; the flows of a udp port share its socket and do not. When a flow is over is the host's
decision, and how many there may be as well.

The sockets are not the guest's ports: `own_inodes` tells the port watch, which announces them to nobody. Otherwise the
host would forward to itself.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol as Seam

import trio

from guestagent.readiness import Readiness
from guestagent.relay import TcpRelay, error_name
from guestagent.socket_file import SocketFile, bind_socket_file
from guestagent.stream_table import StreamTable
from protocol.connection import Connection
from protocol.errors import LocalProtocolError
from protocol.limits import MAX_LISTENERS
from protocol.listener_messages import Listen, ListenFailed, Listening, UnixAddress, Unlisten
from protocol.messages import Message
from protocol.stream_messages import ListenerTarget, Opened, Refused, StreamKind
from protocol.streams import Stream

BACKLOG = 1_024
DESCRIPTOR_PAUSE = 0.1
"""Seconds without accepting when the agent has no descriptor left: the queue would be ready all the time."""

FILE_CHECK = 5.0
"""Seconds between two looks whether the files of unix sockets are there: each costs milliseconds under emulation."""

_BATCH = 32
"""Connections or datagrams taken before the channel gets its turn."""

_LARGEST = 65_535
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

ClientAddress = tuple[str, int] | tuple[str, int, int, int]


_ABORT = struct.pack("ii", 1, 0)


class Listener(Seam):
    """What a LISTEN leads to."""

    inode: int
    """Of its socket, as sock_diag and /proc/net name it."""

    def close(self) -> None:
        """Take nothing more."""


@dataclass(frozen=True, slots=True)
class _Surroundings:
    """What all listeners work with."""

    connection: Connection
    table: StreamTable
    readiness: Readiness
    nursery: trio.Nursery
    counters: Counter[str]


class AcceptedConnection:
    """A client that waits for the host to dial; a `StreamHandler`."""

    def __init__(self, sock: socket.socket, stream: Stream) -> None:
        self.stream = stream
        self.sock = sock
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)  # until it came to its end: see `relay`

    def receive_data(self, payload: bytes) -> None:
        """Nothing comes before OPENED, which puts another handler here."""
        raise AssertionError("the host was granted nothing yet")

    def receive_end(self) -> None:
        """Nothing comes before OPENED, which puts another handler here."""
        raise AssertionError("the protocol has no END before OPENED")

    def receive_reset(self) -> None:
        """There is nobody at the other end: the client hears it as a reset."""
        self.sock.close()

    def unpaused(self) -> None:
        """Nothing was sent yet."""
        raise AssertionError("nothing was sent yet")


class StreamListener:
    """A TCP port or a unix socket, with its file; owns `sock`."""

    def __init__(self, sock: socket.socket, file: SocketFile | None, message: Listen, around: _Surroundings) -> None:
        self.inode = os.fstat(sock.fileno()).st_ino
        self._socket = sock
        self._file = file
        self._number = message.listener
        self._kind = message.kind
        self._around = around
        around.readiness.register(sock.fileno(), select.EPOLLIN, self)

    def ready(self, _events: int) -> None:
        """Accept who is there."""
        for _ in range(_BATCH):
            try:
                client, _address = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno in _OUT_OF_RESOURCES:
                    self._around.readiness.modify(self._socket.fileno(), 0)
                    self._around.nursery.start_soon(self._rest)
                    return
                continue  # the connection failed while it waited (accept(2)); the next one did not
            self._offer(client)

    def _offer(self, client: socket.socket) -> None:
        around = self._around
        client.setblocking(False)
        try:
            stream = around.connection.open_stream(self._kind, ListenerTarget(self._number))
        except LocalProtocolError:  # all streams are in use
            client.close()
            around.counters["reverse connections dropped"] += 1
            return
        around.counters["reverse connections"] += 1
        around.table.add(AcceptedConnection(client, stream))

    async def _rest(self) -> None:
        await trio.sleep(DESCRIPTOR_PAUSE)
        if self._socket.fileno() >= 0:
            self._around.readiness.modify(self._socket.fileno(), select.EPOLLIN)

    @property
    def has_file(self) -> bool:
        """Whether it is a unix socket."""
        return self._file is not None

    @property
    def lost(self) -> str:
        """Why no client finds it any more; empty when there is no reason."""
        if self._file is None or self._file.is_there():
            return ""
        return f"{self._file.path} was removed or replaced"

    def close(self) -> None:
        """Accept nothing more; what was accepted goes on."""
        self._around.readiness.unregister(self._socket.fileno())
        if self._file is not None:
            self._file.remove()
        self._socket.close()


class _Flow:
    """One client of a UDP port; a `StreamHandler`."""

    def __init__(self, listener: DatagramListener, client: ClientAddress, stream: Stream) -> None:
        self.stream = stream
        self.client = client
        self._listener = listener

    def receive_data(self, payload: bytes) -> None:
        """An answer for the client."""
        self._listener.answer(self.client, payload)

    def receive_end(self) -> None:
        """The host closes the flow."""
        self._listener.finish(self)

    def receive_reset(self) -> None:
        """The flow is over."""
        self._listener.forget(self)

    def unpaused(self) -> None:
        """Flows are never paused: what finds no room is dropped."""


class DatagramListener:
    """A UDP port: each client address is a flow; owns `sock`."""

    def __init__(self, sock: socket.socket, message: Listen, around: _Surroundings) -> None:
        self.inode = os.fstat(sock.fileno()).st_ino
        self._socket = sock
        self._target = ListenerTarget(message.listener)
        self._around = around
        self._flows: dict[ClientAddress, _Flow] = {}
        around.readiness.register(sock.fileno(), select.EPOLLIN, self)

    def ready(self, _events: int) -> None:
        """Datagrams came."""
        for _ in range(_BATCH):
            try:
                payload, client = self._socket.recvfrom(_LARGEST)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error of an earlier answer; it is reported once (udp(7))
            flow = self._flows.get(client) or self._begin(client)
            if flow is None or not self._around.connection.send_data(flow.stream, payload):
                self._around.counters["datagrams dropped"] += 1

    def _begin(self, client: ClientAddress) -> _Flow | None:
        try:
            stream = self._around.connection.open_stream(StreamKind.UDP, self._target)
        except LocalProtocolError:  # all streams are in use
            return None
        flow = self._flows[client] = _Flow(self, client, stream)
        self._around.table.add(flow)
        self._around.counters["reverse flows"] += 1
        return flow

    def answer(self, client: ClientAddress, payload: bytes) -> None:
        """Give a client a datagram of the host."""
        try:
            self._socket.sendto(payload, client)
        except OSError:  # no room, too large, no route, a firewall: lost
            self._around.counters["datagrams dropped"] += 1

    def finish(self, flow: _Flow) -> None:
        """The host sends nothing more, and so nothing more is sent to it."""
        self._around.connection.send_end(flow.stream)
        self._around.table.remove(flow)
        self.forget(flow)

    def forget(self, flow: _Flow) -> None:
        """The flow's stream is over."""
        if self._flows.get(flow.client) is flow:
            del self._flows[flow.client]

    def close(self) -> None:
        """The port is gone, and all flows with it."""
        for flow in list(self._flows.values()):
            self._around.connection.send_reset(flow.stream, "the listener was closed")
            self._around.table.remove(flow)
        self._flows.clear()
        self._around.readiness.unregister(self._socket.fileno())
        self._socket.close()


class Listeners:
    """The listeners of this generation. `own_inodes` is told of each socket's inode as long as it lives."""

    def __init__(
        self,
        connection: Connection,
        table: StreamTable,
        readiness: Readiness,
        nursery: trio.Nursery,
        own_inodes: set[int],
        flush: Callable[[], None],
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._around = _Surroundings(connection, table, readiness, nursery, self.counters)
        self._own_inodes = own_inodes
        self._flush = flush
        self._listeners: dict[int, Listener] = {}
        self._watched = False
        """Whether a task looks for the files."""

    def listen(self, message: Listen) -> None:
        """Act on LISTEN, and answer it."""
        answer: Message = Listening(message.listener)
        try:
            self._add(message)
        except OSError as exc:
            reason = exc.strerror or type(exc).__name__
            answer = ListenFailed(message.listener, error_name(exc.errno or errno.EIO), reason)
        self._around.connection.send(answer)

    def unlisten(self, message: Unlisten) -> None:
        """Act on UNLISTEN."""
        if message.listener in self._listeners:
            self._close(message.listener)

    def end_generation(self) -> None:
        """The host is away, and its wishes with it."""
        for number in list(self._listeners):
            self._close(number)

    def opened(self, message: Opened) -> None:
        """The host reached what the connection leads to: bytes may flow. A flow does not wait for that."""
        handler = self._around.table.get(message.stream)
        if isinstance(handler, AcceptedConnection):
            around, sock = self._around, handler.sock
            if sock.family is not socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            around.table.add(TcpRelay(sock, around.connection, handler.stream, around.readiness, around.table))

    def refused(self, message: Refused) -> None:
        """The host did not reach it."""
        if handler := self._around.table.get(message.stream):
            self.counters["reverse refused"] += 1
            self._around.table.remove(handler)
            handler.receive_reset()

    def _add(self, message: Listen) -> None:
        if message.listener in self._listeners:
            raise OSError(errno.EEXIST, f"listener {message.listener} is there already")
        if len(self._listeners) >= MAX_LISTENERS:
            raise OSError(errno.EMFILE, f"there are {MAX_LISTENERS} listeners already")
        sock = socket.socket(*_family_and_type(message))
        try:
            sock.setblocking(False)
            listener = self._listen(sock, message)
        except BaseException:
            sock.close()
            raise
        self._listeners[message.listener] = listener
        self._own_inodes.add(listener.inode)
        if isinstance(message.address, UnixAddress) and not self._watched:
            self._watched = True
            self._around.nursery.start_soon(self._watch_files)

    def _listen(self, sock: socket.socket, message: Listen) -> Listener:
        address = message.address
        if isinstance(address, UnixAddress):
            file = bind_socket_file(sock, address)
            sock.listen(BACKLOG)
            return StreamListener(sock, file, message, self._around)
        if sock.family is socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if message.kind is StreamKind.UDP:
            sock.bind((address.address, address.port))
            return DatagramListener(sock, message, self._around)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address.address, address.port))
        sock.listen(BACKLOG)
        return StreamListener(sock, None, message, self._around)

    def _close(self, number: int) -> None:
        listener = self._listeners.pop(number)
        self._own_inodes.discard(listener.inode)
        listener.close()

    async def _watch_files(self) -> None:
        """End what lost its file, for as long as there are files."""
        while self._with_files():
            await trio.sleep(FILE_CHECK)
            for number, listener in self._with_files():
                if reason := listener.lost:
                    self._close(number)
                    self._around.connection.send(ListenFailed(number, error_name(errno.ENOENT), reason))
                    self._flush()
        self._watched = False

    def _with_files(self) -> list[tuple[int, StreamListener]]:
        return [
            (number, listener)
            for number, listener in self._listeners.items()
            if isinstance(listener, StreamListener) and listener.has_file
        ]


def _family_and_type(message: Listen) -> tuple[socket.AddressFamily, socket.SocketKind]:
    address = message.address
    if isinstance(address, UnixAddress):
        return socket.AF_UNIX, socket.SOCK_STREAM
    family = socket.AF_INET6 if ":" in address.address else socket.AF_INET
    return family, socket.SOCK_DGRAM if message.kind is StreamKind.UDP else socket.SOCK_STREAM
