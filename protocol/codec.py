"""Bodies of frames to messages and back.

`decode_untrusted` returns a message or raises `RemoteProtocolError`, whatever the bytes are. A message whose number is
unknown is an error too, since nothing is sent that the HELLO did not announce.
"""

from __future__ import annotations

from collections.abc import Callable

import msgpack

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.limits import MAX_ARGUMENTS, MAX_BODY
from protocol.listener_messages import Listen, ListenFailed, Listening, Unlisten
from protocol.messages import (
    Clock,
    Hello,
    Message,
    Ping,
    Pong,
    PortOwners,
    PortsChanged,
    PortsSnapshot,
    PowerOff,
    Status,
    StatusRequest,
)
from protocol.stream_messages import (
    Credit,
    Data,
    EndOfData,
    ErrorOutput,
    Exit,
    Open,
    Opened,
    Refused,
    Reset,
    Resize,
    Signal,
)
from protocol.wire_values import list_untrusted

MESSAGES: dict[int, type[Message]] = {
    kind.NUMBER: kind
    for kind in (
        *(Hello, Ping, Pong, Open, Opened, Refused, Data, ErrorOutput, EndOfData, Reset, Credit, Signal, Resize, Exit),
        *(PortsSnapshot, PortsChanged, PortOwners, StatusRequest, Status, Clock, PowerOff),
        *(Listen, Unlisten, Listening, ListenFailed),
    )
}


_pack: Callable[[object], bytes] = msgpack.Packer().pack
"""One packer for all messages: its buffer of 256 KiB is allocated once, not for each."""


def encode(message: Message) -> bytes:
    """The body that says `message`."""
    return _pack([message.NUMBER, *message.to_wire()])


def check_sendable(message: Message) -> None:
    """Return if the peer would understand `message`; raises `LocalProtocolError` otherwise.

    For what users say: a peer that cannot take a message ends the generation with all of its streams.
    """
    try:
        body = encode(message)
        decode_untrusted(body)
    except (ValueError, RemoteProtocolError) as exc:  # ValueError: text that is not UTF-8
        raise LocalProtocolError(f"{type(message).__name__} cannot be sent: {exc}") from exc
    if len(body) > MAX_BODY:
        raise LocalProtocolError(f"{type(message).__name__} cannot be sent: {len(body)} bytes")


def decode_untrusted(body: bytes) -> Message:
    """The message that `body` says; raises `RemoteProtocolError` for anything else."""
    try:
        # Without bounds, nested announcements of long lists make msgpack allocate 500 MiB from one frame.
        values = msgpack.unpackb(body, raw=False, max_array_len=MAX_ARGUMENTS, max_map_len=0, max_ext_len=0)
    except (ValueError, TypeError) as exc:  # msgpack's own errors are ValueErrors; TypeError: an unhashable map key
        raise RemoteProtocolError(f"a frame is not msgpack: {type(exc).__name__}") from exc
    number, *fields = list_untrusted(values, 16) or [None]
    kind = MESSAGES.get(number) if type(number) is int else None
    if kind is None:
        raise RemoteProtocolError("a frame's message is unknown")
    return kind.from_wire_untrusted(fields)
