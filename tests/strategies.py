"""Hypothesis strategies for what the two agents say to each other."""

from __future__ import annotations

import ipaddress

from hypothesis import strategies as st

from protocol import limits
from protocol.codec import MESSAGES
from protocol.listener_messages import Listen, ListenFailed, Listening, UnixAddress, Unlisten
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
from protocol.ports import Port, PortKind, PortOwner, Protocol, WakeupSource
from protocol.stream_messages import (
    CommandTarget,
    Credit,
    Data,
    EndOfData,
    ErrorOutput,
    Exit,
    ListenerTarget,
    Open,
    Opened,
    Refused,
    Reset,
    Resize,
    Signal,
    SocketTarget,
    StreamKind,
    TerminalSize,
    UnixTarget,
)
from protocol.wire_values import MAX_U32, MAX_U63

U32 = st.integers(0, MAX_U32)
U63 = st.integers(0, MAX_U63)
STREAM_NUMBERS = st.integers(1, MAX_U63)
ADDRESSES = st.builds(lambda number: str(ipaddress.IPv4Address(number)), U32) | st.builds(
    lambda number: str(ipaddress.IPv6Address(number)), st.integers(0, 2**128 - 1)
)
PORT_NUMBERS = st.integers(1, 65_535)


_PRINTABLE = st.characters(codec="utf-8", exclude_categories=("C", "Z"), include_characters=" ")


def texts(most: int = 40) -> st.SearchStrategy[str]:
    """Text that may be shown on a terminal, and so survives the wire unchanged."""
    return st.text(_PRINTABLE, max_size=most // 4)


def arguments(most: int = 40) -> st.SearchStrategy[str]:
    """Text for execve: anything but NUL."""
    return st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=most // 4)


PORTS = st.builds(Port, st.sampled_from(Protocol), ADDRESSES, PORT_NUMBERS, st.sampled_from(PortKind))
_PORT_TUPLES = st.lists(PORTS, max_size=5).map(tuple)
SOCKET_TARGETS = st.builds(SocketTarget, ADDRESSES, PORT_NUMBERS)
SIZES = st.builds(TerminalSize, st.integers(0, 65_535), st.integers(0, 65_535))
COMMAND_TARGETS = st.builds(
    CommandTarget,
    st.lists(arguments(), max_size=4).map(tuple),
    st.lists(st.tuples(arguments(), arguments()), max_size=4).map(tuple),
    arguments(),
    arguments(),
    st.none() | SIZES,
)
LISTENERS = st.integers(1, MAX_U32)
SOCKET_PATHS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=26).map("/{}".format)
UNIX_ADDRESSES = st.builds(UnixAddress, SOCKET_PATHS, st.integers(0, 0o777), arguments())
_WINDOWS = st.integers(0, limits.STREAM_WINDOW)
_PAYLOADS = st.binary(max_size=300)
_SOCKET_KINDS = st.sampled_from([StreamKind.TCP, StreamKind.UDP])
OPENS = st.one_of(
    st.builds(Open, STREAM_NUMBERS, _SOCKET_KINDS, SOCKET_TARGETS, _WINDOWS),
    st.builds(Open, STREAM_NUMBERS, st.just(StreamKind.UNIX), st.builds(UnixTarget, SOCKET_PATHS), _WINDOWS),
    st.builds(
        Open, STREAM_NUMBERS, _SOCKET_KINDS | st.just(StreamKind.UNIX), st.builds(ListenerTarget, LISTENERS), _WINDOWS
    ),
    st.builds(Open, STREAM_NUMBERS, st.just(StreamKind.EXEC), COMMAND_TARGETS, _WINDOWS),
)
HELLOS = st.builds(
    Hello,
    st.integers(1, MAX_U32),
    st.integers(1, MAX_U32),
    st.frozensets(texts(), max_size=5),
    texts(),
    texts(),
    texts(),
)
_OWNERS = st.builds(PortOwner, texts(), U32, U32, texts())
_SOURCES = st.builds(WakeupSource, texts(), st.booleans(), texts(), U63)

_BY_KIND: dict[type[Message], st.SearchStrategy[Message]] = {
    Hello: HELLOS,
    Ping: st.builds(Ping, U32),
    Pong: st.builds(Pong, U32),
    Open: OPENS,
    Opened: st.builds(Opened, STREAM_NUMBERS, _WINDOWS),
    Refused: st.builds(Refused, STREAM_NUMBERS, texts(), texts()),
    Data: st.builds(Data, STREAM_NUMBERS, _PAYLOADS),
    ErrorOutput: st.builds(ErrorOutput, STREAM_NUMBERS, _PAYLOADS),
    EndOfData: st.builds(EndOfData, STREAM_NUMBERS),
    Reset: st.builds(Reset, STREAM_NUMBERS, texts()),
    Credit: st.builds(Credit, STREAM_NUMBERS, st.integers(1, limits.STREAM_WINDOW)),
    Signal: st.builds(Signal, STREAM_NUMBERS, texts(16)),
    Resize: st.builds(Resize, STREAM_NUMBERS, SIZES),
    Exit: st.builds(Exit, STREAM_NUMBERS, st.integers(0, 255), st.none())
    | st.builds(Exit, STREAM_NUMBERS, st.none(), texts(16)),
    PortsSnapshot: st.builds(PortsSnapshot, _PORT_TUPLES, st.booleans()),
    PortsChanged: st.builds(PortsChanged, _PORT_TUPLES, _PORT_TUPLES),
    PortOwners: st.builds(PortOwners, st.lists(st.tuples(PORTS, _OWNERS), max_size=5).map(tuple)),
    StatusRequest: st.just(StatusRequest()),
    Status: st.builds(
        Status, st.lists(_SOURCES, max_size=4).map(tuple), st.lists(st.tuples(texts(), U63), max_size=4).map(tuple)
    ),
    Clock: st.builds(Clock, U63),
    PowerOff: st.builds(PowerOff, st.booleans()),
    Listen: st.builds(Listen, LISTENERS, _SOCKET_KINDS, SOCKET_TARGETS)
    | st.builds(Listen, LISTENERS, st.just(StreamKind.UNIX), UNIX_ADDRESSES),
    Unlisten: st.builds(Unlisten, LISTENERS),
    Listening: st.builds(Listening, LISTENERS),
    ListenFailed: st.builds(ListenFailed, LISTENERS, texts(), texts()),
}

MESSAGES_OF_EVERY_KIND = st.sampled_from(list(MESSAGES.values())).flatmap(lambda kind: _BY_KIND[kind])
"""Any message. A kind without a strategy here is a KeyError."""

_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.binary(max_size=5), st.text(max_size=5)
)
WIRE_VALUES = st.one_of(
    _SCALARS,
    st.lists(_SCALARS, max_size=5),
    st.lists(st.lists(_SCALARS, max_size=5), max_size=3),
    st.dictionaries(st.text(max_size=2), _SCALARS, max_size=2),
)
"""Values of every type that msgpack can say."""


@st.composite
def pieces(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """`data`, cut at any places."""
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
