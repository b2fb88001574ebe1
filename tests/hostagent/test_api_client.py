from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hostagent import api_client
from hostagent.api_client import ApiClient
from hostagent.errors import UserError
from hostagent.instance_lock import try_lock
from hostagent.paths import InstancePaths
from hostagent.qemu.pid_file import hold_pid_file
from tests.fakes.running_instance import web_forward
from tests.fakes.served_instance import ServedInstance, served_in_thread


@pytest.fixture
def paths() -> Iterator[InstancePaths]:
    with tempfile.TemporaryDirectory(prefix="ha-") as folder:
        yield InstancePaths(Path(folder))


@pytest.fixture
def served(paths: InstancePaths) -> Iterator[ServedInstance]:
    with served_in_thread(paths.api_socket) as instance:
        yield instance


@contextmanager
def answering(paths: InstancePaths, answer: bytes) -> Iterator[None]:
    """A server that gives one client these bytes and closes."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(paths.api_socket))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_plain_questions(served: ServedInstance, paths: InstancePaths) -> None:
    client = ApiClient(paths)
    assert client.status()["state"] == "running"
    assert [port["guest"] for port in client.ports()] == [{"address": "0.0.0.0", "port": 8080}]
    assert (client.stop(force=True), served.instance.stops) == ("kill", [True])


def test_followed_ports(served: ServedInstance, paths: InstancePaths) -> None:
    listings = ApiClient(paths).follow_ports(60)
    assert len(next(listings)) == 1

    def open_another() -> None:
        served.instance.listed.append(web_forward(port=9090))
        served.instance.events.append("forward")

    served.call(open_another)
    assert len(next(listings)) == 2


def test_followed_events_end_with_the_agent(served: ServedInstance, paths: InstancePaths) -> None:
    served.call(lambda: served.instance.events.append("guest", number=1))
    events = ApiClient(paths).events(follow=True)
    assert next(events)["id"] == 1
    served.call(lambda: served.instance.events.append("guest", number=2))
    assert next(events)["id"] == 2
    served.end()
    assert list(events) == []


def test_recorded_events_after_an_id(served: ServedInstance, paths: InstancePaths) -> None:
    for _ in range(3):
        served.call(lambda: served.instance.events.append("guest"))
    assert [event["id"] for event in ApiClient(paths).events(after=2)] == [3]


def test_no_agent(paths: InstancePaths) -> None:
    with pytest.raises(UserError, match="is not running"):
        ApiClient(paths).status()


def test_a_host_agent_that_cannot_be_asked_yet_is_not_called_gone(paths: InstancePaths) -> None:
    with try_lock(paths.lock), hold_pid_file(paths.qemu_pid), pytest.raises(UserError, match="is starting or ending"):
        ApiClient(paths).status()


def test_an_agent_that_died_and_left_its_guest(paths: InstancePaths) -> None:
    with hold_pid_file(paths.qemu_pid), pytest.raises(UserError, match="is gone, and its guest runs") as caught:
        ApiClient(paths).status()
    assert "hostagent up" in caught.value.hint


def test_a_dead_agents_socket(paths: InstancePaths) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(paths.api_socket))
    with pytest.raises(UserError, match="is not running"):
        ApiClient(paths).ports()


def test_an_agent_that_hangs(paths: InstancePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_client, "_ANSWER_BOUND", 0.05)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(paths.api_socket))
        silent.listen()
        with pytest.raises(UserError, match="does not answer"):
            next(ApiClient(paths).events())


def test_what_the_agent_refuses_is_shown_in_its_words(paths: InstancePaths) -> None:
    body = b'{"message": "the guest is busy", "hint": "wait"}'
    answer = b"HTTP/1.1 409 Conflict\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with answering(paths, answer), pytest.raises(UserError) as caught:
        ApiClient(paths).stop(force=False)
    assert (caught.value.message, caught.value.hint) == ("the guest is busy", "wait")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "was lost"),
        (b"SSH-2.0-nonsense\r\n", "was lost"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "was lost"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "not understood"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{", "not understood"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", "not understood"),
    ],
)
def test_answers_that_are_none(paths: InstancePaths, answer: bytes, words: str) -> None:
    with answering(paths, answer), pytest.raises(UserError, match=words):
        ApiClient(paths).status()


@pytest.mark.parametrize("end", [b"", b'5\r\n{"a', b"zz\r\n"])
def test_a_stream_that_breaks_off_is_no_end(paths: InstancePaths, end: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n"
    with answering(paths, head + end):
        events = ApiClient(paths).events(follow=True)
        assert not next(events)
        with pytest.raises(UserError, match="was lost"):
            next(events)
