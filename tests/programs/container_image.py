"""An image for container engines that comes from no registry: a server of ours, and the guest's own /usr under it.

The server's Python is the guest's, which every container gets read-only: so the image is a few kilobytes, and unpacking
it costs nothing under software emulation.
"""

from __future__ import annotations

import io
import tarfile

NAME = "programs"

SERVER = """
import os, signal, socket, sys, threading

# The first process of a container ignores signals that it has no handler for.
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
name = os.environ["NAME"].encode()

def answer(connection):
    with connection:
        connection.sendall(name + b"\\n")
        while data := connection.recv(65536):
            connection.sendall(data)

def serve_tcp(listener):
    while True:
        threading.Thread(target=answer, args=[listener.accept()[0]], daemon=True).start()

def serve_udp(server):
    while True:
        data, client = server.recvfrom(65536)
        server.sendto(name + b" " + data, client)

for word in sys.argv[1:]:
    protocol, _, ports = word.partition(":")
    first, _, last = ports.partition("-")
    for port in range(int(first), int(last or first) + 1):
        if protocol == "tcp":
            end = socket.create_server(("", port), backlog=128)
            threading.Thread(target=serve_tcp, args=[end], daemon=True).start()
        else:
            end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            end.bind(("", port))
            threading.Thread(target=serve_udp, args=[end], daemon=True).start()
# Whoever waits for this container reads there; if nobody does, this waits for it.
with open(f"/ready/{os.environ['NAME']}", "w") as ready:
    ready.write("up")
while True:
    signal.pause()
"""


def archive() -> bytes:
    """What `docker import` and `podman import` read."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as image:
        for folder in ("dev", "etc", "proc", "run", "sys", "tmp", "usr"):
            member = tarfile.TarInfo(folder)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            image.addfile(member)
        for folder in ("bin", "lib", "lib64", "sbin"):
            member = tarfile.TarInfo(folder)
            member.type, member.linkname = tarfile.SYMTYPE, f"usr/{folder}"
            image.addfile(member)
        content = SERVER.encode()
        member = tarfile.TarInfo("server.py")
        member.size, member.mode = len(content), 0o644
        image.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
