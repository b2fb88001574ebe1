"""Names for the processes that have a port, found on the real host."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hostagent.forward_plan import ListenerKey
from hostagent.forwards import Endpoint
from hostagent.port_holder import PortHolder, port_holders
from hostagent.stream_socket import listen
from protocol.ports import Protocol
from tests.fakes.port_taker import port_taker
from tests.fakes.privileges import without_root

HERE = ListenerKey(Protocol.TCP, Endpoint("127.0.0.1", 0))


def key_of(sock: socket.socket, protocol: Protocol = Protocol.TCP, address: str = "127.0.0.1") -> ListenerKey:
    return ListenerKey(protocol, Endpoint(address, sock.getsockname()[1]))


def holder(key: ListenerKey) -> PortHolder:
    return port_holders([key])[key]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0", "::"])
@pytest.mark.parametrize("protocol", Protocol)
def test_a_process_is_named_with_its_number(protocol: Protocol, address: str) -> None:
    wanted = "127.0.0.1" if address == "0.0.0.0" else "::1" if address == "::" else address
    with port_taker(protocol, address) as (process, port):
        found = holder(ListenerKey(protocol, Endpoint(wanted, port)))
        assert found.pid == process.pid
        assert found.words.startswith("'python")
        assert found.words.endswith(f"(pid {process.pid})")
        assert not found.is_gone()
    assert found.is_gone()


def test_a_wildcard_is_taken_by_whoever_has_one_address() -> None:
    with listen(HERE) as sock:
        assert holder(key_of(sock, address="0.0.0.0")).pid == os.getpid()


def test_the_other_family_and_protocol_are_other_ports() -> None:
    with listen(HERE) as sock:
        assert holder(key_of(sock, address="::1")).pid is None
        assert holder(key_of(sock, Protocol.UDP)).pid is None


def test_a_connection_can_have_the_port_too() -> None:
    """A client's own end, when no listener is there to be preferred."""
    with listen(HERE) as listener, socket.create_connection(listener.getsockname()) as client:
        assert holder(key_of(client)).pid == os.getpid()


def test_all_keys_are_answered_in_one_look() -> None:
    with listen(HERE) as first, listen(HERE) as second:
        keys = [key_of(first), key_of(second)]
        assert {key: found.pid for key, found in port_holders(keys).items()} == dict.fromkeys(keys, os.getpid())
    assert port_holders([]) == {}


def test_nobody_to_be_seen() -> None:
    with listen(HERE) as sock:
        key = key_of(sock)
    found = holder(key)
    assert found == PortHolder("a process that cannot be seen from here")
    assert not found.is_gone()


def test_another_instance_is_named(tmp_path: Path) -> None:
    """Its host agent is known by how it is started."""
    package = tmp_path / "hostagent"
    package.mkdir()
    package.joinpath("__init__.py").touch()
    package.joinpath("agent_main.py").write_text(
        "import socket, sys\nsock = socket.create_server(('127.0.0.1', 0))\n"
        "print(sock.getsockname()[1], flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-m", "hostagent.agent_main", "web"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        found = holder(ListenerKey(Protocol.TCP, Endpoint("127.0.0.1", port)))
        assert found.words == f"the instance 'web' (pid {process.pid})"
        process.communicate()


def test_the_process_of_another_user_has_no_name_without_root() -> None:
    is_root = os.geteuid() == 0
    with port_taker() as (process, port), without_root():
        found = holder(ListenerKey(Protocol.TCP, Endpoint("127.0.0.1", port)))
        assert found.pid == (None if is_root else process.pid)
        assert (found.words == "another user's process") is is_root
