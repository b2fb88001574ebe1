"""Every path has its place, and a socket's path fits."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from hostagent.errors import UserError
from hostagent.paths import MAX_SOCKET_PATH, InstancePaths, cache, check_name, home


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HOSTAGENT_HOME", "HOSTAGENT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_places_without_any_choice(tmp_path: Path) -> None:
    assert (home(), cache()) == (tmp_path / ".hostagent", tmp_path / ".cache" / "hostagent")
    assert list(tmp_path.iterdir()) == [], "asking creates nothing"


def test_places_that_the_user_chose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOSTAGENT_HOME", "here")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert (home(), cache()) == (tmp_path / "here", Path("/var/cache/me/hostagent"))
    monkeypatch.setenv("HOSTAGENT_CACHE", "/cache")
    assert cache() == Path("/cache")
    monkeypatch.setenv("HOSTAGENT_HOME", "")
    assert home() == tmp_path / ".hostagent", "empty means not chosen"


@pytest.mark.parametrize("name", ["a", "0", "web-2", "debian_12.test", "x" * 63])
def test_good_names(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HOSTAGENT_HOME", "/h")
    assert check_name(name) == name
    assert InstancePaths.of(name).name == name


@pytest.mark.parametrize(
    "name", ["", "x" * 64, "Web", "-x", ".x", "..", "a/b", "a b", "a\n", "ü", "a\0", "../escape", "\u0661"]
)
def test_bad_names(name: str) -> None:
    with pytest.raises(UserError, match="usable instance name"):
        InstancePaths.of(name)


def test_the_longest_socket_path_that_is_allowed_can_be_bound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deep = str(tmp_path / "d")
    deep += "d" * (MAX_SOCKET_PATH - len(f"{deep}/x/channel.sock"))
    monkeypatch.setenv("HOSTAGENT_HOME", deep)
    paths = InstancePaths.of("x")
    assert len(bytes(paths.channel_socket)) == MAX_SOCKET_PATH
    paths.directory.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(paths.channel_socket))
    with pytest.raises(UserError, match=f"has {MAX_SOCKET_PATH + 1} bytes") as caught:
        InstancePaths.of("xy")
    assert "HOSTAGENT_HOME" in caught.value.hint


def test_a_path_is_measured_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTAGENT_HOME", "/" + "ü" * 45)
    with pytest.raises(UserError, match="bytes"):
        InstancePaths.of("web")


def test_every_file_is_another_one_below_the_folder() -> None:
    paths = InstancePaths.of("web")
    names = [name for name, value in vars(InstancePaths).items() if isinstance(value, property) and name != "name"]
    files = [getattr(paths, name) for name in names]
    assert len(set(files)) == len(names) > 10
    assert {file.parent for file in files} == {paths.directory}
