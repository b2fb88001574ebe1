"""Another process of this machine that has a port."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from protocol.ports import Protocol

_PROGRAM = """
import socket, sys
protocol, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
sock = socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
sock.bind((address, port))
if protocol == "tcp":
    sock.listen()
print(sock.getsockname()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def port_taker(
    protocol: Protocol = Protocol.TCP, address: str = "127.0.0.1", port: int = 0
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process that has the port, and its number. Close its standard input and wait to end it earlier."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", _PROGRAM, protocol, address, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        taken = int(process.stdout.readline())
        yield process, taken
        if process.returncode is None:
            process.communicate()
