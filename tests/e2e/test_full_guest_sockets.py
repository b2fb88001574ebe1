"""Unix sockets at either end and reverse forwards in a full guest, by a configuration and by commands."""

from __future__ import annotations

import shutil
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.vm import CONFIGURATION, Vm, wait_until

pytestmark = [pytest.mark.full_guest, pytest.mark.timeout(600)]

RULES = """
portForwards:
- guestSocket: /run/upper.sock
  hostSocket: upper.sock
- guestSocket: "/tmp/{{{{.User}}}}/lower.sock"
  hostSocket: "{folder}/lower.sock"
  reverse: true
- guestPort: 7070
  hostPort: {port}
  proto: any
  reverse: true
"""

UPPER = """
import os, socket
try: os.unlink("/run/upper.sock")
except FileNotFoundError: pass
server = socket.create_server("/run/upper.sock", family=socket.AF_UNIX)
while True:
    client, _ = server.accept()
    with client:
        text = b"".join(iter(lambda: client.recv(65536), b""))
        client.sendall(text.upper())
"""

ASK = """
import socket, sys
where = sys.argv[1]
family = socket.AF_UNIX if where.startswith("/") else socket.AF_INET6 if ":" in where else socket.AF_INET
with socket.socket(family) as client:
    client.settimeout(20)
    client.connect(where if where.startswith("/") else (where, 7070))
    client.sendall(sys.argv[2].encode())
    client.shutdown(socket.SHUT_WR)
    print(b"".join(iter(lambda: client.recv(65536), b"")).decode())
"""

ASK_DATAGRAM = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.settimeout(20)
    client.connect(("127.0.0.1", 7070))
    client.send(sys.argv[1].encode())
    print(client.recv(65536).decode())
"""


def received(connection: socket.socket) -> bytes:
    """All that comes to the end."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def answer_lower(listener: socket.socket) -> None:
    """Serve what says everything in lower case, until the listener is shut down."""
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        with client:
            client.sendall(received(client).lower())


def answer_datagrams(sock: socket.socket) -> None:
    """The same by datagrams; an empty one is the end."""
    while True:
        data, sender = sock.recvfrom(65536)
        if not data:
            return
        sock.sendto(data.lower(), sender)


@contextmanager
def lower_case(folder: Path) -> Iterator[int]:
    """Services of the host that say everything in lower case: on a path in `folder`, and on the port that is given."""
    tcp = socket.create_server(("127.0.0.1", 0))
    port = tcp.getsockname()[1]
    path = socket.create_server(str(folder / "lower.sock"), family=socket.AF_UNIX)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", port))
    threads = [threading.Thread(target=answer_lower, args=(listener,)) for listener in (tcp, path)]
    threads.append(threading.Thread(target=answer_datagrams, args=(udp,)))
    with tcp, path, udp:
        for thread in threads:
            thread.start()
        try:
            yield port
        finally:
            for listener in (tcp, path):
                listener.shutdown(socket.SHUT_RDWR)
            udp.sendto(b"", ("127.0.0.1", port))
            for thread in threads:
                thread.join()


def ask_socket(path: Path, text: str) -> str:
    """What the server behind a socket of the host answers."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        client.sendall(text.encode())
        client.shutdown(socket.SHUT_WR)
        return received(client).decode()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: sockets have little room for it."""
    name = tempfile.mkdtemp(prefix="sockets-", dir="/tmp")
    yield Path(name)
    shutil.rmtree(name)


def test_sockets_and_reverse_forwards_of_a_changed_configuration(vm: Vm, folder: Path) -> None:
    user = vm.at.run("shell", "--", "id", "-un").strip()
    lower, outside = f"/tmp/{user}/lower.sock", vm.at.home / vm.name / "sock" / "upper.sock"
    vm.at.run("shell", "--", "mkdir", f"/tmp/{user}")
    rules = folder / "vm.yaml"
    with lower_case(folder) as port:
        rules.write_text(CONFIGURATION + RULES.format(folder=folder, port=port), encoding="utf-8")
        vm.at.run("config", "reload", str(rules), "--name", vm.name)
        try:
            with vm.running("python3", "-c", UPPER):
                wait_until(lambda: vm.shell("test -S /run/upper.sock && echo there || true").strip(), seconds=30)
                assert ask_socket(outside, "street" * 20_000) == "STREET" * 20_000
                assert stat.S_IMODE(outside.stat().st_mode) == 0o600
                for where in (lower, "127.0.0.1", "::1"):
                    said = vm.at.run("shell", "--", "python3", "-c", ASK, where, "APPLE" * 5_000)
                    assert said.strip() == "apple" * 5_000
                assert vm.at.run("shell", "--", "python3", "-c", ASK_DATAGRAM, "QUIET").strip() == "quiet"
                owner, mode = vm.shell(f"stat -c '%U %a' {lower}").split()
                assert (owner, mode) == (user, "600")
        finally:
            vm.at.run("config", "reload", str(vm.configuration), "--name", vm.name)
    wait_until(lambda: not outside.exists())
    assert vm.shell(f"ls /tmp/{user}").strip() == ""
    vm.at.run("shell", "--", "rmdir", f"/tmp/{user}")


def test_a_reverse_forward_that_is_added_and_removed(vm: Vm, folder: Path) -> None:
    with lower_case(folder) as port:
        added = vm.at.document("forward", "add", "7070", str(port), "--reverse", "--proto", "tcp")
        name = added["rule"]["name"]
        assert vm.at.run("shell", "--", "python3", "-c", ASK, "127.0.0.1", "ONE").strip() == "one"
        assert any("7070" in line for line in vm.at.run("ports").splitlines())
        vm.at.run("forward", "remove", name)
    gone = vm.at.try_run("shell", "--", "python3", "-c", ASK, "127.0.0.1", "TWO")
    assert gone.returncode == 1
    assert b"ConnectionRefusedError" in gone.stderr
