"""Sockets in the guest's file system: made with their mode and owner, and never in the place of somebody else's."""

from __future__ import annotations

import errno
import os
import pwd
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestagent.socket_file import SocketFileError, bind_socket_file
from protocol.listener_messages import UnixAddress

USER = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        yield sock


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_the_file_has_the_mode_that_was_asked_for_whatever_the_umask(
    sock: socket.socket, tmp_path: Path, mode: int
) -> None:
    before = os.umask(0o077)
    try:
        bind_socket_file(sock, UnixAddress(str(tmp_path / "s"), mode, USER))
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    found = (tmp_path / "s").stat()
    assert (found.st_mode & 0o777, found.st_uid) == (mode, os.geteuid())


def test_the_file_belongs_to_its_owner_or_is_not_there(sock: socket.socket, tmp_path: Path) -> None:
    """Only root can give files away."""
    nobody, path = pwd.getpwnam("nobody"), tmp_path / "s"
    if os.geteuid() != 0:
        with pytest.raises(SocketFileError, match="not permitted"):
            bind_socket_file(sock, UnixAddress(str(path), 0o600, "nobody"))
        assert not path.exists()
        return
    bind_socket_file(sock, UnixAddress(str(path), 0o600, "nobody"))
    found = path.stat()
    assert (found.st_uid, found.st_gid) == (nobody.pw_uid, nobody.pw_gid)


def test_the_file_of_a_dead_process_is_replaced(sock: socket.socket, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    os.utime(path, (0, 0))
    old = path.stat().st_ino
    keeper = path.with_name("keeper")
    os.link(path, keeper)  # so that the number is not used again
    bind_socket_file(sock, UnixAddress(str(path), 0o600, USER))
    assert path.stat().st_ino != old


def test_a_socket_on_which_somebody_listens_stays(sock: socket.socket, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as living, socket.socket(socket.AF_UNIX) as client:
        living.bind(str(path))
        living.listen()
        living.setblocking(False)
        os.utime(path, (0, 0))
        with pytest.raises(SocketFileError, match="in use by another program") as caught:
            bind_socket_file(sock, UnixAddress(str(path), 0o600, USER))
        assert caught.value.errno == errno.EADDRINUSE
        with pytest.raises(BlockingIOError):  # it was not connected to
            living.accept()
        client.connect(str(path))


@pytest.mark.parametrize("age", ["fresh", "old"])
def test_a_socket_of_a_program_that_is_about_to_listen_stays(sock: socket.socket, tmp_path: Path, age: str) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as starting, socket.socket(socket.AF_UNIX) as client:
        starting.bind(str(path))
        if age == "old":
            os.utime(path, (0, 0))
        with pytest.raises(SocketFileError, match="in use"):
            bind_socket_file(sock, UnixAddress(str(path), 0o600, USER))
        starting.listen()
        client.connect(str(path))


def test_a_fresh_file_without_a_socket_stays(sock: socket.socket, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(SocketFileError, match="in use"):
        bind_socket_file(sock, UnixAddress(str(path), 0o600, USER))
    assert path.is_socket()


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_socket_of_another_kind_stays(sock: socket.socket, tmp_path: Path, kind: socket.SocketKind) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, kind) as living:
        living.bind(str(path))
        os.utime(path, (0, 0))
        with pytest.raises(SocketFileError, match="in use"):
            bind_socket_file(sock, UnixAddress(str(path), 0o600, USER))
        assert path.is_socket()


def test_what_is_no_socket_stays(sock: socket.socket, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "folder", "link"):
        with pytest.raises(SocketFileError, match="no socket") as caught:
            bind_socket_file(sock, UnixAddress(str(tmp_path / name), 0o600, USER))
        assert caught.value.errno == errno.EADDRINUSE
    assert (tmp_path / "file").read_text() == "precious"
    assert (tmp_path / "link").is_symlink()


def test_a_missing_folder_and_a_missing_user_are_said(sock: socket.socket, tmp_path: Path) -> None:
    with pytest.raises(SocketFileError, match=r"there is no folder .*nowhere$") as caught:
        bind_socket_file(sock, UnixAddress(str(tmp_path / "nowhere" / "s"), 0o600, USER))
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(SocketFileError, match="the guest has no user 'nosuchuser'"):
        bind_socket_file(sock, UnixAddress(str(tmp_path / "s"), 0o600, "nosuchuser"))
    assert not (tmp_path / "s").exists()


def test_only_the_own_file_is_removed(sock: socket.socket, tmp_path: Path) -> None:
    path = tmp_path / "s"
    made = bind_socket_file(sock, UnixAddress(str(path), 0o600, USER))
    path.rename(tmp_path / "away")
    path.write_text("somebody else's")
    made.remove()
    assert path.exists()
    path.unlink()
    made.remove()
    (tmp_path / "away").rename(path)
    made.remove()
    assert not path.exists()
