"""Listening sockets that share nothing by accident, and connections that end in a reset."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hostagent.forward_plan import ListenerKey
from hostagent.forwards import Endpoint
from hostagent.stream_socket import finish, listen, reset_unless_finished
from protocol.ports import Protocol
from tests.fakes.connected_channel import nothing_left_open

LOOPBACKS = ["127.0.0.1", "::1"]


def key(protocol: Protocol, address: str = "127.0.0.1", port: int = 0) -> ListenerKey:
    return ListenerKey(protocol, Endpoint(address, port))


@pytest.mark.parametrize("address", LOOPBACKS)
@pytest.mark.parametrize("protocol", Protocol)
def test_a_port_has_one_listener(protocol: Protocol, address: str) -> None:
    with listen(key(protocol, address)) as first:
        assert not first.getblocking()
        port = first.getsockname()[1]
        with nothing_left_open(), pytest.raises(OSError) as caught:
            listen(key(protocol, address, port))
        assert caught.value.errno == errno.EADDRINUSE
    with listen(key(protocol, address, port)) as again:
        assert again.getsockname()[1] == port


@pytest.mark.parametrize("protocol", Protocol)
def test_both_families_have_the_same_port_beside_each_other(protocol: Protocol) -> None:
    """Also the wildcards: [::] would take 0.0.0.0 with it, were it not for IPV6_V6ONLY (ipv6(7))."""
    with listen(key(protocol, "0.0.0.0")) as first, listen(key(protocol, "::", first.getsockname()[1])) as second:
        assert first.getsockname()[1] == second.getsockname()[1]


@pytest.mark.parametrize("address", LOOPBACKS)
def test_a_port_that_was_just_used_is_free_at_once(address: str) -> None:
    """Its connections are in TIME_WAIT, which SO_REUSEADDR ignores (socket(7))."""
    with listen(key(Protocol.TCP, address)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection((address, port)) as client:
            server, _ = listener.accept()
            server.close()  # whoever closes first has the TIME_WAIT
            assert client.recv(1) == b""
    with listen(key(Protocol.TCP, address, port)):
        pass


@contextmanager
def connection(address: str = "127.0.0.1") -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client and what the listener accepted."""
    with listen(key(Protocol.TCP, address)) as listener:
        with socket.create_connection((address, listener.getsockname()[1]), timeout=10) as client:
            server, _ = listener.accept()
            with server:
                yield client, server


@pytest.mark.parametrize("address", LOOPBACKS)
def test_a_close_is_a_reset_at_the_other_end(address: str) -> None:
    with connection(address) as (client, server):
        reset_unless_finished(server)
        server.send(b"arrived before")
        server.close()
        assert client.recv(1_000) == b"arrived before"
        with pytest.raises(ConnectionResetError):
            client.recv(1_000)


@pytest.mark.parametrize("address", LOOPBACKS)
def test_finished_it_is_an_orderly_end(address: str) -> None:
    with connection(address) as (client, server):
        reset_unless_finished(server)
        server.send(b"and that was all")
        finish(server)
        assert server.fileno() == -1
        assert client.recv(1_000) == b"and that was all"
        assert client.recv(1_000) == b""


def test_the_death_of_the_process_is_a_reset_too() -> None:
    """kill -9 in mid-stream must not look like the stream's end."""
    with connection() as (client, server):
        reset_unless_finished(server)
        server.send(b"the first half")
        holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[server.fileno()])
        with holder:
            server.close()
            holder.kill()
        assert client.recv(1_000) == b"the first half"
        with pytest.raises(ConnectionResetError):
            client.recv(1_000)


def test_a_connection_that_was_reset_already_can_be_closed_either_way() -> None:
    for end in (finish, socket.socket.close):
        with connection() as (client, server):
            reset_unless_finished(client)
            client.close()
            end(server)
            assert server.fileno() == -1
