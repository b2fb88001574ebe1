"""What measurements do on the host: blocking sockets and threads, so that little but the forwarder is timed."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

HOST = "127.0.0.1"
BLOCK = 1 << 18
SIZES = (0, 1, 512, 1472, 1473, 4096, 16_384, 32_768, 32_769, 65_000, 65_507)
POLL = 0.001
"""Seconds between attempts while a port is waited for: the resolution of the latencies."""

LIMIT = 10.0
"""Seconds after which a latency counts as this much."""


class Control:
    """The host's end of a guest_server.py, blocking."""

    def __init__(self, requests: BinaryIO, answers: BinaryIO) -> None:
        self._requests = requests
        self._answers = answers

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """The fields of the answer; raises `RuntimeError` when the guest could not do it."""
        self._requests.write(json.dumps({"do": do, **fields}).encode() + b"\n")
        self._requests.flush()
        answer: dict[str, Any] = json.loads(self._answers.readline())
        if not answer.pop("ok"):
            raise RuntimeError(f"guest: {do}: {answer}")
        return answer

    def counter(self, name: str) -> int:
        """A counter of the guest's server."""
        return int(self.ask("stat").get(name, 0))


def connect(port: int, seconds: float = 30.0) -> socket.socket:
    """A connected TCP socket."""
    client = socket.create_connection((HOST, port), seconds)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def connect_udp(port: int, seconds: float = 2.0) -> socket.socket:
    """A connected UDP socket."""
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(seconds)
    client.connect((HOST, port))
    return client


def receive(client: socket.socket, size: int) -> bytes:
    """`size` bytes, or fewer if the end came first."""
    received = bytearray()
    while len(received) < size and (data := client.recv(size - len(received))):
        received += data
    return bytes(received)


def time_until(condition: Callable[[], bool], began: float) -> float:
    """Seconds from `began` until `condition` held, `LIMIT` at most."""
    while not condition():
        if time.monotonic() - began > LIMIT:
            return LIMIT
        time.sleep(POLL)
    return time.monotonic() - began


def says_hello(port: int) -> bool:
    """Whether a banner server answers."""
    try:
        with connect(port, 5) as client:
            return receive(client, 6) == b"hello\n"
    except OSError:
        return False


def refused(port: int) -> bool:
    """Whether the host itself says that nobody listens: an empty or reset connection is not that."""
    try:
        connect(port, 5).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def echoes(port: int) -> bool:
    """Whether a UDP echo server answers."""
    with connect_udp(port, 0.05) as client:
        try:
            client.send(b"x")
            return client.recv(10) == b"x"
        except OSError:
            return False


def udp_free(port: int) -> bool:
    """Whether the host's UDP port can be had."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def round_trips(port: int, count: int) -> list[float]:
    """Seconds of each exchange of 64 bytes with an echo server."""
    taken = []
    with connect(port) as client:
        for _ in range(count):
            began = time.monotonic()
            client.sendall(b"x" * 64)
            if len(receive(client, 64)) != 64:
                raise ConnectionError("the echo ended")
            taken.append(time.monotonic() - began)
    return taken


def download(port: int, size: int) -> float:
    """Bytes per second from a source server."""
    with connect(port, 120) as client:
        began = time.monotonic()
        client.sendall(b"%d\n" % size)
        got, buffer = 0, bytearray(BLOCK)
        while got < size and (count := client.recv_into(buffer)):
            got += count
        if got != size:
            raise ConnectionError(f"{got} of {size} bytes came")
        return size / (time.monotonic() - began)


def upload(port: int, size: int) -> float:
    """Bytes per second to a sink server, which has counted them all."""
    with connect(port, 120) as client:
        began, block = time.monotonic(), bytes(BLOCK)
        for _ in range(size // BLOCK):
            client.sendall(block)
        client.shutdown(socket.SHUT_WR)
        counted = int(client.makefile("rb").readline())
        if counted != size // BLOCK * BLOCK:
            raise ConnectionError(f"{counted} of {size} bytes arrived")
        return size / (time.monotonic() - began)


@contextmanager
def bulk_stream(port: int) -> Iterator[None]:
    """A download that goes on during the block."""
    stop = threading.Event()
    client = connect(port, 60)
    client.sendall(b"%d\n" % (1 << 40))
    buffer = bytearray(BLOCK)

    def read() -> None:
        while not stop.is_set() and client.recv_into(buffer):
            pass

    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(0.5)  # until it runs at full speed
    try:
        yield
    finally:
        stop.set()
        reader.join()
        client.close()


def connections_per_second(port: int, at_once: int, total: int) -> float:
    """Connects to a banner server that got their answer, per second."""
    left = iter(range(total))
    good: list[int] = []
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number = next(left, None)
            if number is None:
                return
            if says_hello(port):
                good.append(number)

    began = time.monotonic()
    run_at_once(work, at_once)
    return len(good) / (time.monotonic() - began)


def run_at_once(work: Callable[[], None], count: int) -> None:
    """Run `work` in `count` threads, to their end."""
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def datagrams_per_second(port: int, total: int, window: int = 32) -> float:
    """Datagrams of 1,200 bytes that came back, per second, with `window` on their way."""
    with connect_udp(port, 1.0) as client:
        sent = back = flying = 0
        began = time.monotonic()
        while sent < total or flying:
            if sent < total and flying < window:
                client.send(b"z" * 1200)
                sent, flying = sent + 1, flying + 1
                continue
            try:
                client.recv(2000)
                back, flying = back + 1, flying - 1
            except TimeoutError:
                flying = 0  # what has not come within a second is lost
        return back / (time.monotonic() - began)


def whole_datagrams(port: int) -> int:
    """How many of `SIZES` come back whole."""
    good = 0
    with connect_udp(port) as client:
        for size in SIZES:
            datagram = random.randbytes(size)
            try:
                client.send(datagram)
                good += client.recv(1 << 17) == datagram
            except OSError:
                continue
    return good


def half_closes(port: int, count: int = 20) -> int:
    """How often a digest server answered rightly after our end of data."""
    good = 0
    for number in range(count):
        data = random.randbytes((0, 1, 1000, 70_000, 1_000_000)[number % 5])
        with connect(port, 20) as client:
            try:
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                good += client.makefile("rb").readline().strip() == hashlib.sha256(data).hexdigest().encode()
            except OSError:
                continue
    return good


def resets_seen(port: int, control: Control, count: int = 20) -> int:
    """How many of our aborts a hold server saw as such."""
    before = control.counter("reset")
    for _ in range(count):
        client = connect(port)
        client.sendall(b"abc")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    time_until(lambda: control.counter("reset") - before >= count, time.monotonic())
    return control.counter("reset") - before


def held_at_once(port: int, count: int = 500) -> int:
    """How many of `count` connections to an echo server answer while all are open."""
    clients = []
    try:
        for _ in range(count):
            try:
                clients.append(connect(port))
            except OSError:
                continue
        good = 0
        for client in clients:
            try:
                client.sendall(b"k")
                good += client.recv(1) == b"k"
            except OSError:
                continue
        return good
    finally:
        for client in clients:
            client.close()


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
