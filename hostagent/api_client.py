"""Asks a running instance's host agent over its unix socket. For the command line: blocking, and quick to import.

Every answer is bounded in time and checked to be the JSON object it should be; streams are read line by line and wait
for as long as it takes. All failures leave as `UserError` with a next step. `/v1/exec` is in `shell_session`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import quote

from hostagent.errors import UserError
from hostagent.instance_lock import is_locked
from hostagent.paths import InstancePaths
from hostagent.qemu.pid_file import is_held

if TYPE_CHECKING:
    from hostagent.api_shapes import Document, EventShape, PortShape, ReloadAnswer, RuleChange, RuleList, RuleRequest

_ANSWER_BOUND: Final = 10.0
"""Seconds for an answer that costs the agent nothing: it is stuck when it takes longer."""

_STOP_BOUND: Final = 180.0
"""Seconds for a guest to shut down, above all bounds of the host agent's own."""

_RULES_BOUND: Final = 90.0
"""Seconds for a change of rules, which a program of its own reads; the host agent's own bound is 60."""

_READ: Final = 65_536
_LONGEST_LINE: Final = 16 * 1024 * 1024
"""Bytes of one line: every port that a guest may have open, in JSON."""


class ApiClient:
    """The API of the instance at `paths`."""

    def __init__(self, paths: InstancePaths) -> None:
        self._paths = paths

    def status(self) -> Document:
        """The instance's state and all that serves it."""
        return self._object("GET", "/v1/status")

    def ports(self) -> list[PortShape]:
        """All ports, in the order of their guest ports."""
        return cast("list[PortShape]", self._object("GET", "/v1/ports")["ports"])

    def follow_ports(self, interval: float) -> Iterator[list[PortShape]]:
        """All ports, whenever something changed; counters are looked at every `interval` seconds."""
        for listing in self._lines(f"/v1/ports?follow=true&interval={interval}"):
            yield cast("list[PortShape]", listing["ports"])

    def events(self, *, after: int | None = None, follow: bool = False) -> Iterator[EventShape]:
        """Recorded events, those after the id `after` where one is given; then what happens, with `follow`."""
        wanted = f"?follow={json.dumps(follow)}" + ("" if after is None else f"&after={after}")
        for event in self._lines(f"/v1/events{wanted}"):
            yield cast("EventShape", event)

    def rules(self) -> RuleList:
        """The forwarding rules, in the order in which they are asked."""
        return cast("RuleList", self._object("GET", "/v1/forwards"))

    def add_rule(self, rule: RuleRequest) -> RuleChange:
        """Let a rule hold before all others."""
        return cast("RuleChange", self._object("POST", "/v1/forwards", _RULES_BOUND, json.dumps(rule).encode()))

    def remove_rule(self, name: str) -> RuleChange:
        """Let the rule `name` hold no longer."""
        return cast("RuleChange", self._object("DELETE", f"/v1/forwards/{quote(name, safe='')}", _RULES_BOUND))

    def reload(self, path: str) -> ReloadAnswer:
        """Read the configuration at `path` again, or the instance's own when that is empty."""
        return cast("ReloadAnswer", self._object("POST", f"/v1/config/reload?path={quote(path)}", _RULES_BOUND))

    def stop(self, *, force: bool) -> str:
        """Shut the guest down and return what that needed: "guest agent", or a step of `StopStep`."""
        answer = self._object("POST", f"/v1/stop?force={json.dumps(force)}", _STOP_BOUND)
        return str(answer["stopped_by"])

    def _object(self, method: str, target: str, bound: float | None = None, body: bytes | None = None) -> Document:
        with self._answer(method, target, _ANSWER_BOUND if bound is None else bound, body=body) as answer:
            return _parsed(answer.read())

    def _lines(self, target: str) -> Iterator[Document]:
        with self._answer("GET", target, _ANSWER_BOUND, endless=True) as answer:
            if not answer.chunked:
                yield from map(_parsed, answer.read().splitlines())
                return
            pending = b""
            while data := answer.read1(_READ):  # readline would take a stream that breaks off for one that ends
                *lines, pending = (pending + data).split(b"\n")
                yield from map(_parsed, lines)
                if len(pending) > _LONGEST_LINE:
                    raise http.client.LineTooLong("a line of the stream")

    @contextlib.contextmanager
    def _answer(
        self, method: str, target: str, bound: float, *, endless: bool = False, body: bytes | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        name = self._paths.name
        try:
            with contextlib.closing(_UnixConnection(str(self._paths.api_socket), bound)) as connection:
                connection.request(method, target, body)
                sock = connection.sock
                with connection.getresponse() as answer:
                    if answer.status >= http.client.BAD_REQUEST:
                        raise _refusal(answer)
                    if endless:
                        sock.settimeout(None)
                    yield answer
        except (FileNotFoundError, ConnectionRefusedError) as exc:
            raise not_running(self._paths) from exc
        except TimeoutError as exc:
            raise UserError(
                f"the host agent of {name!r} does not answer",
                f"see `hostagent logs {name}`, or end it: `hostagent down --force {name}`",
            ) from exc
        except (OSError, http.client.HTTPException) as exc:
            raise UserError(
                f"the connection to the host agent of {name!r} was lost", f"see `hostagent status {name}`"
            ) from exc


def not_running(paths: InstancePaths) -> UserError:
    """The error for an instance without a host agent that can be asked."""
    name = paths.name
    if is_locked(paths.lock):  # it lives a moment longer than it can be asked, at both ends
        return UserError(f"the host agent of {name!r} is starting or ending", "try again in a moment")
    if is_held(paths.qemu_pid):
        return UserError(
            f"the host agent of {name!r} is gone, and its guest runs", f"`hostagent up {name}` takes it over"
        )
    return UserError(
        f"the instance {name!r} is not running",
        f"start it with `hostagent up {name}`; how it ended is in `hostagent logs {name}`",
    )


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _refusal(answer: http.client.HTTPResponse) -> UserError:
    document = _parsed(answer.read(65_536))
    return UserError(str(document.get("message", answer.reason)), str(document.get("hint", "see `hostagent logs`")))


def _parsed(data: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        document = json.loads(data)
        if isinstance(document, dict):
            return document
    raise UserError(
        "the host agent's answer is not understood",
        "it may be of another version: `hostagent down`, then `hostagent up`",
    )
