"""Bodies of frames to messages and back.

`decode_untrusted` returns a message or raises `RemoteProtocolError`, whatever the bytes are. A message whose number is
unknown is an error too, since nothing is sent that the HELLO did not announce.
"""

from __future__ import annotations

import msgpack

from protocol.errors import RemoteProtocolError
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
from protocol.wire_values import integer_untrusted, list_untrusted

MESSAGES: dict[int, type[Message]] = {
    kind.NUMBER: kind
    for kind in (
        *(Hello, Ping, Pong, Open, Opened, Refused, Data, ErrorOutput, EndOfData, Reset, Credit, Signal, Resize, Exit),
        *(PortsSnapshot, PortsChanged, PortOwners, StatusRequest, Status, Clock, PowerOff),
    )
}


def encode(message: Message) -> bytes:
    """The body that says `message`."""
    packed: bytes = msgpack.packb([message.NUMBER, *message.to_wire()])
    return packed


def decode_untrusted(body: bytes) -> Message:
    """The message that `body` says; raises `RemoteProtocolError` for anything else."""
    try:
        values = msgpack.unpackb(body, raw=False)
    except (ValueError, TypeError) as exc:  # msgpack's own errors are ValueErrors; TypeError: an unhashable map key
        raise RemoteProtocolError(f"a frame is not msgpack: {type(exc).__name__}") from exc
    number, *rest = list_untrusted(values, 16) or [None]
    kind = MESSAGES.get(integer_untrusted(number, 255))
    if kind is None:
        raise RemoteProtocolError(f"message {number} is unknown")
    return kind.from_wire_untrusted(rest)
