"""The guest's side of the conformance cases: guest_server.py and the servers and requests that only they need.

This is what the tiny guest runs. Requests beside those of guest_server.py:
    accept  kind port                begin to accept on a listener of kind `deaf`
    gate    open                     let `gated` servers read, or not
    digests                          what `half_digest` servers have read since the last such request
    batch   requests                 several requests without a round trip between them; answers their answers
    pause   seconds                  only of use in a batch
    shared  kind host port protocol  a listener or UDP socket with SO_REUSEPORT; `who` tells servers apart
    unshare port index               close one of them
    child   request                  the same by another process, started on first use
    storm   protocol host port count bind, listen and close `count` times; answers the seconds it took
    drops   port                     datagrams that the kernel dropped because a UDP server of `port` was late
"""

from __future__ import annotations

import hashlib
import json
import random
import resource
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.e2e import guest_server
from tests.e2e.guest_server import REQUESTS, TCP_KINDS, UDP_KINDS, bound, counters

BLOCK = 65_536
gate = threading.Event()
digests: list[str] = []
last_numbers: dict[tuple[Any, ...], int] = {}
children: list[subprocess.Popen[bytes]] = []


def seeded_blocks(size: int, seed: int) -> Iterator[bytes]:
    """`size` bytes of which no part is like another; both ends can make them."""
    source = random.Random(seed)
    for start in range(0, size, BLOCK):
        yield source.randbytes(BLOCK)[: size - start]


def seeded(connection: socket.socket) -> None:
    """Read a line with a size and a seed, send those bytes, end, and wait for the peer's end."""
    size, seed = map(int, connection.makefile("rb").readline().split())
    for block in seeded_blocks(size, seed):
        connection.sendall(block)
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(BLOCK):
        pass


def half_digest(connection: socket.socket) -> None:
    """End the own direction at once, then read to the peer's end and keep the SHA-256 of it."""
    connection.shutdown(socket.SHUT_WR)
    digests.append(_digest(connection))


def _digest(connection: socket.socket) -> str:
    seen = hashlib.sha256()
    while data := connection.recv(BLOCK):
        seen.update(data)
    return seen.hexdigest()


def reply(connection: socket.socket) -> None:
    """Read to the peer's end, and only then send everything back."""
    everything = bytearray()
    while data := connection.recv(BLOCK):
        everything += data
    connection.sendall(everything)


def rude(connection: socket.socket) -> None:
    """Close with bytes unread, which is an abort (RFC 2525, 2.17)."""
    connection.recv(1, socket.MSG_PEEK)


def slam(_connection: socket.socket) -> None:
    """Close as soon as accepted."""


def gated(connection: socket.socket) -> None:
    """Read nothing until the gate opens, then as `digest`."""
    gate.wait()
    connection.sendall(_digest(connection).encode())


def serve_many(listener: socket.socket) -> None:
    """Echo for thousands of connections in one thread."""
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while selector.get_map():
        for key, _ in selector.select():
            ready = key.fileobj
            assert isinstance(ready, socket.socket)
            try:
                if ready is listener:
                    selector.register(listener.accept()[0], selectors.EVENT_READ)
                    continue
                if data := ready.recv(BLOCK):
                    ready.sendall(data)
                    continue
            except OSError:  # a reset, or the listener was closed on request
                pass
            selector.unregister(ready)
            ready.close()


def elsewhere(data: bytes, sender: tuple[Any, ...]) -> None:
    """Answer from another port than the one that was asked."""
    with socket.socket(socket.AF_INET6 if ":" in sender[0] else socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.sendto(data, sender)


def numbered(data: bytes, sender: tuple[Any, ...]) -> None:
    """Count datagrams by the number in their first bytes: `numbered`, and `disordered` when one is not the next."""
    number = int.from_bytes(data[:8], "big")
    counters["numbered"] += 1
    counters["disordered"] += number <= last_numbers.get(sender, -1)
    last_numbers[sender] = number


def who(_data: bytes, _sender: tuple[Any, ...]) -> bytes:
    """Answer with the name of the thread, which `shared` chooses."""
    return threading.current_thread().name.encode()


def who_connected(connection: socket.socket) -> None:
    """The same over TCP."""
    connection.sendall(who(b"", ()))


def do_accept(kind: str, port: int) -> dict[str, Any]:
    threading.Thread(target=guest_server.serve_tcp, args=(TCP_KINDS[kind], bound[port][-1]), daemon=True).start()
    return {}


def do_many(host: str, port: int) -> dict[str, Any]:
    guest_server.do_tcp("deaf", host, port, 4096)
    threading.Thread(target=serve_many, args=(bound[port][-1],), daemon=True).start()
    return {"port": port}


def do_gate(open: bool) -> dict[str, Any]:  # noqa: A002 - the request's word
    (gate.set if open else gate.clear)()
    return {}


def do_digests() -> dict[str, Any]:
    taken = digests[:]
    del digests[: len(taken)]
    return {"digests": taken}


def do_batch(requests: list[dict[str, Any]]) -> dict[str, Any]:
    answers = [REQUESTS[request["do"]](**{k: v for k, v in request.items() if k != "do"}) for request in requests]
    return {"answers": answers}


def do_pause(seconds: float) -> dict[str, Any]:
    time.sleep(seconds)
    return {}


def do_shared(kind: str, host: str, port: int, protocol: str) -> dict[str, Any]:
    tcp = protocol == "tcp"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    opened.bind((host, port))
    guest_server.remember(opened)
    name = f"server {len(bound[port])}"
    if tcp:
        opened.listen(64)
        serve: tuple[Any, tuple[Any, ...]] = (serve_named, (kind, opened, name))
    else:
        serve = (guest_server.serve_udp, (UDP_KINDS[kind], opened))
    threading.Thread(target=serve[0], args=serve[1], name=name, daemon=True).start()
    return {"port": port}


def serve_named(kind: str, listener: socket.socket, name: str) -> None:
    """As serve_tcp, in threads of one name."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # closed on request
            return
        arguments = (TCP_KINDS[kind], connection)
        threading.Thread(target=guest_server.serve_connection, args=arguments, name=name, daemon=True).start()


def do_unshare(port: int, index: int) -> dict[str, Any]:
    opened = bound[port].pop(index)
    with suppress(OSError):  # unconnected UDP: its thread is woken all the same
        opened.shutdown(socket.SHUT_RDWR)
    opened.close()
    return {}


def do_child(request: dict[str, Any]) -> dict[str, Any]:
    if not children:
        own_command = [sys.executable] if getattr(sys, "frozen", False) else [sys.executable, "-m", __spec__.name]
        children.append(subprocess.Popen(own_command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    (child,) = children
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps(request).encode() + b"\n")
    child.stdin.flush()
    return {"answer": json.loads(child.stdout.readline())}


def do_storm(protocol: str, host: str, port: int, count: int) -> dict[str, Any]:
    began = time.monotonic()
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    for number in range(count):
        with guest_server.open_socket(kind, host, port + number % 16) as opened:
            if kind == socket.SOCK_STREAM:
                opened.listen()
    return {"seconds": time.monotonic() - began}


def do_drops(port: int) -> dict[str, Any]:
    total = 0
    for name in ("udp", "udp6"):
        for line in Path("/proc/net", name).read_text().splitlines()[1:]:
            columns = line.split()
            if int(columns[1].rsplit(":", 1)[1], 16) == port:
                total += int(columns[-1])  # the last column is sk_drops (udp4_format_sock, net/ipv4/udp.c)
    return {"drops": total}


TCP_KINDS.update({kind.__name__: kind for kind in (seeded, half_digest, reply, rude, slam, gated)}, who=who_connected)
UDP_KINDS.update(elsewhere=elsewhere, numbered=numbered, who=who)
REQUESTS.update(
    accept=do_accept, many=do_many, gate=do_gate, digests=do_digests, batch=do_batch, pause=do_pause,
    shared=do_shared, unshare=do_unshare, child=do_child, storm=do_storm, drops=do_drops,
)  # fmt: skip

if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sys.exit(guest_server.main())
