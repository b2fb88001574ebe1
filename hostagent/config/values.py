"""The types of single values in a configuration: what a size, an address, a digest or a path may be.

Each is a pydantic annotation that turns the text of the file into the one form that the rest of the program sees, or
refuses it with a sentence that says what must stand there instead.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from hostagent.config.socket_paths import check_guest_path, check_host_path

MIB: Final = 1 << 20
GIB: Final = 1 << 30
TIB: Final = 1 << 40

ANY_ADDRESS: Final = "any"
"""Our own word for `guestIP`: whatever address the guest program is bound to."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SIZE: Final = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,18}))? ?([kmgtp]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")
_USER_NAME: Final = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_TEMPLATE: Final = "{{"


def parse_size(value: object) -> object:
    """Bytes of a size such as `4GiB`, `512M` or `1.5g`; anything that is not text is returned as it is.

    As in Lima (docker/go-units, `RAMInBytes`) every unit is a power of 1024, case does not matter, and a bare number
    is bytes. Raises `ValueError` for text that is no size.
    """
    if not isinstance(value, str):
        return value
    if not (match := _SIZE.fullmatch(value)):
        raise ValueError("must be a size such as 4GiB or 512MiB")
    whole, fraction, unit = match[1], match[2] or "", match[3].lower()
    return (int(whole + fraction) << 10 * " kmgtp".index(unit or " ")) // 10 ** len(fraction)


def _one_line(text: str) -> str:
    if _CONTROL.search(text):
        raise ValueError("must not hold line breaks or control characters")
    return text


def _address(text: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError as exc:
        raise ValueError("must be an IPv4 or IPv6 address") from exc
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise ValueError("must be an address without a zone (the part after %)")
        return str(address.ipv4_mapped or address)
    return str(address)


def _guest_address(text: str) -> str:
    if text == ANY_ADDRESS:
        return text
    try:
        return _address(text)
    except ValueError as exc:
        raise ValueError(f"{exc}, or the word {ANY_ADDRESS}") from exc


def _ordered(ports: tuple[int, int]) -> tuple[int, int]:
    if ports[0] > ports[1]:
        raise ValueError("the first port must not be greater than the last")
    return ports


def _location(text: str) -> str:
    scheme, colon, rest = text.partition("://")
    if colon:
        if scheme not in ("http", "https", "file") or not rest:
            raise ValueError("must be an http://, https:// or file:// address, or a path")
    elif not text.startswith(("/", "~/")):
        raise ValueError("must be an address, or a path that starts with / or ~/")
    return text


def _digest(text: str) -> str:
    if not _DIGEST.fullmatch(text):
        raise ValueError("must be sha256:, sha384: or sha512: and that many bits in lowercase hexadecimal")
    return text


def _absolute(text: str) -> str:
    if _TEMPLATE in text:
        raise ValueError("template variables are not supported here: write the path itself")
    if not text.startswith("/") or ":" in text:
        raise ValueError("must be an absolute path without a colon")
    return text


def _user_name(text: str) -> str:
    if not _USER_NAME.fullmatch(text):
        raise ValueError(
            "must be 1 to 32 lowercase letters, digits, dashes or underscores, starting with a letter or underscore"
        )
    return text


def _comment(text: str) -> str:
    if ":" in text:
        raise ValueError("must not hold a colon, which separates the fields of /etc/passwd")
    return text


def _variable_name(text: str) -> str:
    if not _VARIABLE.fullmatch(text):
        raise ValueError("must be the name of an environment variable: letters, digits and underscores")
    return text


_SIZE_SCHEMA: Final = WithJsonSchema(
    {
        "anyOf": [
            {"type": "integer", "description": "bytes"},
            {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?[kKmMgGtTpP]?([iI]?[bB])?$"},
        ]
    }
)

Text = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_one_line)]
Location = Annotated[Text, AfterValidator(_location)]
Digest = Annotated[str, AfterValidator(_digest), Field(json_schema_extra={"pattern": f"^({_DIGEST.pattern})$"})]
Port = Annotated[int, Field(ge=1, le=65535)]
PortRange = Annotated[tuple[Port, Port], Field(strict=False), AfterValidator(_ordered)]
HostAddress = Annotated[str, Field(max_length=64), AfterValidator(_address)]
GuestAddress = Annotated[str, Field(max_length=64), AfterValidator(_guest_address)]
Memory = Annotated[int, Field(ge=256 * MIB, le=16 * TIB), BeforeValidator(parse_size), _SIZE_SCHEMA]
DiskSize = Annotated[int, Field(ge=GIB, le=64 * TIB), BeforeValidator(parse_size), _SIZE_SCHEMA]
AbsolutePath = Annotated[Text, AfterValidator(_absolute)]
VariableName = Annotated[str, AfterValidator(_variable_name)]
UserName = Annotated[Text, AfterValidator(_user_name)]
Comment = Annotated[str, Field(max_length=256), AfterValidator(_one_line), AfterValidator(_comment)]
GuestSocket = Annotated[Text, AfterValidator(check_guest_path)]
HostSocket = Annotated[Text, AfterValidator(check_host_path)]
KernelCommandLine = Annotated[str, Field(max_length=2048), AfterValidator(_one_line)]
VariableValue = Annotated[str, Field(max_length=32768), AfterValidator(_one_line)]
