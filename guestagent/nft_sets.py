"""The contents of nftables' sets and maps, as the kernel lists them. Pure; raises `KernelDataError`.

An interval is two elements, its first key and the first key behind it (flag INTERVAL_END), except in sets whose keys
are concatenations: there one element holds first and last key. See nft_set_elem in linux/nf_tables.h.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest

from guestagent.netlink import KernelDataError
from guestagent.nft_dump import Attributes, SetRecord, attributes_of, number, text

CONCATENATION, INTERVAL, MAP = 0x80, 0x04, 0x08
"""NFT_SET_*."""

_KEY, _DATA, _FLAGS, _KEY_END = 1, 2, 3, 10
_INTERVAL_END, _CATCH_ALL = 1, 2
_VALUE, _VERDICT = 1, 2


@dataclass(frozen=True, slots=True)
class KernelVerdict:
    """A verdict as the kernel codes it: NF_ACCEPT and so on, or NFT_JUMP and so on with a chain."""

    code: int
    chain: str = ""


@dataclass(frozen=True, slots=True)
class Element:
    """Keys from `low` to `high`, and what a map leads to from there."""

    low: bytes
    high: bytes
    data: bytes = b""
    verdict: KernelVerdict | None = None
    catch_all: bool = False


@dataclass(frozen=True, slots=True)
class SetContents:
    """A set or map with its elements."""

    record: SetRecord
    elements: tuple[Element, ...]


def read_verdict(packed: bytes) -> KernelVerdict:
    """The verdict in an NFTA_DATA_VERDICT."""
    found = attributes_of(packed)
    if 1 not in found:
        raise KernelDataError("an nftables verdict has no code")
    code = number(found[1])
    return KernelVerdict(code - (1 << 32) if code >> 31 else code, text(found.get(2, b"")))


def read_data(packed: bytes) -> bytes | KernelVerdict:
    """The value or the verdict in a data attribute."""
    found = attributes_of(packed)
    if _VERDICT in found:
        return read_verdict(found[_VERDICT])
    if _VALUE not in found:
        raise KernelDataError("nftables data has neither a value nor a verdict")
    return found[_VALUE]


def read_elements(record: SetRecord, packed: Iterable[bytes]) -> SetContents:
    """The elements of a set, intervals put together."""
    raw = [attributes_of(element) for element in packed]
    intervals = bool(record.flags & INTERVAL) and not record.flags & CONCATENATION
    elements = _intervals(raw) if intervals else [_element(one) for one in raw]
    return SetContents(record, tuple(elements))


def _flags(raw: Attributes) -> int:
    return number(raw[_FLAGS]) if _FLAGS in raw else 0


def _key(raw: Attributes, kind: int = _KEY) -> bytes:
    if kind not in raw:
        raise KernelDataError("an nftables element has no key")
    key = read_data(raw[kind])
    if isinstance(key, KernelVerdict):
        raise KernelDataError("an nftables element has a verdict as its key")
    return key


def _element(raw: Attributes) -> Element:
    data = read_data(raw[_DATA]) if _DATA in raw else b""
    verdict = data if isinstance(data, KernelVerdict) else None
    value = b"" if isinstance(data, KernelVerdict) else data
    if _flags(raw) & _CATCH_ALL:
        return Element(b"", b"", value, verdict, catch_all=True)
    low = _key(raw)
    return Element(low, _key(raw, _KEY_END) if _KEY_END in raw else low, value, verdict)


def _intervals(raw: list[Attributes]) -> list[Element]:
    marked = [(_key(one), not _flags(one) & _INTERVAL_END, one) for one in raw if not _flags(one) & _CATCH_ALL]
    marked.sort(key=lambda entry: entry[:2])  # where an interval ends and another begins, the end comes first
    elements = [_element(one) for one in raw if _flags(one) & _CATCH_ALL]
    for (low, starts, one), following in zip_longest(marked, marked[1:]):
        if starts:
            found = _element(one)
            high = _before(following[0]) if following and following[0] > low else b"\xff" * len(low)
            elements.append(Element(low, high, found.data, found.verdict))
    return elements


def _before(key: bytes) -> bytes:
    return (int.from_bytes(key, "big") - 1).to_bytes(len(key), "big")
