"""nfnetlink's answers about nftables, as values: chains, rules, sets. Pure.

linux/netfilter/nfnetlink.h and nf_tables.h: behind the netlink header come four bytes (family, version, a number) and
attributes, which nest. Numbers are big-endian, other than in the rest of netlink. What the rules mean is `nft_rules`.
Whatever is not of that shape is a `KernelDataError`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from guestagent import netlink
from guestagent.netlink import KernelDataError

SUBSYSTEM = 10 << 8
"""NFNL_SUBSYS_NFTABLES, the upper byte of each message's type."""

GET_CHAIN, GET_RULE, GET_SET, GET_ELEMENTS, GET_GENERATION = 4, 7, 10, 13, 16
NEW_CHAIN, NEW_RULE, NEW_SET, NEW_ELEMENTS, NEW_GENERATION = 3, 6, 9, 12, 15
"""enum nf_tables_msg_types."""

INET, IPV4, IPV6 = 1, 2, 10
"""NFPROTO_*: the families whose chains see packets to the guest's ports."""

PREROUTING, OUTPUT = 0, 3
"""NF_INET_PRE_ROUTING and NF_INET_LOCAL_OUT."""

_HEADER = struct.Struct("!BBH")
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_U32 = struct.Struct("!I")
_I32 = struct.Struct("!i")

Attributes = dict[int, bytes]


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    size = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)


def name_attribute(kind: int, name: str) -> bytes:
    """An attribute with a name, which ends with a NUL."""
    return attribute(kind, name.encode("utf-8", "surrogateescape") + b"\0")


def request(kind: int, sequence: int, family: int = 0, attributes: bytes = b"", *, dump: bool = True) -> bytes:
    """A question: `kind` is one of GET_*, and family 0 asks for all of them."""
    flags = netlink.REQUEST | (netlink.DUMP if dump else 0)
    return netlink.pack(SUBSYSTEM | kind, flags, sequence, _HEADER.pack(family, 0, 0) + attributes)


def walk_attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and value of each attribute in `data`. Raises `KernelDataError`."""
    offset, size = 0, len(data)
    while size - offset >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size or offset + length > size:
            raise KernelDataError(f"an nftables attribute claims {length} bytes, and {size - offset} are there")
        yield kind & _TYPE_MASK, data[offset + _ATTRIBUTE.size : offset + length]
        offset += length + (-length % 4)
    if offset < size:
        raise KernelDataError(f"{size - offset} bytes are left where an nftables attribute has 4")


def attributes_of(data: bytes) -> Attributes:
    """The attributes in `data` by type; of several alike, the last."""
    return dict(walk_attributes(data))


def items(data: bytes) -> list[bytes]:
    """The values of a list (NFTA_LIST_ELEM)."""
    return [value for _, value in walk_attributes(data)]


def text(value: bytes) -> str:
    """A name."""
    return value.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def number(value: bytes) -> int:
    """A 32-bit number."""
    if len(value) != _U32.size:
        raise KernelDataError(f"an nftables number has {len(value)} bytes")
    return int(_U32.unpack(value)[0])


@dataclass(frozen=True, slots=True)
class ChainRecord:
    """A chain; `hook` is None unless packets come in there."""

    family: int
    table: str
    name: str
    hook: int | None
    priority: int
    kind: str
    """"nat", "filter" or "route" of a base chain."""


@dataclass(frozen=True, slots=True)
class RuleRecord:
    """A rule as it came. `expressions` is the same for two rules that mean the same (but for their counters)."""

    family: int
    table: str
    chain: str
    expressions: bytes
    user_data: bytes


@dataclass(frozen=True, slots=True)
class SetRecord:
    """A set's or map's form, without its elements."""

    family: int
    table: str
    name: str
    flags: int
    key_size: int


@dataclass(frozen=True, slots=True)
class ElementsRecord:
    """Some elements of a set, each with its attributes still packed."""

    family: int
    table: str
    set_name: str
    elements: tuple[bytes, ...]


Record = ChainRecord | RuleRecord | SetRecord | ElementsRecord


def parse_record(kind: int, payload: bytes) -> Record | None:
    """What one message of a dump says; None for one of another kind. Raises `KernelDataError`."""
    parse = _PARSERS.get(kind ^ SUBSYSTEM)
    if parse is None:
        return None
    if len(payload) < _HEADER.size:
        raise KernelDataError(f"an nftables message has only {len(payload)} bytes")
    try:
        return parse(payload[0], attributes_of(payload[_HEADER.size :]))
    except KeyError as exc:
        raise KernelDataError(f"an nftables message lacks attribute {exc}") from exc


def _parse_chain(family: int, found: Attributes) -> ChainRecord:
    hook = attributes_of(found.get(4, b""))
    return ChainRecord(
        family,
        text(found[1]),
        text(found[3]),
        number(hook[1]) if hook else None,
        _signed(hook[2]) if hook else 0,
        text(found.get(7, b"")),
    )


def _signed(value: bytes) -> int:
    number(value)  # of the right size
    return int(_I32.unpack(value)[0])


def _parse_rule(family: int, found: Attributes) -> RuleRecord:
    return RuleRecord(family, text(found[1]), text(found[2]), found.get(4, b""), found.get(7, b""))


def _parse_set(family: int, found: Attributes) -> SetRecord:
    flags = number(found[3]) if 3 in found else 0
    return SetRecord(family, text(found[1]), text(found[2]), flags, number(found[5]))


def _parse_elements(family: int, found: Attributes) -> ElementsRecord:
    return ElementsRecord(family, text(found[1]), text(found[2]), tuple(items(found.get(3, b""))))


_PARSERS: dict[int, Callable[[int, Attributes], Record]] = {
    NEW_CHAIN: _parse_chain,
    NEW_RULE: _parse_rule,
    NEW_SET: _parse_set,
    NEW_ELEMENTS: _parse_elements,
}


def parse_generation(payload: bytes) -> int:
    """The rule set's generation, which every committed change raises. Raises `KernelDataError`."""
    if len(payload) < _HEADER.size:
        raise KernelDataError("nftables named no generation")
    found = attributes_of(payload[_HEADER.size :])
    if 1 not in found:
        raise KernelDataError("nftables named no generation")
    return number(found[1])
