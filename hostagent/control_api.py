"""The host agent's API: HTTP on a unix socket that only its user can open.

Promises: the socket is mode 0600 in a 0700 folder from its first moment, and appears under its name only when it
answers; a socket file that a dead agent left is replaced, a living one's is not. Errors are JSON with a message and a
hint. Streams are lines of JSON. A client that stops reading delays neither the agent nor its end, and no request can
take the agent down.

hypercorn does HTTP/1.1 and WebSockets on our nursery and listener; `hypercorn.trio.serve` itself is not used, because
it shields what it sends from cancellation: one client that does not read would keep the host agent from ending. Here
the connections are ours, and what is left of them `_GRACE` seconds after the cancellation is cut.

The agent must not cancel `serve_api` before `RunningInstance.stop` has returned; the answer to /v1/stop then still
leaves. It closes the event log first, which ends the streams properly.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import stat
from collections.abc import AsyncGenerator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState
from hypercorn.utils import wrap_app
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from hostagent import api_shapes, control_rules
from hostagent.api_shapes import EndpointShape, OwnerShape, PortList, PortShape, SocketShape, TrafficShape
from hostagent.control_exec import serve_exec
from hostagent.control_streams import Lines, event_lines, line_of, server_sent_events
from hostagent.errors import UserError
from hostagent.event_log import Subscription
from hostagent.exec_frames import MAX_FRAME
from hostagent.forwards import Endpoint, Forward, SocketFile
from hostagent.openapi import EVENT_STREAM, JSON, LINES, Operation, Parameter
from hostagent.running_instance import RunningInstance
from protocol.ports import PortOwner

_log = logging.getLogger(__name__)

_GRACE: Final = 2.0
"""Seconds that answers under way may take once the agent ends."""

_DEFAULT_INTERVAL: Final = 1.0
_MIN_INTERVAL: Final = 0.05
"""Seconds between two listings of a stream of ports: counters change with every packet, people look once a second."""

_FOLLOW = Parameter("follow", bool, "Go on with what happens until the client leaves.")

OPERATIONS: Final = (
    Operation("GET", "/v1/status", "State of the instance and of all that serves it.", api_shapes.Status),
    Operation(
        "GET",
        "/v1/ports",
        "All ports; with follow, a line with all of them whenever one changed.",
        PortList,
        (_FOLLOW, Parameter("interval", float, "Seconds between looks at the counters, at least 0.05.")),
        (JSON, LINES),
    ),
    Operation(
        "GET",
        "/v1/events",
        "Recorded events, one a line; as a stream of server-sent events it goes on like with follow.",
        api_shapes.AnyEvent,
        (
            _FOLLOW,
            Parameter("after", int, "Only events with larger ids."),
            Parameter("Last-Event-ID", int, "The same, as a browser says it.", "header"),
        ),
        (LINES, EVENT_STREAM),
    ),
    Operation(
        "POST",
        "/v1/stop",
        "Shut the guest down, and answer when it is off.",
        api_shapes.Stopped,
        (Parameter("force", bool, "Do not ask the guest."),),
    ),
    Operation("GET", "/v1/exec", "Run a command in the guest; hostagent/exec_frames.py describes the frames.", None),
    *control_rules.OPERATIONS,
    Operation("GET", "/v1/openapi.json", "This description.", dict),
)
"""What openapi.json is generated from; a test holds it against the routes."""

_DESCRIPTION: Final = Path(__file__).with_name("openapi.json")


def port_shape(forward: Forward) -> PortShape:
    """The JSON document of one forward."""
    owner, traffic = forward.owner, forward.traffic
    return PortShape(
        state=str(forward.state),
        protocol="unix" if isinstance(forward.guest, SocketFile) else str(forward.protocol),
        host=[_end_shape(end) for end in forward.host],
        guest=_end_shape(forward.guest),
        kind=str(forward.kind),
        owner=None if owner is None else _owner_shape(owner),
        traffic=TrafficShape(
            connections=traffic.connections,
            connections_total=traffic.connections_total,
            connections_refused=traffic.connections_refused,
            bytes_to_guest=traffic.bytes_to_guest,
            bytes_to_host=traffic.bytes_to_host,
            datagrams_to_guest=traffic.datagrams_to_guest,
            datagrams_to_host=traffic.datagrams_to_host,
            datagrams_dropped=traffic.datagrams_dropped,
        ),
        reason=forward.reason,
        rule=forward.rule,
        since=forward.since,
    )


def _end_shape(end: Endpoint | SocketFile) -> EndpointShape | SocketShape:
    if isinstance(end, SocketFile):
        return SocketShape(path=end.path)
    return EndpointShape(address=end.address, port=end.port)


def _owner_shape(owner: PortOwner) -> OwnerShape:
    return OwnerShape(process=owner.process, pid=owner.pid, uid=owner.uid, unit=owner.unit)


def application(instance: RunningInstance) -> Starlette:
    """The ASGI application that answers for `instance`."""
    handlers = _Handlers(instance)
    routes: list[BaseRoute] = [
        Route("/v1/status", handlers.status, methods=["GET"]),
        Route("/v1/ports", handlers.ports, methods=["GET"]),
        Route("/v1/events", handlers.events, methods=["GET"]),
        Route("/v1/stop", handlers.stop, methods=["POST"]),
        Route("/v1/openapi.json", handlers.openapi, methods=["GET"]),
        WebSocketRoute("/v1/exec", handlers.execute),
        *control_rules.routes(instance),
    ]
    return Starlette(
        routes=routes,
        exception_handlers={UserError: _user_error, HTTPException: _http_error, Exception: _bug},
    )


class _Handlers:
    def __init__(self, instance: RunningInstance) -> None:
        self._instance = instance

    async def status(self, request: Request) -> Response:
        await self._instance.refresh()
        return JSONResponse(self._instance.status())

    async def ports(self, request: Request) -> Response:
        if not _flag(request, "follow"):
            return JSONResponse(self._listing())
        interval = max(_number(request, "interval", _DEFAULT_INTERVAL), _MIN_INTERVAL)
        return Lines(self._instance.events, partial(self._listings, interval))

    async def events(self, request: Request) -> Response:
        log = self._instance.events
        resumed = _parsed_number("Last-Event-ID", request.headers.get("last-event-id", log.before_kept))
        after = int(_number(request, "after", resumed))
        if EVENT_STREAM in request.headers.get("accept", ""):
            return Lines(log, partial(server_sent_events, log.subscribe(after)), EVENT_STREAM)
        if _flag(request, "follow"):
            return Lines(log, partial(event_lines, log.subscribe(after)))
        return Response("".join(f"{event.line()}\n" for event in log.recorded(after)), media_type=LINES)

    async def stop(self, request: Request) -> Response:
        return _LastWords({"stopped_by": await self._instance.stop(force=_flag(request, "force"))})

    async def openapi(self, request: Request) -> Response:
        return Response(_DESCRIPTION.read_bytes(), media_type=JSON)

    async def execute(self, websocket: WebSocket) -> None:
        await serve_exec(websocket, self._instance)

    def _listing(self) -> PortList:
        return PortList(ports=[port_shape(forward) for forward in self._instance.forwards()])

    async def _listings(self, interval: float) -> AsyncGenerator[str]:
        """A line for each listing that differs from the one before it."""
        changes = self._instance.events.subscribe()
        shown = None
        while not self._instance.events.closed:
            if (listing := self._listing()) != shown:
                shown = listing
                yield line_of(listing)
                await trio.sleep(_MIN_INTERVAL)
            with trio.move_on_after(interval):
                await _forward_change(changes)


async def _forward_change(changes: Subscription) -> None:
    """Wait for an event that can alter the list of ports, or for the end of events."""
    async for event in changes:
        if event.kind in {"forward", "state", "lost"}:
            return


class _LastWords(JSONResponse):
    """An answer that still leaves when the agent ends because of the request."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _GRACE):
            await super().__call__(scope, receive, send)


def _flag(request: Request, name: str) -> bool:
    match request.query_params.get(name, "false").lower():
        case "true" | "1" | "":
            return True
        case "false" | "0":
            return False
    raise HTTPException(400, f"{name} is true or false")


def _number(request: Request, name: str, default: float) -> float:
    return _parsed_number(name, request.query_params.get(name, default))


def _parsed_number(name: str, text: str | float) -> float:
    try:
        number = float(text)
    except ValueError as exc:
        raise HTTPException(400, f"{name} is a number") from exc
    if not 0 <= number <= 2**53:  # the integers that JSON numbers hold everywhere (RFC 8259 section 6)
        raise HTTPException(400, f"{name} is a number from 0 on")
    return number


async def _user_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, UserError), "registered for it"
    return JSONResponse({"message": exc.message, "hint": exc.hint}, 409)


async def _http_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException), "registered for it"
    return JSONResponse({"message": exc.detail, "hint": "see /v1/openapi.json"}, exc.status_code, exc.headers)


async def _bug(request: Request, exc: Exception) -> Response:
    return JSONResponse(
        {"message": f"the host agent failed: {type(exc).__name__}", "hint": "see `hostagent logs`, and report it"}, 500
    )


async def serve_api(
    instance: RunningInstance, path: Path, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve the API for `instance` on the unix socket `path` until cancelled; started once it can be connected to.

    Raises `UserError` when another process serves there, and OSError when the socket cannot be made.
    """
    connections = _Connections(instance)
    async with contextlib.AsyncExitStack() as stack:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(stack.enter_context(_listening(path))))
        nursery = await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(connections.cut_when_cancelled)
        await nursery.start(partial(trio.serve_listeners, connections.serve, [listener], handler_nursery=nursery))
        task_status.started()
        await trio.sleep_forever()


class _Connections:
    """The clients of one API."""

    def __init__(self, instance: RunningInstance) -> None:
        self._config = Config()
        self._config.errorlog = _log
        self._config.include_server_header = False
        self._config.websocket_max_message_size = MAX_FRAME
        self._application = wrap_app(cast("ASGIFramework", application(instance)), 0, "asgi")
        self._context = WorkerContext(None)
        self._streams: set[trio.SocketStream] = set()
        self._idle = trio.Event()

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one client. What goes wrong with it is logged, and ends nothing but its connection."""
        self._streams.add(stream)
        try:
            state = ConnectionState({})
            # It is annotated for TLS only, and serves both.
            await _Server(self._application, self._config, self._context, state, cast("Any", stream)).run()
        except Exception:
            _log.exception("a connection to the API failed")
        finally:
            self._streams.discard(stream)
            if not self._streams:
                self._idle.set()

    async def cut_when_cancelled(self) -> None:
        """Wait for the cancellation, then for the clients, then no longer."""
        try:
            await trio.sleep_forever()
        finally:
            self._idle = trio.Event()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _GRACE):
                if self._streams:
                    await self._idle.wait()
            for stream in self._streams:
                stream.socket.close()


class _Server(TCPServer):
    """hypercorn's server of one connection, whose end meets no sender.

    hypercorn takes its send lock for data, and not for the end of data: an answer that comes meanwhile makes trio see
    two senders, and fails with whatever wanted to send it.
    """

    async def _close(self) -> None:
        if self.send_lock.locked():
            await self.stream.aclose()  # the client does not read: whoever sends finds the stream closed
            return
        async with self.send_lock:
            await super()._close()


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """A listening unix socket at `path`, which is there from the moment it listens to the end of the context."""
    _refuse_if_served(path)
    draft = path.with_name("api.new")  # not longer than the paths that were checked against sun_path
    draft.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(draft))
        draft.chmod(stat.S_IRUSR | stat.S_IWUSR)
        listener.listen(64)
        listener.setblocking(False)
        draft.replace(path)
        inode = path.stat().st_ino
        try:
            yield listener
        finally:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == inode:
                    path.unlink()


def _refuse_if_served(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog says EAGAIN, and is a living agent's
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except BlockingIOError:
            pass
    raise UserError(
        f"another host agent serves {path.parent.name!r}", f"see `hostagent status {path.parent.name}`; it may be yours"
    )
