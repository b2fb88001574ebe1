"""Checks of single values that came off the wire: type, size, form.

Each returns the value or raises `RemoteProtocolError`.
"""

from __future__ import annotations

import ipaddress
from enum import StrEnum
from functools import lru_cache
from typing import TypeVar

from protocol.errors import RemoteProtocolError
from protocol.limits import MAX_SOCKET_PATH, MAX_TEXT

MAX_U32 = 0xFFFFFFFF
MAX_U63 = 0x7FFFFFFFFFFFFFFF

_LONGEST_ADDRESS = 45
"""Characters of an IPv6 address that ends in an IPv4 one (INET6_ADDRSTRLEN without the NUL)."""

_Choice = TypeVar("_Choice", bound=StrEnum)


def integer_untrusted(value: object, most: int, least: int = 0) -> int:
    """An integer from `least` to `most`. A boolean is not one."""
    if type(value) is not int or not least <= value <= most:
        raise RemoteProtocolError(f"expected an integer from {least} to {most}")
    return value


def boolean_untrusted(value: object) -> bool:
    """True or False."""
    if type(value) is not bool:
        raise RemoteProtocolError("expected a boolean")
    return value


def bytes_untrusted(value: object, most: int) -> bytes:
    """A byte string of at most `most` bytes."""
    if type(value) is not bytes or len(value) > most:
        raise RemoteProtocolError(f"expected at most {most} bytes")
    return value


def text_untrusted(value: object, most: int = MAX_TEXT) -> str:
    """A text of at most `most` UTF-8 bytes. Control characters are replaced: it may be shown on a terminal."""
    if type(value) is not str or len(value.encode()) > most:
        raise RemoteProtocolError(f"expected a text of at most {most} bytes")
    return (
        value if value.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in value)
    )


def text_clipped(text: str, most: int = MAX_TEXT) -> str:
    """As much of our own `text` as the peer takes. What is not UTF-8 (a name in surrogateescape form) becomes "?"."""
    return text.encode(errors="replace")[:most].decode(errors="ignore")


def argument_untrusted(value: object, most: int) -> str:
    """A text for execve(2): passed on as it is, but without the NUL that would end it."""
    if type(value) is not str or len(value.encode()) > most or "\0" in value:
        raise RemoteProtocolError(f"expected an argument of at most {most} bytes without NUL")
    return value


def socket_path_untrusted(value: object) -> str:
    """An absolute path that fits a unix socket's address."""
    path = argument_untrusted(value, MAX_SOCKET_PATH)
    if not path.startswith("/"):
        raise RemoteProtocolError("expected an absolute path")
    return path


def listener_untrusted(value: object) -> int:
    """The number of a listener."""
    return integer_untrusted(value, MAX_U32, 1)


def list_untrusted(value: object, most: int) -> list[object]:
    """A list of at most `most` values, which are not looked at."""
    if type(value) is not list or len(value) > most:
        raise RemoteProtocolError(f"expected a list of at most {most} values")
    return value


def fields_untrusted(value: object, count: int) -> list[object]:
    """A list of exactly `count` values."""
    if type(value) is not list or len(value) != count:
        raise RemoteProtocolError(f"expected {count} values")
    return value


def choice_untrusted(value: object, kind: type[_Choice]) -> _Choice:
    """One member of `kind`."""
    if type(value) is str:
        try:
            return kind(value)
        except ValueError:
            pass
    raise RemoteProtocolError(f"expected one of {', '.join(kind)}")


def address_untrusted(value: object) -> str:
    """An IP address without a zone, in canonical text form."""
    if type(value) is str and len(value) <= _LONGEST_ADDRESS:
        try:
            return _canonical(value)
        except ValueError:
            pass
    raise RemoteProtocolError("expected an IP address")


@lru_cache(maxsize=256)  # most connections are to few addresses
def _canonical(address: str) -> str:
    if "%" in address:
        raise ValueError("a zone means something only where it was written")
    return str(ipaddress.ip_address(address))
