from __future__ import annotations

import json
import logging
import socket
import stat
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from starlette.routing import Route, WebSocketRoute

from hostagent import control_api
from hostagent.api_shapes import Status
from hostagent.control_api import OPERATIONS, application, serve_api
from hostagent.errors import UserError
from hostagent.forwards import ForwardState
from tests.fakes.running_instance import FakeInstance, web_forward
from tests.fakes.served_instance import served


class Http:
    """A client that shows every byte: requests in, head and body out."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._data = b""

    async def ask(self, method: str, target: str) -> tuple[int, bytes]:
        """Status and body of an answer with a length."""
        await self.request(method, target)
        status, headers = await self.head()
        return status, await self._exactly(int(headers["content-length"]))

    async def request(self, method: str, target: str, *headers: str) -> None:
        lines = [f"{method} {target} HTTP/1.1", "Host: x", *headers, "", ""]
        await self.stream.send_all("\r\n".join(lines).encode())

    async def head(self) -> tuple[int, dict[str, str]]:
        lines = (await self._until(b"\r\n\r\n")).decode().split("\r\n")
        fields = (line.split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), {name.lower(): value for name, value in fields}

    async def chunk(self) -> bytes:
        """One chunk of a stream; empty at its proper end."""
        size = int(await self._until(b"\r\n"), 16)
        return (await self._exactly(size + 2))[:-2]

    async def line(self) -> Any:
        return json.loads(await self.chunk())

    async def _until(self, end: bytes) -> bytes:
        while end not in self._data:
            self._data += await self._more()
        found, self._data = self._data.split(end, 1)
        return found

    async def _exactly(self, size: int) -> bytes:
        while len(self._data) < size:
            self._data += await self._more()
        found, self._data = self._data[:size], self._data[size:]
        return found

    async def _more(self) -> bytes:
        with trio.fail_after(10):
            data = await self.stream.receive_some()
        assert data, "the server closed in the middle"
        return data


@pytest.fixture
def instance() -> FakeInstance:
    return FakeInstance()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


@pytest.fixture
async def http(instance: FakeInstance, path: Path) -> AsyncIterator[Http]:
    async with served(instance, path), await trio.open_unix_socket(path) as stream:
        yield Http(stream)


async def test_status_is_what_the_instance_says(http: Http, instance: FakeInstance) -> None:
    assert await http.ask("GET", "/v1/status") == (200, json.dumps(instance.status(), separators=(",", ":")).encode())


async def test_ports_have_the_documented_shape(http: Http) -> None:
    _, body = await http.ask("GET", "/v1/ports")
    assert json.loads(body) == {
        "ports": [
            {
                "state": "listening",
                "protocol": "tcp",
                "host": [{"address": "127.0.0.1", "port": 8080}, {"address": "::1", "port": 8080}],
                "guest": {"address": "0.0.0.0", "port": 8080},
                "kind": "socket",
                "owner": {"process": "python3", "pid": 812, "uid": 1000, "unit": ""},
                "traffic": {
                    "connections": 1,
                    "connections_total": 12,
                    "connections_refused": 0,
                    "bytes_to_guest": 1234,
                    "bytes_to_host": 3400000,
                    "datagrams_to_guest": 0,
                    "datagrams_to_host": 0,
                    "datagrams_dropped": 0,
                },
                "reason": "",
                "rule": "default rule",
                "since": 1700000000.0,
            }
        ]
    }


async def test_followed_ports_arrive_when_a_forward_changes(http: Http, instance: FakeInstance) -> None:
    await http.request("GET", "/v1/ports?follow=true&interval=60")
    assert (await http.head())[1]["content-type"] == "application/x-ndjson"
    assert [port["state"] for port in (await http.line())["ports"]] == ["listening"]
    instance.listed.append(web_forward(ForwardState.CONFLICT, "taken by nginx", 8081))
    instance.events.append("forward", state="conflict")
    assert [port["state"] for port in (await http.line())["ports"]] == ["listening", "conflict"]


async def test_followed_ports_arrive_when_a_counter_moved_but_not_otherwise(http: Http, instance: FakeInstance) -> None:
    await http.request("GET", "/v1/ports?follow=true&interval=0.05")
    await http.head()
    await http.line()
    instance.events.append("forward", note="nothing that the list shows")
    instance.listed[0].traffic.connections = 7
    assert (await http.line())["ports"][0]["traffic"]["connections"] == 7


async def test_events_resume_after_an_id(http: Http, instance: FakeInstance) -> None:
    for number in range(3):
        instance.events.append("guest", number=number)
    _, body = await http.ask("GET", "/v1/events?after=1")
    assert [json.loads(line)["number"] for line in body.splitlines()] == [1, 2]


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/v1/events?after=2", []),
        ("/v1/events", ["Last-Event-ID: 2"]),
        ("/v1/events?after=2", ["Last-Event-ID: 1"]),
    ],
)
async def test_server_sent_events_resume(
    http: Http, instance: FakeInstance, target: str, headers: Sequence[str]
) -> None:
    for number in range(3):
        instance.events.append("guest", number=number)
    await http.request("GET", target, "Accept: text/event-stream", *headers)
    assert (await http.head())[1]["content-type"].startswith("text/event-stream")
    assert (await http.chunk()).startswith(b'id: 3\nevent: guest\ndata: {"id":3,')
    instance.events.append("state", state="stopping", reason="")
    assert (await http.chunk()).endswith(b'"kind":"state","state":"stopping","reason":""}\n\n')


async def test_a_wrong_id_to_resume_from_is_an_error(http: Http) -> None:
    await http.request("GET", "/v1/events", "Last-Event-ID: yesterday")
    status, _ = await http.head()
    assert status == 400


async def test_followed_events_go_on_and_end_properly(http: Http, instance: FakeInstance) -> None:
    instance.events.append("phase", phase="hello")
    await http.request("GET", "/v1/events?follow=1")
    await http.head()
    assert (await http.line())["phase"] == "hello"
    instance.events.append("phase", phase="ports")
    assert (await http.line())["phase"] == "ports"
    instance.events.close()
    assert await http.chunk() == b""


async def test_stop_says_what_was_needed(http: Http, instance: FakeInstance) -> None:
    assert json.loads((await http.ask("POST", "/v1/stop"))[1]) == {"stopped_by": "guest agent"}
    assert json.loads((await http.ask("POST", "/v1/stop?force=true"))[1]) == {"stopped_by": "kill"}
    assert instance.stops == [False, True]


async def test_the_answer_to_stop_leaves_although_the_agent_ends(instance: FakeInstance, path: Path) -> None:
    async with trio.open_nursery() as nursery:
        async with served(instance, path) as serving, await trio.open_unix_socket(path) as stream:

            async def end_with_the_guest() -> None:
                await instance.stopped.wait()
                serving.cancel()

            nursery.start_soon(end_with_the_guest)
            with trio.CancelScope(shield=True):
                assert await Http(stream).ask("POST", "/v1/stop") == (200, b'{"stopped_by":"guest agent"}')
    assert not await trio.Path(path).exists()


async def test_a_stop_goes_on_although_its_client_leaves(
    instance: FakeInstance, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end, ended = trio.Event(), trio.Event(), trio.Event()

    async def stop(*, force: bool) -> str:
        begun.set()
        await may_end.wait()
        ended.set()
        return "power button"

    monkeypatch.setattr(instance, "stop", stop)
    async with served(instance, path):
        async with await trio.open_unix_socket(path) as stream:
            await Http(stream).request("POST", "/v1/stop")
            await begun.wait()
        await trio.testing.wait_all_tasks_blocked(0.05)  # the server has read the end
        may_end.set()
        with trio.fail_after(10):
            await ended.wait()


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/", 404),
        ("POST", "/v1/status", 405),
        ("GET", "/v1/stop", 405),
        ("GET", "/v1/events?after=soon", 400),
        ("GET", "/v1/events?after=-1", 400),
        ("GET", "/v1/events?after=nan", 400),
        ("GET", "/v1/events?follow=perhaps", 400),
        ("GET", "/v1/ports?follow=1&interval=inf", 400),
    ],
)
async def test_errors_are_json_with_a_hint(http: Http, method: str, target: str, status: int) -> None:
    got, body = await http.ask(method, target)
    assert got == status
    document = json.loads(body)
    assert document["message"]
    assert document["hint"]


async def test_a_user_error_is_a_conflict(http: Http, instance: FakeInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*, force: bool) -> str:
        raise UserError("the guest is being saved", "wait")

    monkeypatch.setattr(instance, "stop", refuse)
    status, body = await http.ask("POST", "/v1/stop")
    assert (status, json.loads(body)) == (409, {"message": "the guest is being saved", "hint": "wait"})


async def test_a_bug_is_told_and_ends_nothing(
    http: Http, instance: FakeInstance, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Status:
        raise LookupError("no such thing")

    monkeypatch.setattr(instance, "status", fail)
    with caplog.at_level(logging.ERROR):
        status, body = await http.ask("GET", "/v1/status")
        await trio.testing.wait_all_tasks_blocked()
    assert status == 500
    assert "LookupError" in json.loads(body)["message"]
    assert "no such thing" in caplog.text


async def test_garbage_costs_one_connection(instance: FakeInstance, path: Path) -> None:
    async with served(instance, path):
        for garbage in (
            b"\0\xff\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnonsense",
            b"x" * 70_000,
        ):
            async with await trio.open_unix_socket(path) as stream:
                await stream.send_all(garbage)
                with trio.fail_after(10), pytest.MonkeyPatch.context():
                    await stream.send_eof()
                    while await _receive(stream):
                        pass
        async with await trio.open_unix_socket(path) as stream:
            assert (await Http(stream).ask("GET", "/v1/status"))[0] == 200


async def _receive(stream: trio.SocketStream) -> bytes:
    try:
        return bytes(await stream.receive_some())
    except trio.BrokenResourceError:  # reset, because the server did not read all of the garbage
        return b""


async def test_a_client_that_does_not_read_does_not_keep_the_agent(
    instance: FakeInstance, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_api, "_GRACE", 0.1)
    async with await _silent_reader(instance, path):
        assert not await trio.Path(path).exists()


async def _silent_reader(instance: FakeInstance, path: Path) -> trio.SocketStream:
    """A client that asked for more than the socket holds and never read; the API has ended meanwhile."""
    with trio.fail_after(10):
        async with served(instance, path):
            stream = await trio.open_unix_socket(path)
            await Http(stream).request("GET", "/v1/events?follow=true")
            for _ in range(500):
                instance.events.append("guest", text="x" * 10_000)
            await trio.testing.wait_all_tasks_blocked(0.1)
    return stream


async def test_openapi_describes_every_route(http: Http, instance: FakeInstance) -> None:
    _, body = await http.ask("GET", "/v1/openapi.json")
    described = {(method.upper(), path) for path, methods in json.loads(body)["paths"].items() for method in methods}
    routed = set()
    for route in application(instance).routes:
        if isinstance(route, WebSocketRoute):
            routed.add(("GET", route.path))
        elif isinstance(route, Route):
            routed |= {(method, route.path) for method in route.methods or () if method != "HEAD"}
    assert described == routed
    assert len(OPERATIONS) == len(routed)


async def test_only_the_user_can_connect(http: Http, path: Path) -> None:
    mode = (await trio.Path(path).stat()).st_mode
    assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)


async def test_a_dead_agents_socket_is_replaced(instance: FakeInstance, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    (path.parent / "api.new").touch()
    async with served(instance, path), await trio.open_unix_socket(path) as stream:
        assert (await Http(stream).ask("GET", "/v1/status"))[0] == 200


async def test_a_living_agents_socket_is_not(http: Http, path: Path) -> None:
    with pytest.RaisesGroup(UserError, allow_unwrapped=True):
        await serve_api(FakeInstance(), path)
    assert (await http.ask("GET", "/v1/status"))[0] == 200
