"""The pid file: its lock is the truth."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hostagent.errors import UserError
from hostagent.qemu.pid_file import ProcessIdentity, hold_pid_file, is_held, living_process

SOMEONE = ProcessIdentity(4711, 1795451112.5)


def test_nobody_without_a_file_or_without_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    assert living_process(path) is None
    path.write_text('{"pid": 1, "started": 0}')
    assert living_process(path) is None
    assert not is_held(path)


def test_the_lock_lives_as_long_as_whoever_inherited_it(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text('{"pid": 123456789, "started": 0, "longer": "than what replaces it"}')
    with hold_pid_file(path) as pid_file:
        assert is_held(path)
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[pid_file.fd])
        pid_file.record(SOMEONE)
    with child:
        assert living_process(path) == SOMEONE
        with pytest.raises(UserError, match="already running"), hold_pid_file(path):
            raise AssertionError("must not get here")
        assert living_process(path) == SOMEONE, "the second attempt changed nothing"
        child.kill()
    assert living_process(path) is None
    with hold_pid_file(path):
        assert path.read_bytes() == b""


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x", "started": 0}', b'{"pid": 1}', b"\xff"])
def test_a_holder_that_is_not_recorded_is_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pid"
    with hold_pid_file(path) as pid_file:
        os.pwrite(pid_file.fd, content, 0)
        assert is_held(path)
        with pytest.raises(UserError, match="does not say which process") as caught:
            living_process(path)
    assert "fuser" in caught.value.hint
