"""Servers inside a guest, on command: what the tests point the forwarder at.

Runs anywhere with the standard library alone: frozen in the tiny guest, with the distribution's python3 in a full one.
Requests come as one JSON object per line and each gets one answer line, over a virtio-serial port (`--control PATH`), a
TCP connection (`--listen PORT`) or stdin and stdout. The control line need not use what is under test, so a broken
relay cannot hide behind it.

Requests, with the fields besides `do` (answers have `ok`, or `error` with an errno name and `message`):
    hello                            pid
    tcp   kind host port [backlog]   listen; answers the port (0 picks one). Kinds: see TCP_KINDS
    udp   kind host port             bind; answers the port. Kinds: see UDP_KINDS
    bind  host port                  bind TCP without listening; answers the port
    listen kind port                 listen with what `bind` bound
    unix  kind path                  listen at a path. Kinds: those of tcp, but for peer
    close_path path                  close the listener of that path, and leave its file
    ask   where text                 connect to [host, port] or a path, send the text, end; what came back until the end
    ask_udp host port sizes          a datagram of each size to an echo, one after the other; the sizes that came back
    close port [host]                close every listener and UDP socket of that port, or only that on one address
    stat                             counters since the start
    processes pattern                whose command line matches: pid, parent, memory in KiB (with its share of what is
                                     shared: PSS), CPU ticks, command
    run   command [limit]           /bin/sh -c; answers status and output (stdout and stderr together)
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import random
import re
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CHUNK = bytes(1 << 18)
BLOCK = 1 << 16
FILLING = random.Random(4).randbytes(BLOCK - 8)
counters: Counter[str] = Counter()
bound: dict[int, list[socket.socket]] = {}
paths: dict[str, socket.socket] = {}


def banner(connection: socket.socket) -> None:
    """Speak first, then end: what a plain connect must see."""
    connection.sendall(b"hello\n")


def echo(connection: socket.socket) -> None:
    """Send everything back; end when the peer ended."""
    while data := connection.recv(1 << 16):
        connection.sendall(data)


def sink(connection: socket.socket) -> None:
    """Read to the end, then answer with the number of bytes: needs half-close."""
    total = 0
    while data := connection.recv(1 << 18):
        total += len(data)
    connection.sendall(b"%d\n" % total)


def source(connection: socket.socket) -> None:
    """Read a line with a number, send as many bytes, end, and wait for the peer's end."""
    left = int(connection.makefile("rb").readline())
    while left > 0:
        left -= connection.send(CHUNK[: min(left, len(CHUNK))])
    connection.shutdown(socket.SHUT_WR)
    connection.recv(1)


def digest(connection: socket.socket) -> None:
    """Read to the end, then answer with the SHA-256: half-close with every byte right."""
    seen = hashlib.sha256()
    while data := connection.recv(1 << 16):
        seen.update(data)
    counters["eof"] += 1
    connection.sendall(seen.hexdigest().encode() + b"\n")


def numbered_block(number: int) -> bytes:
    """Part of an endless stream in which no byte can be lost, doubled or moved without being noticed."""
    return number.to_bytes(8, "big") + FILLING


class NumberedStream:
    """The reader's side of that stream."""

    def __init__(self) -> None:
        self.position = 0

    def accepts(self, data: bytes) -> bool:
        """Whether `data` goes on where the stream was."""
        start = 0
        while start < len(data):
            number, offset = divmod(self.position, BLOCK)
            expected = numbered_block(number)[offset : offset + len(data) - start]
            if data[start : start + len(expected)] != expected:
                return False
            start += len(expected)
            self.position += len(expected)
        return True


def numbered(connection: socket.socket) -> None:
    """Send the endless stream, until the peer is gone."""
    number = 0
    while True:
        connection.sendall(numbered_block(number))
        number += 1


def verify(connection: socket.socket) -> None:
    """Read the endless stream. It has no end: one is counted as `cut short`, and any other byte as `wrong`."""
    stream = NumberedStream()
    while data := connection.recv(BLOCK):
        if not stream.accepts(data):
            counters["wrong"] += 1
            return
        counters["verified"] += len(data)
    counters["cut short"] += 1


def hold(connection: socket.socket) -> None:
    """Read and say nothing; how it ended is counted as `eof` or `reset`."""
    while connection.recv(1 << 16):
        pass
    counters["eof"] += 1


def stall(connection: socket.socket) -> None:
    """Never read until a byte of urgent data or the end arrives: a reader that must slow its writer."""
    poller = select.poll()
    poller.register(connection, select.POLLPRI | select.POLLRDHUP)
    poller.poll()


def reset(connection: socket.socket) -> None:
    """Read once, then abort: the peer must see RST, not an end."""
    connection.recv(1 << 16)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def half(connection: socket.socket) -> None:
    """End the own direction at once, then read on and count the bytes as `half`: the other half-close."""
    connection.shutdown(socket.SHUT_WR)
    while data := connection.recv(1 << 16):
        counters["half"] += len(data)
    counters["eof"] += 1


def peer(connection: socket.socket) -> None:
    """Answer with the peer's address and port as this side sees them."""
    address = connection.getpeername()
    connection.sendall(b"%s %d\n" % (address[0].encode(), address[1]))


TCP_KINDS: dict[str, Callable[[socket.socket], None]] = {
    kind.__name__: kind
    for kind in (banner, echo, sink, source, digest, numbered, verify, hold, stall, reset, half, peer)
}

UDP_KINDS: dict[str, Callable[[bytes, tuple[Any, ...]], bytes | None]] = {
    "echo": lambda data, _sender: data,
    "peer": lambda _data, sender: b"%s %d" % (sender[0].encode(), sender[1]),
    "length": lambda data, _sender: b"%d" % len(data),
    "silent": lambda _data, _sender: None,
}


def connected_echo(server: socket.socket) -> None:
    """Connect to the first sender and echo to it: a UDP server that is bound and connected from then on."""
    try:
        data, sender = server.recvfrom(1 << 16)
        server.connect(sender)
        server.send(data)
        while server.fileno() >= 0 and (data := server.recv(1 << 16)):
            server.send(data)
    except OSError as error:  # closed on request, or the peer is gone
        counters[f"udp-{errno.errorcode.get(error.errno or 0, '?')}"] += 1


def serve_connection(kind: Callable[[socket.socket], None], connection: socket.socket) -> None:
    with connection:
        try:
            kind(connection)
        except ConnectionError:
            counters["reset"] += 1


def serve_tcp(kind: Callable[[socket.socket], None], listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # closed on request
            return
        counters["accepted"] += 1
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve_connection, args=(kind, connection), daemon=True).start()


def serve_udp(kind: Callable[[bytes, tuple[Any, ...]], bytes | None], server: socket.socket) -> None:
    while True:
        try:
            data, sender = server.recvfrom(1 << 16)
        except OSError:  # closed on request
            return
        if server.fileno() < 0 or (not data and sender is None):
            return
        counters["datagrams"] += 1
        if (answer := kind(data, sender)) is not None:
            try:
                server.sendto(answer, sender)
            except OSError as error:
                counters[f"udp-{errno.errorcode.get(error.errno or 0, '?')}"] += 1


def open_socket(kind: socket.SocketKind, host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, kind)
    try:
        if kind == socket.SOCK_STREAM:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind((host, port))
    except OSError:
        opened.close()
        raise
    return opened


def do_hello() -> dict[str, Any]:
    return {"pid": os.getpid()}


def do_tcp(kind: str, host: str, port: int, backlog: int = 512) -> dict[str, Any]:
    chosen = do_bind(host, port)["port"]
    return do_listen(kind, chosen, backlog)


def do_bind(host: str, port: int) -> dict[str, Any]:
    return remember(open_socket(socket.SOCK_STREAM, host, port))


def do_listen(kind: str, port: int, backlog: int = 512) -> dict[str, Any]:
    listener = bound[port][-1]
    listener.listen(backlog)
    if kind != "deaf":  # that one never accepts
        threading.Thread(target=serve_tcp, args=(TCP_KINDS[kind], listener), daemon=True).start()
    return {"port": port}


def do_udp(kind: str, host: str, port: int) -> dict[str, Any]:
    opened = open_socket(socket.SOCK_DGRAM, host, port)
    if kind == "connected":
        threading.Thread(target=connected_echo, args=(opened,), daemon=True).start()
    else:
        threading.Thread(target=serve_udp, args=(UDP_KINDS[kind], opened), daemon=True).start()
    return remember(opened)


def do_unix(kind: str, path: str) -> dict[str, Any]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(512)
    paths[path] = listener
    threading.Thread(target=serve_tcp, args=(TCP_KINDS[kind], listener), daemon=True).start()
    return {}


def do_close_path(path: str) -> dict[str, Any]:
    listener = paths.pop(path)
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    return {}


def do_ask(where: str | list[Any], text: str) -> dict[str, Any]:
    family = socket.AF_UNIX if isinstance(where, str) else socket.AF_INET6 if ":" in where[0] else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(15)
        client.connect(where if isinstance(where, str) else tuple(where))
        client.sendall(text.encode())
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
    return {"answer": answer.decode()}


def do_ask_udp(host: str, port: int, sizes: list[int]) -> dict[str, Any]:
    came = []
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.connect((host, port))
        for size in sizes:
            sent = os.urandom(size)
            client.send(sent)
            answer = client.recv(1 << 16)
            came.append(len(answer) if answer == sent else -1)
    return {"sizes": came}


def remember(opened: socket.socket) -> dict[str, Any]:
    chosen: int = opened.getsockname()[1]
    bound.setdefault(chosen, []).append(opened)
    return {"port": chosen}


def do_close(port: int, host: str = "") -> dict[str, Any]:
    closed = [opened for opened in bound.get(port, []) if host in ("", opened.getsockname()[0])]
    for opened in closed:
        bound[port].remove(opened)
        try:
            # Wakes the thread that waits in accept or recvfrom; a plain close would leave the port open until then.
            opened.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # unconnected UDP: woken all the same
                raise
        opened.close()
    return {"closed": len(closed)}


def do_stat() -> dict[str, Any]:
    return dict(counters)


def do_processes(pattern: str) -> dict[str, Any]:
    found = []
    for folder in Path("/proc").iterdir():
        try:
            command = (folder / "cmdline").read_text().replace("\0", " ").strip() if folder.name.isdigit() else ""
            if command and int(folder.name) != os.getpid() and re.search(pattern, command):
                memory = re.search(r"^Pss:\s*(\d+)", (folder / "smaps_rollup").read_text(), re.MULTILINE)
                fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
                found.append({
                    "pid": int(folder.name), "parent": int(fields[1]), "memory": int(memory[1]) if memory else 0,
                    "ticks": int(fields[11]) + int(fields[12]), "command": command,
                })  # fmt: skip
        except (FileNotFoundError, ProcessLookupError):  # it ended while we looked
            continue
    return {"processes": found}


def do_run(command: str, limit: float = 30.0) -> dict[str, Any]:
    done = subprocess.run(["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=limit, check=False)  # fmt: skip
    return {"status": done.returncode, "output": done.stdout.decode(errors="replace")}


def do_netlink(protocol: int, messages: str, answers: int) -> dict[str, Any]:
    """Sends hexadecimal netlink messages in one go, and raises what the first refusal among the answers says."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as link:
        link.settimeout(5)
        link.send(bytes.fromhex(messages))
        for _ in range(answers):
            (number,) = struct.unpack_from("=i", link.recv(1 << 16), 16)
            if number:
                raise OSError(-number, os.strerror(-number))
    return {}


REQUESTS: dict[str, Callable[..., dict[str, Any]]] = {
    "hello": do_hello, "tcp": do_tcp, "udp": do_udp, "bind": do_bind, "listen": do_listen, "close": do_close,
    "unix": do_unix, "close_path": do_close_path, "ask": do_ask, "ask_udp": do_ask_udp,
    "stat": do_stat, "processes": do_processes, "run": do_run, "netlink": do_netlink,
}  # fmt: skip


def answer(line: bytes) -> bytes:
    """The answer line to a request line; a request that failed is an answer too."""
    result: dict[str, Any]
    try:
        request = json.loads(line)
        result = {"ok": True, **REQUESTS[request.pop("do")](**request)}
    except OSError as error:
        result = {"ok": False, "error": errno.errorcode.get(error.errno or 0, "?"), "message": str(error)}
    except (ValueError, KeyError, TypeError, subprocess.TimeoutExpired) as error:
        result = {"ok": False, "error": type(error).__name__, "message": str(error)}
    return json.dumps(result).encode() + b"\n"


def port_lines(port: int) -> Iterator[bytes]:
    """Lines from a virtio-serial port. With no host there, it is readable and at its end at once, for ever."""
    pending = b""
    while True:
        select.select([port], [], [])
        data = os.read(port, 1 << 16)
        if not data:
            pending = b""
            time.sleep(0.02)  # there is no event for "a host came"
            continue
        *whole, pending = (pending + data).split(b"\n")
        yield from whole


def serve_control(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, connection.makefile("rb") as lines:
            for line in lines:
                connection.sendall(answer(line))


def main() -> int:
    """Serve requests until stdin ends, or for ever on a virtio-serial port or a TCP port."""
    parser = argparse.ArgumentParser(description="Servers inside a guest, on command.")
    parser.add_argument("--control", type=Path, help="virtio-serial port for the requests (default: stdin, stdout)")
    parser.add_argument("--listen", type=int, metavar="PORT", help="TCP port for the requests, one client at a time")
    parser.add_argument("--self-test", action="store_true", help="check that this build can run, and exit")
    arguments = parser.parse_args()
    if arguments.self_test:
        return 0 if json.loads(answer(b'{"do": "hello"}'))["ok"] else 1
    if arguments.listen is not None:
        serve_control(socket.create_server(("0.0.0.0", arguments.listen)))
    elif arguments.control is None:
        for line in sys.stdin.buffer:
            sys.stdout.buffer.write(answer(line))
            sys.stdout.buffer.flush()
    else:
        port = os.open(arguments.control, os.O_RDWR)
        for line in port_lines(port):
            text = memoryview(answer(line))
            while text:
                text = text[os.write(port, text) :]
    return 0


if __name__ == "__main__":
    sys.exit(main())
