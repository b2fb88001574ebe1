"""What travels over the WebSocket of `/v1/exec`: one command in the guest. Pure: frames in, values out.

A binary frame carries a stream's bytes after one byte that says which: 0 standard input, 1 standard output, 2 standard
error. A text frame is a JSON object with a `type`:

    client: start (arguments, environment, user, directory, terminal: null or {rows, columns}), end-of-input,
            resize (rows, columns), signal (name)
    server: started (credit), credit (credit), exit (status), error (message, hint, status)

The client sends `start` first, and the server answers `started` or `error`. Input is paid for with credit: the client
has as many bytes as `started` and later `credit` frames gave it. Without that, input that the command does not read
would block the WebSocket, and the signal that is to end the command would wait behind it. Output needs no credit: what
the client does not read blocks the command, as a pipe does. `exit` or `error` is the last frame.

Every function that takes the other side's bytes returns a frame or raises `RemoteProtocolError`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from protocol import limits
from protocol.errors import RemoteProtocolError
from protocol.stream_messages import CommandTarget, TerminalSize
from protocol.wire_values import integer_untrusted, text_untrusted

INPUT_WINDOW: Final = limits.STREAM_WINDOW
"""Bytes of input that the server holds for a command that does not read: as many as the channel behind it."""

MAX_CHUNK: Final = 32_768
"""Bytes of a stream in one frame."""

MAX_FRAME: Final = 2 * limits.MAX_COMMAND + limits.MAX_PAYLOAD
"""Bytes of any frame: a command line in escaped JSON, or a chunk of output as the guest sent it."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start this command."""

    target: CommandTarget


@dataclass(frozen=True, slots=True)
class Input:
    """Bytes for the command's standard input."""

    data: bytes


@dataclass(frozen=True, slots=True)
class EndOfInput:
    """Close the command's standard input."""


@dataclass(frozen=True, slots=True)
class Resize:
    """The terminal has a new size."""

    size: TerminalSize


@dataclass(frozen=True, slots=True)
class SendSignal:
    """Send a signal (without SIG) to the command's process group."""

    name: str


@dataclass(frozen=True, slots=True)
class Started:
    """The command runs; `credit` bytes of input may be sent."""

    credit: int


@dataclass(frozen=True, slots=True)
class Credit:
    """So many bytes more of input may be sent."""

    credit: int


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes of the command's standard output."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ErrorOutput:
    """Bytes of the command's standard error."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Exited:
    """The command ended with this status, which is 128 + n after signal n."""

    status: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The command could not be started, or its end will never be known."""

    message: str
    hint: str
    status: int = 1
    """What the client exits with: 127 when there is no such command, 126 when it cannot be executed, as in a shell."""


ClientFrame = Start | Input | EndOfInput | Resize | SendSignal
ServerFrame = Started | Credit | Output | ErrorOutput | Exited | Failed

_Frame = TypeVar("_Frame")
_STREAM_NUMBERS: Final = {Input: 0, Output: 1, ErrorOutput: 2}


def encode(frame: ClientFrame | ServerFrame) -> bytes | str:
    """The frame as a binary (bytes) or text (str) message."""
    match frame:
        case Input(data) | Output(data) | ErrorOutput(data):
            return bytes([_STREAM_NUMBERS[type(frame)]]) + data
        case Start(target):
            fields = _target_fields(target)
            return _text("start", **fields)
        case EndOfInput():
            return _text("end-of-input")
        case Resize(size):
            return _text("resize", rows=size.rows, columns=size.columns)
        case SendSignal(name):
            return _text("signal", name=name)
        case Started(credit):
            return _text("started", credit=credit)
        case Credit(credit):
            return _text("credit", credit=credit)
        case Exited(status):
            return _text("exit", status=status)
        case Failed(message, hint, status):
            return _text("error", message=message, hint=hint, status=status)


def client_frame_untrusted(message: bytes | str) -> ClientFrame:
    """The frame that a client sent; raises `RemoteProtocolError`."""
    if isinstance(message, bytes):
        if message[:1] != b"\0":
            raise RemoteProtocolError("a client's binary frame begins with the byte 0, for standard input")
        return Input(message[1:])
    return _text_frame_untrusted(message, _client_text_untrusted)


def server_frame_untrusted(message: bytes | str) -> ServerFrame:
    """The frame that a server sent; raises `RemoteProtocolError`."""
    if isinstance(message, bytes):
        match message[:1]:
            case b"\1":
                return Output(message[1:])
            case b"\2":
                return ErrorOutput(message[1:])
        raise RemoteProtocolError("a server's binary frame begins with the byte 1 or 2")
    return _text_frame_untrusted(message, _server_text_untrusted)


def _text(kind: str, **fields: object) -> str:
    return json.dumps({"type": kind, **fields})


def _text_frame_untrusted(message: str, parse: Callable[[dict[str, Any]], _Frame]) -> _Frame:
    try:
        fields = json.loads(message)
    except (ValueError, RecursionError) as exc:
        raise RemoteProtocolError("a text frame is a JSON object") from exc
    if not isinstance(fields, dict):
        raise RemoteProtocolError("a text frame is a JSON object")
    try:
        return parse(fields)
    except UnicodeEncodeError as exc:  # JSON can spell a lone surrogate
        raise RemoteProtocolError("a text holds a character that UTF-8 cannot") from exc


def _client_text_untrusted(fields: dict[str, Any]) -> ClientFrame:
    match fields.get("type"):
        case "start":
            return Start(_target_untrusted(fields))
        case "end-of-input":
            return EndOfInput()
        case "resize":
            return Resize(TerminalSize.from_wire_untrusted(fields.get("rows"), fields.get("columns")))
        case "signal":
            return SendSignal(text_untrusted(fields.get("name"), 16))
    raise RemoteProtocolError("a client's text frame has the type start, end-of-input, resize or signal")


def _server_text_untrusted(fields: dict[str, Any]) -> ServerFrame:
    match fields.get("type"):
        case "started":
            return Started(integer_untrusted(fields.get("credit"), INPUT_WINDOW))
        case "credit":
            return Credit(integer_untrusted(fields.get("credit"), INPUT_WINDOW))
        case "exit":
            return Exited(integer_untrusted(fields.get("status"), 255))
        case "error":
            status = integer_untrusted(fields.get("status"), 255, 1)
            return Failed(text_untrusted(fields.get("message")), text_untrusted(fields.get("hint")), status)
    raise RemoteProtocolError("a server's text frame has the type started, credit, exit or error")


def _target_fields(target: CommandTarget) -> dict[str, object]:
    size = target.terminal
    return {
        "arguments": list(target.arguments),
        "environment": dict(target.environment),
        "user": target.user,
        "directory": target.directory,
        "terminal": None if size is None else {"rows": size.rows, "columns": size.columns},
    }


def _target_untrusted(fields: dict[str, Any]) -> CommandTarget:
    environment, size = fields.get("environment", {}), fields.get("terminal")
    if not isinstance(environment, dict) or not isinstance(size, dict | None):
        raise RemoteProtocolError("a command's environment and terminal are JSON objects")
    pairs: list[object] = [list(pair) for pair in environment.items()]
    rows_and_columns = None if size is None else [size.get("rows"), size.get("columns")]
    return CommandTarget.from_wire_untrusted(
        [fields.get("arguments", []), pairs, fields.get("user", ""), fields.get("directory", ""), rows_and_columns]
    )
