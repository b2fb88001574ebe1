"""The QEMU Machine Protocol without I/O: bytes in, messages out; commands in, bytes out.

The protocol (QEMU's docs/interop/qmp-spec): one JSON object a line. QEMU greets, the client accepts the capabilities
(`qmp_capabilities`), and from then on commands may be sent without waiting. Every command carries an `id`; replies
are matched by it, because out-of-band execution may reorder them. Events come at any time.

`QmpConnection` promises: whatever bytes come in, `receive_data` returns messages or raises `RemoteProtocolError` and
nothing else, holds at most `MAX_LINE` bytes, and gives the same messages however the bytes were cut. After an error
the connection is useless: close it. Asking for something out of turn raises `LocalProtocolError`.

The `qemu.qmp` package was not taken: it is asyncio throughout, and this is all that we need of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NoReturn

from protocol.errors import LocalProtocolError, RemoteProtocolError

MAX_LINE = 4 * 1024 * 1024
"""Bytes in one message; the longest that QEMU has is the reply to query-qmp-schema, about 250 KiB."""

MAX_DEPTH = 64
"""Nesting of one message; a long chain of disk images, the deepest known, stays far below."""

MAX_OUTSTANDING = 256
"""Commands without a reply; more mean that nobody reads the replies."""


class State(StrEnum):
    """How far the handshake has come."""

    AWAITING_GREETING = "awaiting greeting"
    NEGOTIATING = "negotiating"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Greeting:
    """QEMU's first message."""

    version: tuple[int, int, int]
    package: str
    capabilities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """The command `id` was carried out; `value` is what it returned."""

    id: int
    value: Any


@dataclass(frozen=True, slots=True)
class Refusal:
    """The command `id` was refused, in QEMU's own words."""

    id: int
    error_class: str
    description: str


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened; `seconds` is the host's wall clock."""

    name: str
    seconds: float
    data: Mapping[str, Any] = field(default_factory=dict)


Message = Greeting | Reply | Refusal | Event


class QmpConnection:
    """One client's side of a monitor connection."""

    __slots__ = ("_buffer", "_next_id", "_outstanding", "_state")

    def __init__(self) -> None:
        self._state = State.AWAITING_GREETING
        self._buffer = bytearray()
        self._next_id = 0
        self._outstanding: set[int] = set()

    @property
    def state(self) -> State:
        """How far the handshake has come."""
        return self._state

    def negotiate(self) -> tuple[int, bytes]:
        """Id and bytes of the command that ends the handshake; call it once, after the greeting."""
        if self._state is not State.NEGOTIATING or self._outstanding:
            raise LocalProtocolError(f"capabilities are accepted once, after the greeting, not while {self._state}")
        return self._encode("qmp_capabilities", None)

    def command(self, name: str, arguments: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        """Id and bytes of the command `name`; its `Reply` or `Refusal` will carry the id."""
        if self._state is not State.READY:
            raise LocalProtocolError(f"no command can be sent while {self._state}")
        if len(self._outstanding) >= MAX_OUTSTANDING:
            raise LocalProtocolError(f"{MAX_OUTSTANDING} commands are without a reply")
        return self._encode(name, arguments)

    def receive_data(self, data: bytes) -> list[Message]:
        """The messages that `data` completes; raises `RemoteProtocolError` for anything that is not QMP."""
        if self._state is State.FAILED:
            raise LocalProtocolError("the connection has failed before")
        try:
            return self._receive(data)
        except RemoteProtocolError:
            self._state = State.FAILED
            self._buffer.clear()
            raise

    def _encode(self, name: str, arguments: Mapping[str, Any] | None) -> tuple[int, bytes]:
        identity = self._next_id
        self._next_id += 1
        self._outstanding.add(identity)
        message: dict[str, Any] = {"execute": name, "id": identity}
        if arguments:
            message["arguments"] = dict(arguments)
        return identity, json.dumps(message).encode() + b"\n"

    def _receive(self, data: bytes) -> list[Message]:
        searched = len(self._buffer)
        self._buffer += data
        messages: list[Message] = []
        start = 0
        while (end := self._buffer.find(b"\n", max(start, searched))) >= 0:
            if end - start > MAX_LINE:
                _reject(f"a line of more than {MAX_LINE} bytes")
            if line := bytes(self._buffer[start:end]).strip():
                messages.append(self._interpret(_parse(line)))
            start = end + 1
        del self._buffer[:start]
        if len(self._buffer) > MAX_LINE:
            _reject(f"a line of more than {MAX_LINE} bytes")
        return messages

    def _interpret(self, message: Mapping[str, Any]) -> Message:
        if self._state is State.AWAITING_GREETING:
            greeting = _greeting(_member(message, "QMP", dict))
            self._state = State.NEGOTIATING
            return greeting
        if "event" in message:
            return _event(message)
        if "return" not in message and "error" not in message:
            _reject("a message that is neither reply, refusal nor event")
        return self._reply(message)

    def _reply(self, message: Mapping[str, Any]) -> Reply | Refusal:
        error = _member(message, "error", dict) if "error" in message else None
        identity = message.get("id")
        # bool is an int to Python, and true would pass for 1
        if type(identity) is not int or identity not in self._outstanding:
            said = f": {error.get('desc')!r}" if error else ""
            _reject(f"a reply to a command that was not sent (id {identity!r}){said}")
        self._outstanding.discard(identity)
        if error is not None:
            return Refusal(identity, _member(error, "class", str), _member(error, "desc", str))
        self._state = State.READY
        return Reply(identity, message["return"])


def _reject(what: str) -> NoReturn:
    raise RemoteProtocolError(f"QEMU's monitor sent {what}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _parse(line: bytes) -> dict[str, Any]:
    try:
        # decoded here, because json.loads would take bytes for UTF-16 or UTF-32 when they look like it
        message = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise RemoteProtocolError(f"QEMU's monitor sent something that is not JSON: {line[:80]!r}") from exc
    if not isinstance(message, dict):
        _reject(f"something that is not an object: {line[:80]!r}")
    _check_depth(message)
    return message


def _check_depth(message: dict[str, Any]) -> None:
    level: list[Any] = [message]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return
    _reject(f"a message nested more than {MAX_DEPTH} deep")


def _children(value: Any) -> list[Any]:
    members = value.values() if isinstance(value, dict) else value
    return [member for member in members if isinstance(member, dict | list)]


def _member(message: Mapping[str, Any], key: str, kind: type) -> Any:
    value = message.get(key)
    if type(value) is not kind:
        _reject(f"no {kind.__name__} {key!r} where one must be")
    return value


def _greeting(body: Mapping[str, Any]) -> Greeting:
    version = _member(body, "version", dict)
    numbers = _member(version, "qemu", dict)
    capabilities = _member(body, "capabilities", list)
    return Greeting(
        (_member(numbers, "major", int), _member(numbers, "minor", int), _member(numbers, "micro", int)),
        _member(version, "package", str),
        tuple(capability for capability in capabilities if isinstance(capability, str)),
    )


def _event(message: Mapping[str, Any]) -> Event:
    timestamp = _member(message, "timestamp", dict)
    seconds, microseconds = _member(timestamp, "seconds", int), _member(timestamp, "microseconds", int)
    # -1 stands for "the clock could not be read" (qmp-spec); integers beyond a float's range are nobody's clock
    if not (-1 <= seconds < 2**53 and -1 <= microseconds < 10**6):
        _reject("a time that cannot be")
    data = _member(message, "data", dict) if "data" in message else {}
    return Event(_member(message, "event", str), seconds + microseconds / 1e6, data)
