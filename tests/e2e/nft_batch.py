"""nftables transactions as bytes for the kernel, for guests that have no `nft`."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

from guestagent import netlink
from guestagent.nft_dump import SUBSYSTEM, attribute, name_attribute
from protocol.ports import Protocol

_BEGIN, _END = 0x10, 0x11  # NFNL_MSG_BATCH_*
_NEW_TABLE, _DELETE_TABLE, _NEW_CHAIN, _NEW_RULE = 0, 2, 3, 6
_CREATE = 0x400
_HEADER = struct.Struct("!BBH")
_IPV4 = 2
_PROTOCOL_NUMBERS = {Protocol.TCP: b"\x06", Protocol.UDP: b"\x11"}


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!i", value))


def _expression(name: str, *attributes: bytes) -> bytes:
    return attribute(1, name_attribute(1, name) + attribute(2, b"".join(attributes)))


def _compare(value: bytes) -> bytes:
    return _expression("cmp", _u32(1, 1), _u32(2, 0), attribute(3, attribute(1, value)))


def _constant(register: int, value: bytes) -> bytes:
    return _expression("immediate", _u32(1, register), attribute(2, attribute(1, value)))


@dataclass(frozen=True, slots=True)
class Transaction:
    """Messages that the kernel acts on together or not at all."""

    messages: bytes
    answers: int
    """How many of them are acknowledged."""


def _batch(*messages: tuple[int, bytes]) -> Transaction:
    begin, end = (netlink.pack(kind, netlink.REQUEST, 0, _HEADER.pack(0, 0, SUBSYSTEM >> 8)) for kind in (_BEGIN, _END))
    flags = netlink.REQUEST | netlink.ACKNOWLEDGE | _CREATE
    packed = [
        netlink.pack(SUBSYSTEM | kind, flags, number, _HEADER.pack(_IPV4, 0, 0) + attributes)
        for number, (kind, attributes) in enumerate(messages, start=1)
    ]
    return Transaction(b"".join((begin, *packed, end)), len(messages))


def translation(table: str, protocol: Protocol, port: int, address: str, target_port: int) -> Transaction:
    """A table whose prerouting chain sends `port` to `address` and `target_port`."""
    hook = attribute(4, _u32(1, 0) + _u32(2, -100))
    expressions = (
        _expression("meta", _u32(1, 1), _u32(2, 16)),
        _compare(_PROTOCOL_NUMBERS[protocol]),
        _expression("payload", _u32(1, 1), _u32(2, 2), _u32(3, 2), _u32(4, 2)),
        _compare(struct.pack("!H", port)),
        _constant(1, ipaddress.ip_address(address).packed),
        _constant(2, struct.pack("!H", target_port)),
        _expression("nat", _u32(1, 1), _u32(2, _IPV4), _u32(3, 1), _u32(5, 2)),
    )
    names = name_attribute(1, table)
    return _batch(
        (_NEW_TABLE, names),
        (_NEW_CHAIN, names + name_attribute(3, "in") + hook + name_attribute(7, "nat")),
        (_NEW_RULE, names + name_attribute(2, "in") + attribute(4, b"".join(expressions))),
    )


def without(table: str) -> Transaction:
    """The end of that table."""
    return _batch((_DELETE_TABLE, name_attribute(1, table)))
