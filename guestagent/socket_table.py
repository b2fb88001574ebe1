"""What the kernel says about its sockets, as one set of values whichever way it says so. Pure.

`sock_diag` (linux/inet_diag.h) is the reader of choice: it filters in the kernel and costs a fraction of the text in
/proc/net, which lists every connection. Both give the same `ListeningSocket` values, and a test on the live kernel
holds them to it. Neither is ever interpreted as "nothing is open" when it cannot be read: that is a `KernelDataError`.

`PortTable` turns sockets into ports. Its one piece of memory is UDP: a server that calls connect() after its first
datagram (`nc -u -l`, some DTLS servers) turns into what looks like a client, with its wildcard address replaced by
the address it was reached at. It still serves its port, so a socket that was once seen unconnected stays the port it
was, for as long as its inode lives. A socket that was connected from the first look on is a client.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
import struct
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from guestagent import netlink
from guestagent.netlink import KernelDataError
from protocol.ports import Port, PortChange, Protocol, difference

AF_INET, AF_INET6 = 2, 10
BY_FAMILY = 20
"""SOCK_DIAG_BY_FAMILY: request and answer of a dump, and the notice of a destroyed socket."""

_DIAG_SIZE, _IDENTITY_SIZE, _OWNER_OFFSET = 72, 52, 64
"""struct inet_diag_msg, and the parts of it that tell sockets apart: left out are expiry time and queue lengths."""

_RECORD = struct.Struct("=BBxx2s2s16s16sI8xII")
"""Family, state, source port, destination port, source, destination, interface, (cookie), uid, inode."""

_PORT = struct.Struct("!H")
_MAPPED = b"\0" * 10 + b"\xff\xff"
_FIRST_FIELDS = 10
_MAX_PORT = 0xFFFF


class SocketState(enum.StrEnum):
    """The states in which a socket can serve a port."""

    LISTENING = "listening"
    UNCONNECTED = "unconnected"
    CONNECTED = "connected"


_STATES: Mapping[tuple[Protocol, int], SocketState] = {
    (Protocol.TCP, 10): SocketState.LISTENING,  # TCP_LISTEN
    (Protocol.UDP, 7): SocketState.UNCONNECTED,  # TCP_CLOSE, which is where UDP sockets start (net/ipv4/udp.c)
    (Protocol.UDP, 1): SocketState.CONNECTED,  # TCP_ESTABLISHED, after connect()
}


@dataclass(frozen=True, slots=True)
class ListeningSocket:
    """One socket that serves a port, or (UDP, connected) may serve one."""

    protocol: Protocol
    address: str
    number: int
    inode: int
    uid: int
    state: SocketState
    interface: int = field(default=0, compare=False)
    """Index of the interface it is bound to, 0 for none. Not compared, since /proc/net does not tell it."""


def parse_proc_net(protocol: Protocol, text: str) -> frozenset[ListeningSocket]:
    """The sockets in the text of /proc/net/{tcp,tcp6,udp,udp6} (proc(5)). Raises `KernelDataError`."""
    lines = text.splitlines()
    if not lines or "local_address" not in lines[0]:
        raise KernelDataError("the first line of a /proc/net table names no columns")
    found = (_parse_proc_line(protocol, line) for line in lines[1:])
    return frozenset(socket for socket in found if socket is not None)


def _parse_proc_line(protocol: Protocol, line: str) -> ListeningSocket | None:
    fields = line.split(None, _FIRST_FIELDS)
    try:
        state = _STATES.get((protocol, int(fields[3], 16)))
        if state is None:
            return None
        digits, number = fields[1].split(":")
        port, uid, inode = int(number, 16), int(fields[7]), int(fields[9])
        address = _address(_network_order(bytes.fromhex(digits)))
    except (ValueError, IndexError) as exc:
        raise KernelDataError(f"a line of /proc/net/{protocol} cannot be read: {line[:200]!r}") from exc
    if not (0 <= port <= _MAX_PORT and uid >= 0 and inode >= 0):
        raise KernelDataError(f"a line of /proc/net/{protocol} has a number out of range: {line[:200]!r}")
    return ListeningSocket(protocol, address, port, inode, uid, state) if port else None


def _network_order(words: bytes) -> bytes:
    """/proc/net prints an address as 32-bit numbers of the machine, not as bytes of the network."""
    if sys.byteorder == "big":
        return words
    return b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))


@functools.lru_cache(maxsize=1024)
def _address(packed: bytes) -> str:
    """Text of an address; an IPv4 address mapped into IPv6 is the IPv4 address, since only IPv4 reaches it."""
    if packed.startswith(_MAPPED) and len(packed) == 16:
        packed = packed[12:]
    return str(ipaddress.ip_address(packed))


@dataclass(frozen=True, slots=True)
class DumpPart:
    """What one datagram adds to a sock_diag dump."""

    records: tuple[bytes, ...]
    """One per socket, without what differs from look to look; `DiagRecords` makes sockets of them."""
    done: bool
    interrupted: bool
    """The table changed under the dump (NLM_F_DUMP_INTR): start again."""
    errno: int


def parse_diag(data: bytes, sequence: int) -> DumpPart:
    """One datagram of the answer to dump `sequence`. Raises `KernelDataError`."""
    records: list[bytes] = []
    done, interrupted, errno = False, False, 0
    for kind, flags, answered, start, end in netlink.walk(data):
        if answered != sequence:
            continue
        if flags & netlink.DUMP_INTERRUPTED:
            interrupted = True
        if kind == BY_FAMILY:
            if end - start < _DIAG_SIZE:
                raise KernelDataError(f"a sock_diag message has {end - start} bytes, and {_DIAG_SIZE} are needed")
            records.append(data[start : start + _IDENTITY_SIZE] + data[start + _OWNER_OFFSET : start + _DIAG_SIZE])
        elif kind in (netlink.DONE, netlink.ERROR):
            done, errno = True, netlink.error_number(netlink.Message(kind, flags, answered, data[start:end]))
    return DumpPart(tuple(records), done, interrupted, errno)


class DiagRecords:
    """Makes sockets of the records of successive dumps of one protocol.

    Most records are the same in the next dump, and under emulation making a value costs ten times as much as
    recognising its bytes. So only new records are parsed, and an unchanged dump gives the very same set.
    """

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._records: frozenset[bytes] = frozenset()
        self._parsed: dict[bytes, ListeningSocket | None] = {}
        self._sockets: frozenset[ListeningSocket] = frozenset()

    def sockets(self, records: frozenset[bytes]) -> frozenset[ListeningSocket]:
        """The sockets in a complete dump. Raises `KernelDataError`, and then is as before."""
        if records != self._records:
            parsed = {
                record: self._parsed[record] if record in self._parsed else _parse_record(self._protocol, record)
                for record in records
            }
            self._sockets = frozenset(socket for socket in parsed.values() if socket is not None)
            self._records, self._parsed = records, parsed
        return self._sockets


def _parse_record(protocol: Protocol, record: bytes) -> ListeningSocket | None:
    family, code, source_port, _, source, _, interface, uid, inode = _RECORD.unpack(record)
    state = _STATES.get((protocol, code))
    (number,) = _PORT.unpack(source_port)
    if state is None or not number:
        return None
    if family not in (AF_INET, AF_INET6):
        raise KernelDataError(f"a sock_diag message is of address family {family}")
    packed = source[:4] if family == AF_INET else source
    return ListeningSocket(protocol, _address(packed), number, inode, uid, state, interface)


def parse_destroyed(data: bytes) -> frozenset[int]:
    """Local port numbers of the sockets that a SKNLGRP_INET*_DESTROY datagram names. Raises `KernelDataError`."""
    numbers = set()
    for message in netlink.unpack(data):
        if message.kind == BY_FAMILY:
            if len(message.payload) < _DIAG_SIZE:
                raise KernelDataError(f"a destroyed socket is described by only {len(message.payload)} bytes")
            numbers.add(_PORT.unpack_from(message.payload, 4)[0])
    return frozenset(numbers)


@dataclass(frozen=True, slots=True)
class Look:
    """What one dump has shown."""

    change: PortChange
    new_inodes: Mapping[Port, int]
    """Ports that were opened or are served by another socket than before, with the inode to ask the owner of."""


class PortTable:
    """The ports that are open, carried from dump to dump."""

    def __init__(self) -> None:
        self._sockets: dict[Protocol, frozenset[ListeningSocket]] = {}
        self._port_of: dict[ListeningSocket, Port] = {}
        self._serving: dict[Port, set[ListeningSocket]] = {}
        self._numbers: Counter[tuple[Protocol, int]] = Counter()

    @property
    def ports(self) -> frozenset[Port]:
        """All ports that are open as of the last dump."""
        return frozenset(self._serving)

    def __contains__(self, port: object) -> bool:
        return port in self._serving

    def inodes(self, port: Port) -> frozenset[int]:
        """The sockets behind `port`; empty when it is not open."""
        return frozenset(socket.inode for socket in self._serving.get(port, ()))

    def is_open(self, protocol: Protocol, number: int) -> bool:
        """Whether a port with that number is open at any address."""
        return self._numbers[protocol, number] > 0

    def update(self, protocol: Protocol, sockets: frozenset[ListeningSocket]) -> Look:
        """Take in a complete dump of `protocol` and return what is different."""
        known = self._sockets.get(protocol, frozenset())
        self._sockets[protocol] = sockets
        gone, fresh = known - sockets, sockets - known
        servers = {socket.inode: self._port_of[socket] for socket in gone if socket.inode and socket in self._port_of}
        before: dict[Port, frozenset[int]] = {}
        for socket in gone:
            if port := self._port_of.pop(socket, None):
                before.setdefault(port, self.inodes(port))
                self._serving[port].discard(socket)
        for socket in fresh:
            if port := _port_of(socket, servers):
                before.setdefault(port, self.inodes(port))
                self._port_of[socket] = port
                self._serving.setdefault(port, set()).add(socket)
        return self._compare(before)

    def _compare(self, before: Mapping[Port, frozenset[int]]) -> Look:
        new_inodes = {}
        for port, inodes in before.items():
            now = self.inodes(port)
            if not now:
                del self._serving[port]
            elif not now & inodes:
                new_inodes[port] = min(now)
            self._numbers[port.protocol, port.number] += bool(now) - bool(inodes)
        change = difference(
            {port for port, inodes in before.items() if inodes}, {port for port in before if port in self._serving}
        )
        return Look(change, new_inodes)


def _port_of(socket: ListeningSocket, servers: Mapping[int, Port]) -> Port | None:
    """The port that `socket` serves; `servers` says which port a socket that has just connected served before."""
    if socket.state is SocketState.CONNECTED:
        return servers.get(socket.inode)
    return Port(socket.protocol, socket.address, socket.number)
