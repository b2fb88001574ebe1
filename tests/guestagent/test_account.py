from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.account import find_account, login_environment, parse_environment


def entry(name: str, uid: int, shell: str = "/bin/bash") -> pwd.struct_passwd:
    return pwd.struct_passwd((name, "x", uid, uid, "", f"/home/{name}", shell))


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> list[pwd.struct_passwd]:
    """The guest's users, to be changed by a test."""
    entries = [
        pwd.struct_passwd(("root", "x", 0, 0, "", "/root", "/bin/bash")),
        entry("daemon", 2, "/usr/sbin/nologin"),
    ]
    monkeypatch.setattr(pwd, "getpwall", lambda: list(entries))
    return entries


def test_root_is_found_by_its_name() -> None:
    root = find_account("root")
    assert (root.name, root.uid, root.gid) == ("root", 0, 0)
    assert 0 in root.groups


def test_an_unknown_user_is_told_by_name() -> None:
    with pytest.raises(LookupError, match="no user 'no-such-user'"):
        find_account("no-such-user")


def test_nobody_named_gives_the_user_that_hostagent_made(tmp_path: Path) -> None:
    (tmp_path / "login-user").write_text("root\n")
    assert find_account("", tmp_path / "login-user").name == "root"


def test_nobody_named_gives_the_first_ordinary_user(users: list[pwd.struct_passwd], tmp_path: Path) -> None:
    users += [entry("second", 1_001), entry("service", 1_000, "/usr/sbin/nologin"), entry("nobody", 65_534)]
    assert find_account("", tmp_path / "none").name == "second"


def test_nobody_named_gives_root_where_there_is_nobody_else(users: list[pwd.struct_passwd], tmp_path: Path) -> None:
    assert find_account("", tmp_path / "none").uid == 0


def test_root_exists_without_a_user_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nobody(_key: object) -> pwd.struct_passwd:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwnam", nobody)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(pwd, "getpwall", list)
    for name in ("root", ""):
        account = find_account(name, tmp_path / "none")
        assert (account.uid, account.home, account.shell, account.login_arguments) == (0, "/", "/bin/sh", ("-sh",))


def test_the_environment_is_that_of_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/usr/local/lib/hostagent")
    (tmp_path / "environment").write_text("PATH=/snap/bin:/bin\nexport EDITOR='vi'\n")
    environment = login_environment(find_account("root"), tmp_path / "environment")
    assert environment["PATH"] == "/snap/bin:/bin"
    assert environment["EDITOR"] == "vi"
    assert (environment["USER"], environment["LOGNAME"], environment["HOME"]) == (
        "root",
        "root",
        pwd.getpwuid(0).pw_dir,
    )
    assert "LD_LIBRARY_PATH" not in environment


def test_the_environment_has_a_path_without_a_file(tmp_path: Path) -> None:
    assert "/usr/bin" in login_environment(find_account("root"), tmp_path / "none")["PATH"]


def test_lines_that_set_nothing_are_passed_over() -> None:
    assert parse_environment('# PATH=x\n\nA=1\nnonsense\n=x\nB = 2\nC="x y"\nD="\n') == {"A": "1", "C": "x y", "D": '"'}


@given(st.text())
def test_any_text_gives_variables_that_execve_takes(text: str) -> None:
    for key, value in parse_environment(text).items():
        assert key
        assert not set("=\0") & set(key)
        os.fsencode(value.encode(errors="replace"))
        assert "\0" not in value
