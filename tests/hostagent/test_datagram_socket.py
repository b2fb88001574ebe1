"""Answers come from the address that was asked, on sockets with one address and with all."""

from __future__ import annotations

import errno
import socket

import pytest
import trio

from hostagent.datagram_socket import DatagramSocket, dropped_by_kernel
from hostagent.forward_plan import ListenerKey
from hostagent.forwards import Endpoint
from hostagent.stream_socket import listen
from protocol.ports import Protocol


@pytest.mark.parametrize(
    ("bound", "asked"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("0.0.0.0", "127.0.0.7"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "::1"),
    ],
)
async def test_the_answer_comes_from_the_address_that_was_asked(bound: str, asked: str) -> None:
    with listen(ListenerKey(Protocol.UDP, Endpoint(bound, 0))) as sock:
        datagrams = DatagramSocket(sock)
        number = sock.getsockname()[1]
        with socket.socket(sock.family, socket.SOCK_DGRAM) as client:
            client.connect((asked, number))  # from now on it hears this address only
            client.send(b"question")
            with trio.fail_after(10):
                await trio.lowlevel.wait_readable(sock)
                payload, peer = datagrams.receive()
                assert (payload, peer[0][1]) == (b"question", client.getsockname()[1])
                datagrams.send(b"", peer)
                datagrams.send(b"answer", peer)
                await trio.lowlevel.wait_readable(client)
            assert client.recv(100) == b""
            assert client.recv(100) == b"answer"


def test_one_client_that_asks_two_addresses_is_two_peers() -> None:
    with listen(ListenerKey(Protocol.UDP, Endpoint("0.0.0.0", 0))) as sock:
        datagrams = DatagramSocket(sock)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            peers = set()
            for address in ("127.0.0.7", "127.0.0.8"):
                client.sendto(b"x", (address, sock.getsockname()[1]))
                sock.setblocking(True)
                _, peer = datagrams.receive()
                peers.add(peer)
                datagrams.send(b"y", peer)
                assert client.recvfrom(10)[1][0] == address
        assert len(peers) == 2


def test_without_a_datagram() -> None:
    for address in ("127.0.0.1", "0.0.0.0"):
        with listen(ListenerKey(Protocol.UDP, Endpoint(address, 0))) as sock, pytest.raises(BlockingIOError):
            DatagramSocket(sock).receive()


def test_a_socket_that_is_closed_already() -> None:
    sock = listen(ListenerKey(Protocol.UDP, Endpoint("0.0.0.0", 0)))
    sock.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        DatagramSocket(sock).receive()


def test_a_sockets_own_drops_are_told() -> None:
    place = ListenerKey(Protocol.UDP, Endpoint("127.0.0.1", 0))
    with listen(place) as sock, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        assert dropped_by_kernel(sock) == 0
        for _ in range(500):
            client.sendto(bytes(1_000), sock.getsockname())
        received = 0
        while (dropped_by_kernel(sock) or 0) + received < 500:
            received += len(sock.recv(2_000)) > 0  # raises when none is left: then the sum is wrong
        assert 0 < received < 500


def test_a_kernel_that_does_not_tell_drops_is_no_error() -> None:
    class Silent(socket.socket):
        def getsockopt(self, *_arguments: int) -> bytes:  # type: ignore[override]
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")

    with Silent(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert dropped_by_kernel(sock) is None
