"""A UDP socket that answers from the address that it was asked at.

One that is bound to all addresses would answer from whichever address the route to the client has, and a client that
connected its socket never sees that answer. So it asks the kernel where each datagram came to (IP_PKTINFO of ip(7),
IPV6_RECVPKTINFO of RFC 3542 section 6.1), and says so when it answers.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from typing import Final

LARGEST: Final = 65_535

Address = tuple[str, int] | tuple[str, int, int, int]

Peer = tuple[Address, bytes]
"""A client, and as what it knows us: the packed address that it asked, empty where there is only one."""

_IP_PKTINFO: Final = 26 if sys.platform == "darwin" else 8
"""<netinet/in.h>; Python has no name for it before 3.12."""
_IPV4: Final = struct.Struct("@i4s4s")
"""struct in_pktinfo: interface, our address for answers, the destination in the header."""
_IPV6: Final = struct.Struct("@16sI")
"""struct in6_pktinfo: address, interface."""

_SO_MEMINFO: Final = 55
"""asm-generic/socket.h; Python has no name for it."""
_MEMINFO: Final = struct.Struct("=9I")
_DROPS: Final = 8
"""SK_MEMINFO_DROPS, linux/sock_diag.h."""


class DatagramSocket:
    """The datagrams of a bound, non-blocking socket, which may be closed at any time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._version = 0
        """Of IP, where the socket has more than one address."""
        # A port that closed in the moment it opened has no socket left, and nothing to receive.
        if sock.fileno() >= 0 and ipaddress.ip_address(sock.getsockname()[0]).is_unspecified:
            self._version = 6 if sock.family is socket.AF_INET6 else 4
            level, option = (
                (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO)
                if self._version == 6
                else (socket.IPPROTO_IP, _IP_PKTINFO)
            )
            sock.setsockopt(level, option, 1)

    def receive(self) -> tuple[bytes, Peer]:
        """One datagram and who sent it; raises `OSError`, `BlockingIOError` when there is none."""
        if not self._version:
            payload, client = self._sock.recvfrom(LARGEST)
            return payload, (client, b"")
        payload, ancillary, _, client = self._sock.recvmsg(LARGEST, socket.CMSG_SPACE(_IPV6.size))
        return payload, (client, self._asked(ancillary))

    def send(self, payload: bytes, peer: Peer) -> None:
        """Answer `peer` with one datagram; raises `OSError`."""
        client, asked = peer
        if asked:
            self._sock.sendmsg([payload], [self._as(asked)], 0, client)
        else:
            self._sock.sendto(payload, client)

    def _asked(self, ancillary: list[tuple[int, int, bytes]]) -> bytes:
        for level, kind, data in ancillary:
            if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
                return bytes(_IPV4.unpack(data)[1])
            if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
                address, interface = _IPV6.unpack(data)
                # Elsewhere the route decides about the interface; a link-local address means nothing without it.
                return _IPV6.pack(address, interface if ipaddress.IPv6Address(address).is_link_local else 0)
        return b""

    def _as(self, asked: bytes) -> tuple[int, int, bytes]:
        if self._version == 6:
            return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, asked
        return socket.IPPROTO_IP, _IP_PKTINFO, _IPV4.pack(0, asked, bytes(4))


def dropped_by_kernel(sock: socket.socket) -> int | None:
    """Datagrams that found no room in this socket since it was made, modulo 2**32; None where the kernel is silent.

    Linux counts them per socket (sk_drops) and tells with SO_MEMINFO (sk_get_meminfo, net/core/sock.c, since 4.12).
    """
    try:
        answer = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
    except OSError:
        return None
    return int(_MEMINFO.unpack(answer)[_DROPS]) if len(answer) == _MEMINFO.size else None
