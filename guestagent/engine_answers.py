"""What container engines say about their containers, in each form in which one of them says it. Pure.

- **Docker** answers `REQUEST` on its socket. HTTP/1.0 on purpose: such an answer is not chunked (RFC 9112, 6.1) and
  ends with the connection, so a dozen lines read it. The path has no version, since engines refuse those that are too
  new for them or too old.
- **netavark**, which sets up Podman's networks, keeps a JSON file for each container with published ports.
- **nerdctl** keeps one for each container, beside the hosts file that it makes for it.

All of it is foreign text: what is not understood is left out where the rest still makes sense, and raises
`RemoteProtocolError` where it does not. Names stay as they are said, and are made printable where they are shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from protocol.errors import RemoteProtocolError
from protocol.ports import Protocol
from protocol.wire_values import address_untrusted

REQUEST = b"GET /containers/json HTTP/1.0\r\nHost: localhost\r\n\r\n"

MAX_ANSWER = 1_048_576
"""Bytes of an answer: about five hundred containers. A larger one is not looked at."""

_MOST_DIGITS = 7
_SPACE = re.compile(r"[ \t\r\n]*")
_EVERYWHERE = "0.0.0.0"  # noqa: S104 - this binds nothing


@dataclass(frozen=True, slots=True)
class Container:
    """A running container, as its engine tells it."""

    name: str
    identifier: str
    """All 64 digits."""
    published: tuple[tuple[Protocol, str, int], ...]
    """Where the engine makes its ports appear."""
    addresses: frozenset[str]
    """Its own, in all of its networks."""


def body_untrusted(answer: bytes) -> bytes:
    """The body of a complete HTTP answer of success."""
    head, end, body = answer.partition(b"\r\n\r\n")
    status, *fields = head.split(b"\r\n")
    version, _, code = status.partition(b" ")
    if not end or not version.startswith(b"HTTP/1.") or code[:3] != b"200":
        raise RemoteProtocolError("the engine's answer is no HTTP answer of success")
    for field in fields:
        name, _, value = field.partition(b":")
        name, value = name.strip().lower(), value.strip()
        if name == b"transfer-encoding":
            raise RemoteProtocolError("the engine's answer is chunked, against HTTP/1.0")
        if name == b"content-length":
            if not value.isdigit() or len(value) > _MOST_DIGITS or len(body) < int(value):
                raise RemoteProtocolError("the engine's answer was cut short")
            body = body[: int(value)]
    return body


def containers_untrusted(body: bytes) -> Iterator[Container | None]:
    """The containers of a list; None for what is none. Each is a step of its own, so that others can run in between."""
    text = body.decode("utf-8", "replace")
    at, comma = _after(text, 0, "["), False
    decode = json.JSONDecoder().raw_decode
    while text[at : at + 1] != "]":
        if comma:
            at = _after(text, at, ",")
        try:
            value, at = decode(text, at)
        except (ValueError, RecursionError) as exc:
            raise RemoteProtocolError("the engine's list of containers is no JSON") from exc
        at, comma = _after(text, at, ""), True
        yield _container(value)


def published_untrusted(data: bytes) -> tuple[str, frozenset[str]]:
    """Which container a file of netavark's is about, and that one's addresses."""
    match _object(data):
        case {"container_id": str(identifier), **rest}:
            addresses = map(_address, (rest.get("container_ip_v4"), rest.get("container_ip_v6")))
            return identifier, frozenset(filter(None, addresses))
    raise RemoteProtocolError("netavark's file names no container")


def name_untrusted(data: bytes) -> str:
    """The name in a file of nerdctl's."""
    match _object(data):
        case {"Name": str(name)} if name:
            return name
    raise RemoteProtocolError("nerdctl's file names no container")


def _after(text: str, at: int, word: str) -> int:
    """Where it goes on behind `word` and the space around it."""
    at = _end_of_space(text, at)
    if not text.startswith(word, at):
        raise RemoteProtocolError("the engine's list of containers is no JSON list")
    return _end_of_space(text, at + len(word))


def _end_of_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _object(data: bytes) -> object:
    try:
        return json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as exc:
        raise RemoteProtocolError("the file is no JSON") from exc


def _container(value: object) -> Container | None:
    match value:
        case {"Id": str(identifier), "Names": [*names], **rest}:
            # "/web" is its name; "/db/web" is what another container calls it.
            own = (name.removeprefix("/") for name in names if isinstance(name, str) and name.rfind("/") <= 0)
            name = next(filter(None, own), "")
            return Container(name, identifier, tuple(_published(rest)), frozenset(_addresses(rest))) if name else None
    return None


def _published(value: dict[object, object]) -> Iterator[tuple[Protocol, str, int]]:
    match value:
        case {"Ports": [*ports]}:
            for port in ports:
                match port:
                    case {"PublicPort": int(number), "Type": ("tcp" | "udp") as kind, **rest} if 0 < number <= 65_535:
                        if address := _address(rest.get("IP") or _EVERYWHERE):
                            yield Protocol(kind), address, int(number)


def _addresses(value: dict[object, object]) -> Iterator[str]:
    match value:
        case {"NetworkSettings": {"Networks": dict(networks)}}:
            for network in networks.values():
                match network:
                    case dict():
                        yield from filter(None, map(_address, map(network.get, ("IPAddress", "GlobalIPv6Address"))))


def _address(value: object) -> str:
    """An address in canonical form; nothing for what is none."""
    try:
        return address_untrusted(value)
    except RemoteProtocolError:
        return ""
