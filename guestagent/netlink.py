"""Netlink messages as the kernel frames them: bytes in, messages out, and back. Pure.

netlink(7): every message starts with a 16-byte `struct nlmsghdr` in the machine's byte order, and the next one begins
at a multiple of four. Several may share one datagram. The kernel is trusted, but a truncated read or an unknown kernel
is not worth a crash: whatever cannot be read raises `KernelDataError` and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length with the header, type, flags, sequence, port id."""

ERROR, DONE = 2, 3
"""NLMSG_ERROR (errno 0 is an acknowledgement) and NLMSG_DONE, the end of a dump."""

REQUEST, ACKNOWLEDGE, DUMP, DUMP_INTERRUPTED = 0x001, 0x004, 0x300, 0x010
"""NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR (linux/netlink.h)."""

_ERRNO = struct.Struct("=i")


class KernelDataError(Exception):
    """The kernel said something that cannot be read: truncated, or of a shape that is not documented."""


@dataclass(frozen=True, slots=True)
class Message:
    """One netlink message."""

    kind: int
    flags: int
    sequence: int
    payload: bytes


def pack(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    """One message ready to be sent to the kernel."""
    return HEADER.pack(HEADER.size + len(payload), kind, flags, sequence, 0) + payload


def unpack(data: bytes) -> Iterator[Message]:
    """The messages of one datagram, in order. Raises `KernelDataError` at the first that does not fit."""
    for kind, flags, sequence, start, end in walk(data):
        yield Message(kind, flags, sequence, data[start:end])


def walk(data: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Like `unpack`, but kind, flags, sequence, and where the payload starts and ends: for dumps of many sockets."""
    offset, size = 0, len(data)
    while offset < size:
        if size - offset < HEADER.size:
            raise KernelDataError(f"{size - offset} bytes are left where a netlink header has {HEADER.size}")
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
        end = offset + length
        if length < HEADER.size or end > size:
            raise KernelDataError(f"a netlink message claims {length} bytes, and {size - offset} are there")
        yield kind, flags, sequence, offset + HEADER.size, end
        offset = end + (-length % 4)


def error_number(message: Message) -> int:
    """The errno that an ERROR or DONE message carries; 0 for success. A bare DONE is success."""
    if len(message.payload) < _ERRNO.size:
        if message.kind == DONE:
            return 0
        raise KernelDataError("a netlink error carries no errno")
    (negative,) = _ERRNO.unpack_from(message.payload)
    return -int(negative)
