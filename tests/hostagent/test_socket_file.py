"""Unix sockets on the host: the user's alone, and never in the place of somebody else's."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from hostagent.socket_file import listen_at
from tests.fakes.connected_channel import nothing_left_open


def test_the_file_is_the_users_alone_whatever_the_umask_and_goes_with_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "sock" / "docker.sock"
    before = os.umask(0)
    try:
        with nothing_left_open(), listen_at(str(path)), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            assert path.stat().st_mode & 0o777 == 0o600
            assert path.parent.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)
    assert not path.exists()


def test_the_file_of_a_dead_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    os.utime(path, (0, 0))
    with listen_at(str(path)), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_socket_on_which_somebody_listens_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listen_at(str(path)) as server, socket.socket(socket.AF_UNIX) as client:
        os.utime(path, (0, 0))
        with nothing_left_open(), pytest.raises(OSError, match="in use") as caught:
            listen_at(str(path))
        assert caught.value.errno == errno.EADDRINUSE
        with pytest.raises(BlockingIOError):  # it was not connected to
            server.accept()
        client.connect(str(path))


@pytest.mark.parametrize("age", ["fresh", "old"])
def test_a_socket_of_a_program_that_is_about_to_listen_stays(tmp_path: Path, age: str) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as starting, socket.socket(socket.AF_UNIX) as client:
        starting.bind(str(path))
        if age == "old":
            os.utime(path, (0, 0))
        with nothing_left_open(), pytest.raises(OSError, match="in use"):
            listen_at(str(path))
        starting.listen()
        client.connect(str(path))


def test_a_fresh_file_without_a_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(OSError, match="in use"):
        listen_at(str(path))
    assert path.is_socket()


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_socket_of_another_kind_stays(tmp_path: Path, kind: socket.SocketKind) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, kind) as living:
        living.bind(str(path))
        os.utime(path, (0, 0))
        with nothing_left_open(), pytest.raises(OSError, match="in use"):
            listen_at(str(path))
        assert path.is_socket()


def test_all_folders_that_are_made_are_the_users_alone(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir(mode=0o755)
    there.chmod(0o755)
    with listen_at(str(there / "a" / "b" / "s")):
        modes = {name: (there / name).stat().st_mode & 0o777 for name in ("", "a", "a/b")}
    assert modes == {"": 0o755, "a": 0o700, "a/b": 0o700}


def test_what_is_no_socket_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "folder", "link"):
        with nothing_left_open(), pytest.raises(OSError, match="no socket") as caught:
            listen_at(str(tmp_path / name))
        assert caught.value.errno == errno.EEXIST
    assert (tmp_path / "file").read_text() == "precious"
    assert (tmp_path / "link").is_symlink()


def test_only_the_own_file_goes_with_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listen_at(str(path)):
        path.rename(tmp_path / "away")
        path.write_text("somebody else's")
    assert path.exists()
    with pytest.raises(OSError, match="no socket"):
        listen_at(str(path))


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with nothing_left_open(), pytest.raises(OSError, match=r"exists|Not a directory"):
        listen_at(str(tmp_path / "file" / "s"))
