"""UDP flows: one connected socket for each flow, one datagram for each DATA, in both directions.

Because each flow has a socket of its own, a server in the guest sees distinct peers. Because the socket is connected,
only the server's answers reach it, and its absence is noticed: an ICMP "port unreachable" becomes ECONNREFUSED (udp(7))
and that a RESET. Everything else that a datagram can meet on its way loses it, as on any network, and is counted.

The host decides when a flow is over.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections import Counter

from guestagent.readiness import Readiness
from guestagent.relay import destination, error_name
from guestagent.stream_table import StreamTable
from protocol.connection import Connection
from protocol.stream_messages import SocketTarget
from protocol.streams import Stream

_BATCH = 32
"""Datagrams read before the channel gets its turn: half of what a flow may queue."""

_LARGEST = 65_535


class DatagramRelay:
    """One flow and its socket."""

    def __init__(
        self,
        sock: socket.socket,
        connection: Connection,
        stream: Stream,
        readiness: Readiness,
        table: StreamTable,
        counters: Counter[str],
    ) -> None:
        self.stream = stream
        self._socket = sock
        self._connection = connection
        self._readiness = readiness
        self._table = table
        self._counters = counters
        readiness.register(sock.fileno(), select.EPOLLIN, self)

    def receive_data(self, payload: bytes) -> None:
        """One datagram for the server."""
        try:
            self._socket.send(payload)
        except ConnectionError as exc:
            self._fail(exc)
        except OSError:  # no room, too large, no route, a firewall: lost
            self._counters["datagrams dropped"] += 1

    def receive_end(self) -> None:
        """The host closes the flow."""
        self._connection.send_end(self.stream)
        self.receive_reset()

    def receive_reset(self) -> None:
        """The flow is over."""
        if self._socket.fileno() < 0:
            return
        self._readiness.unregister(self._socket.fileno())
        self._socket.close()
        self._table.remove(self)

    def unpaused(self) -> None:
        """Flows are never paused: what finds no room is dropped."""

    def ready(self, _events: int) -> None:
        """Datagrams came, or an ICMP error."""
        receive, send, stream = self._socket.recv, self._connection.send_data, self.stream
        try:
            for _ in range(_BATCH):
                if not send(stream, receive(_LARGEST)):
                    self._counters["datagrams dropped"] += 1
        except BlockingIOError:
            pass
        except OSError as exc:
            self._fail(exc)

    def _fail(self, exc: OSError) -> None:
        self._connection.send_reset(self.stream, exc.strerror or type(exc).__name__)
        self.receive_reset()


class DatagramRelays:
    """Opens a relay for each OPEN of a udp flow."""

    def __init__(self, connection: Connection, table: StreamTable, readiness: Readiness) -> None:
        self._connection = connection
        self._table = table
        self._readiness = readiness
        self.counters: Counter[str] = Counter()

    def open(self, stream: Stream, target: SocketTarget) -> None:
        """Make the flow's socket and answer its OPEN."""
        family, address = destination(target)
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            error = sock.connect_ex(address)
        except OSError as exc:
            self._refuse(stream, exc.errno or errno.EIO)
            return
        if error:
            sock.close()
            self._refuse(stream, error)
            return
        self.counters["udp flows"] += 1
        self._connection.accept_stream(stream)
        self._table.add(DatagramRelay(sock, self._connection, stream, self._readiness, self._table, self.counters))

    def _refuse(self, stream: Stream, error: int) -> None:
        self._connection.refuse_stream(stream, error_name(error), os.strerror(error))
