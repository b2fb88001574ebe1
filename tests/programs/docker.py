"""Docker of the distribution (docker.io), with and without its userland proxy."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from tests.programs.case import Program
from tests.programs.container_cases import BOTH, PUBLISH_BOTH, TCP, add_cases, assert_both_answer
from tests.programs.container_engine import READY, Engine
from tests.programs.guest import ProgramGuest

ENGINE = Engine("docker", "docker")
SOCKET = "/run/docker.sock"


def running_with(settings: dict[str, object]) -> Callable[[ProgramGuest], AbstractContextManager[None]]:
    """Docker with these settings in daemon.json."""

    @contextmanager
    def running(guest: ProgramGuest) -> Iterator[None]:
        guest.put(json.dumps(settings), "/etc/docker/daemon.json")
        guest.start("docker")
        ENGINE.load(guest)
        yield
        guest.stop("docker.socket", "docker", "containerd")
        guest.gone(BOTH)

    return running


WITH_PROXY = Program("Docker", running_with({}))
WITHOUT_PROXY = Program("Docker without its userland proxy", running_with({"userland-proxy": False}))

add_cases(WITH_PROXY, ENGINE, quick=True)
add_cases(WITHOUT_PROXY, ENGINE, quick=False)


class UnixConnection(http.client.HTTPConnection):
    """HTTP on a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask_api(path: Path, method: str, target: str, document: object = None) -> Any:
    """What Docker's API answers."""
    with contextlib.closing(UnixConnection(path)) as client:
        client.request(method, target, json.dumps(document), {"Content-Type": "application/json"})
        answer = client.getresponse()
        content = answer.read()
        assert answer.status in (200, 201), content
        return json.loads(content)


def streams_of(path: Path, execution: str, data: bytes) -> bytes:
    """Start a command whose input is `data` and ends; its output. The API's connection becomes the command's."""
    body = b'{"Detach": false, "Tty": false}'
    head = f"""POST /exec/{execution}/start HTTP/1.1\r
Host: localhost\r
Connection: Upgrade\r
Upgrade: tcp\r
Content-Type: application/json\r
Content-Length: {len(body)}\r
\r
"""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(path))
        client.sendall(head.encode() + body)
        with client.makefile("rb") as stream:
            assert stream.readline().split()[1] == b"101"
            while stream.readline().strip():
                pass
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            output = b""
            # Each piece has a header: the stream's number, three zeros, and the length in four bytes.
            while header := stream.read(8):
                assert header[:4] == b"\x01\0\0\0", header
                output += stream.read(int.from_bytes(header[4:]))
            return output


@WITH_PROXY.case(
    "its API by a unix socket that a rule brings to the host: listings, and a command's streams", quick=False
)
def api(guest: ProgramGuest) -> None:
    path = guest.sockets / "docker.sock"
    with guest.rule(SOCKET, "docker.sock"), ENGINE.container(guest, "web", PUBLISH_BOTH):
        (container,) = ask_api(path, "GET", "/containers/json")
        assert container["Names"] == ["/web"]
        command = {"AttachStdin": True, "AttachStdout": True, "AttachStderr": True, "Cmd": ["sha256sum"]}
        execution = ask_api(path, "POST", "/containers/web/exec", command)["Id"]
        data = hashlib.shake_256(b"streams").digest(3_000_000)
        assert streams_of(path, execution, data) == f"{hashlib.sha256(data).hexdigest()}  -\n".encode()


@WITH_PROXY.case("the engine is restarted: a container that is to start again comes back with its ports", quick=False)
def engine_restarted(guest: ProgramGuest) -> None:
    with ENGINE.container(guest, "lasting", f"--restart always {PUBLISH_BOTH}"):
        guest.listening(TCP)
        guest.shell(f"systemctl restart docker; test $(timeout 60 cat {READY}/lasting) = up")
        for port, protocol in BOTH:
            guest.listening(port, protocol)
        assert_both_answer("lasting")
        ENGINE.ends(guest, "stop lasting", BOTH)
