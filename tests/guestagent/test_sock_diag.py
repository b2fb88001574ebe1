"""The socket table of the real kernel, and of kernels that will not answer."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyroute2.netlink.diag import MarshalDiag

from guestagent import netlink
from guestagent.netlink import KernelDataError
from guestagent.sock_diag import SocketReader, dump_request
from guestagent.socket_table import BY_FAMILY, ListeningSocket, SocketState
from protocol.ports import Protocol
from tests.guestagent.network_namespace import network_namespace

BOUND = (
    (socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1"),
    (socket.AF_INET, socket.SOCK_STREAM, "0.0.0.0"),
    (socket.AF_INET6, socket.SOCK_STREAM, "::1"),
    (socket.AF_INET6, socket.SOCK_STREAM, "::"),
    (socket.AF_INET6, socket.SOCK_STREAM, "::ffff:127.0.0.1"),
    (socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1"),
    (socket.AF_INET6, socket.SOCK_DGRAM, "::"),
    (socket.AF_INET6, socket.SOCK_DGRAM, "::ffff:127.0.0.1"),
)


@pytest.fixture(autouse=True)
def _namespace() -> Iterator[None]:
    with network_namespace():
        yield


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    """One bound socket of each sort, a connected pair, and a connected UDP socket."""
    made = []
    for family, kind, address in BOUND:
        bound = socket.socket(family, kind)
        bound.bind((address, 0))
        if kind == socket.SOCK_STREAM:
            bound.listen()
        made.append(bound)
    made.append(socket.create_connection(made[0].getsockname()))
    made.append(made[0].accept()[0])
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.connect(made[5].getsockname())
    made.append(client)
    yield made
    for item in made:
        item.close()


@pytest.mark.parametrize("protocol", Protocol)
def test_sock_diag_and_proc_net_say_the_same_of_the_real_kernel(
    protocol: Protocol, sockets: list[socket.socket]
) -> None:
    reader, text_reader = SocketReader(), SocketReader(use_sock_diag=False)
    seen = reader.read(protocol)
    assert reader.reason() == ""
    assert seen == text_reader.read(protocol)
    inodes = {item.inode: item for item in seen}
    kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
    for bound, (_, bound_kind, address) in zip(sockets, BOUND, strict=False):
        if bound_kind == kind:
            found = inodes[_inode(bound)]
            assert (found.number, found.address) == (bound.getsockname()[1], address.removeprefix("::ffff:"))
    connected = [item for item in seen if item.state is SocketState.CONNECTED]
    assert [item.inode for item in connected] == ([] if protocol is Protocol.TCP else [_inode(sockets[-1])])
    reader.close()


@pytest.mark.usefixtures("sockets")
@pytest.mark.parametrize("protocol", Protocol)
def test_pyroute2_reads_the_same_out_of_the_same_bytes(protocol: Protocol) -> None:
    with SocketReader() as reader:
        ours = {(item.number, item.inode, item.uid, item.interface) for item in reader.read(protocol)}
    theirs = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as diag:
            diag.send(dump_request(protocol, family))
            data = diag.recv(65536)
        for message in MarshalDiag().parse(data):
            if message["header"]["type"] == BY_FAMILY:
                theirs.add((message["idiag_sport"], message["idiag_inode"], message["idiag_uid"], message["idiag_if"]))
    assert ours == theirs


def test_a_dump_of_many_parts_is_complete() -> None:
    listeners = []
    for _ in range(700):
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
    with SocketReader() as reader:
        assert {item.inode for item in reader.read(Protocol.TCP)} == {_inode(listener) for listener in listeners}
    for listener in listeners:
        listener.close()


class KernelSocket:
    """A netlink socket whose kernel follows a script: for each request an errno at send(), or the datagrams to give."""

    def __init__(self, script: Iterator[int | list[Callable[[int], bytes]]]) -> None:
        self._script = script
        self._answers: list[bytes] = []

    def send(self, request: bytes) -> int:
        (message,) = netlink.unpack(request)
        step = next(self._script)
        if isinstance(step, int):
            raise OSError(step, "scripted")
        self._answers = [make(message.sequence) for make in step]
        return len(request)

    def recv_into(self, buffer: memoryview, size: int, flags: int) -> int:
        assert flags == socket.MSG_TRUNC
        if not self._answers:
            raise BlockingIOError(errno.EAGAIN, "scripted timeout")
        answer = self._answers.pop(0)
        fits = min(len(answer), len(buffer))
        buffer[:fits] = answer[:fits]
        return len(answer)

    def setsockopt(self, *_: object) -> None:
        """Nothing to set."""

    def close(self) -> None:
        """Nothing to close."""


def done(sequence: int, *, flags: int = 0) -> bytes:
    return netlink.pack(netlink.DONE, flags, sequence, bytes(4))


def interrupted(sequence: int) -> bytes:
    return done(sequence, flags=netlink.DUMP_INTERRUPTED)


def refused(number: int) -> Callable[[int], bytes]:
    return lambda sequence: netlink.pack(netlink.ERROR, 0, sequence, struct.pack("=i", -number))


def oversized(sequence: int) -> bytes:
    return netlink.pack(BY_FAMILY, 0, sequence, bytes(70_000))


def scripted(monkeypatch: pytest.MonkeyPatch, *steps: int | list[Callable[[int], bytes]]) -> SocketReader:
    kernel = KernelSocket(iter(steps))
    reader = SocketReader()
    monkeypatch.setattr(reader, "_open", lambda: kernel)
    return reader


@pytest.mark.parametrize(
    "trouble",
    [
        errno.EBUSY,
        errno.EINTR,
        errno.ENOBUFS,
        [refused(errno.EBUSY)],
        [interrupted],
        [oversized],
        [],
        [lambda sequence: done(sequence + 1)],
    ],
    ids=["busy", "signal", "no buffers", "busy answer", "interrupted", "truncated", "silence", "an old answer only"],
)
def test_what_passes_is_tried_again(
    trouble: int | list[Callable[[int], bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = scripted(monkeypatch, trouble, [done], [done])
    assert reader.read(Protocol.TCP) == frozenset()
    assert (reader.retries, reader.reason()) == (1, "")


def test_what_does_not_pass_is_read_from_proc_net_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    tries: list[list[Callable[[int], bytes]]] = [[interrupted]] * 6
    reader = scripted(monkeypatch, *tries, [done], [done])
    assert {item.inode for item in reader.read(Protocol.TCP)} == {_inode(listener)}
    assert reader.reason() == ""
    assert reader.read(Protocol.TCP) == frozenset()
    listener.close()


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ([refused(errno.ENOENT)], "module missing"),
        (errno.EPERM, "not permitted"),
        ([lambda _: b"garbage"], "cannot be read"),
        ([refused(errno.EINVAL)], "failed: Invalid argument"),
    ],
)
def test_a_kernel_without_sock_diag_is_read_through_proc_net_and_said_so(
    trouble: int | list[Callable[[int], bytes]], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    reader = scripted(monkeypatch, trouble)
    for _ in range(2):  # the second time without asking: the script has no more answers
        assert {item.inode for item in reader.read(Protocol.TCP)} == {_inode(listener)}
    assert "tcp: " in reader.reason()
    assert words in reader.reason()
    listener.close()


def test_sock_diag_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = scripted(monkeypatch, [refused(errno.ENOENT)], [done], [done])
    reader.read(Protocol.TCP)
    monkeypatch.setattr("guestagent.sock_diag.time.monotonic", lambda: 1e9)
    reader.read(Protocol.TCP)
    assert reader.reason() == ""


def test_without_any_table_nothing_is_said(tmp_path: Path) -> None:
    reader = SocketReader(proc=tmp_path, use_sock_diag=False)
    with pytest.raises(FileNotFoundError):
        reader.read(Protocol.TCP)
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_bytes(b"\xff\xfe")
    with pytest.raises(KernelDataError, match="not ASCII"):
        reader.read(Protocol.TCP)


def test_a_kernel_without_ipv6_has_ipv4(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(
        "  sl  local_address rem_address st\n   0: 0100007F:1F90 00000000:0000 0A 0:0 0:0 0 5 0 77 1\n"
    )
    (found,) = SocketReader(proc=tmp_path, use_sock_diag=False).read(Protocol.TCP)
    assert found == ListeningSocket(Protocol.TCP, found.address, 8080, 77, 5, SocketState.LISTENING)


def _inode(item: socket.socket) -> int:
    return Path(f"/proc/self/fd/{item.fileno()}").stat().st_ino
