"""What a user of the host does with a container's ports."""

from __future__ import annotations

import hashlib
import socket
import threading

from tests.programs.guest import LOOPBACKS

_PIECE = 1 << 16


def hear(host: str, port: int, size: int = 1_000) -> str:
    """Connect, send `size` bytes and an end, get them back; the name with which the container greets."""
    data = hashlib.shake_256(f"{host} {port}".encode()).digest(size)
    with socket.create_connection((host, port), 60) as client:
        sender = threading.Thread(target=_send, args=[client, data])
        sender.start()
        received = b"".join(iter(lambda: client.recv(_PIECE), b""))
        sender.join()
    name, _, echo = received.partition(b"\n")
    assert hashlib.sha256(echo).digest() == hashlib.sha256(data).digest(), f"{len(echo)} of {size} bytes came back"
    return name.decode()


def _send(client: socket.socket, data: bytes) -> None:
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)


def hear_datagram(host: str, port: int, size: int = 1_000) -> str:
    """Send a datagram, get it back; the name that the container writes before it."""
    data = hashlib.shake_256(f"{host} {port}".encode()).digest(size)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(30)
        client.connect((host, port))
        client.send(data)
        name, _, echo = client.recv(_PIECE).partition(b" ")
    assert echo == data
    return name.decode()


def heard_everywhere(port: int, protocol: str = "tcp") -> set[str]:
    """The names that answer at a port of the host's loopbacks: one, if all is well."""
    ask = hear if protocol == "tcp" else hear_datagram
    return {ask(host, port) for host in LOOPBACKS}


def refused(port: int) -> bool:
    """Whether both of the host's loopbacks refuse a port."""
    for host in LOOPBACKS:
        try:
            socket.create_connection((host, port), 10).close()
            return False
        except ConnectionRefusedError:
            continue
    return True
