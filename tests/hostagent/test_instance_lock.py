"""A lock is held by one living process, and by nobody once that has died."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hostagent.errors import UserError
from hostagent.instance_lock import held_lock, is_locked, kill_host_agent, try_lock
from hostagent.paths import InstancePaths


def test_only_one_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    with try_lock(path) as first:
        assert first
        assert is_locked(path)
        with try_lock(path) as second:
            assert not second
    assert not is_locked(path)


def test_a_look_is_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    with path.open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert not is_locked(path)


def test_the_holder_is_killed_and_nobody_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOSTAGENT_HOME", str(tmp_path))
    paths = InstancePaths.of("web")
    paths.directory.mkdir()
    kill_host_agent(paths)  # there never was one
    with subprocess.Popen(["sleep", "100"]) as stranger:
        paths.lock.write_text(str(stranger.pid))  # of one that has died; its number is another's now
        kill_host_agent(paths)
        assert stranger.poll() is None
        with try_lock(paths.lock):
            kill_host_agent(paths)
        assert stranger.wait(30) == -signal.SIGKILL


def test_asking_creates_nothing(tmp_path: Path) -> None:
    is_locked(tmp_path / "lock")
    assert list(tmp_path.iterdir()) == []


def test_a_dead_holder_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    program = (
        "import fcntl, os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "fcntl.flock(fd, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert is_locked(path)
        holder.kill()
    assert not is_locked(path)


def test_a_second_host_agent_is_told(tmp_path: Path) -> None:
    paths = InstancePaths(tmp_path)
    with held_lock(paths), pytest.raises(UserError, match="running already"), held_lock(paths):
        pass
