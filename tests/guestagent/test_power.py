from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from guestagent.power import shut_down

ROOT = Path(__file__).resolve().parents[2]

IN_A_NAMESPACE = """
import os, sys, time
from pathlib import Path
assert os.getpid() == 1  # a process namespace of our own, or none of this may happen
if child := os.fork():
    print(os.waitpid(child, 0)[1])
else:
    import trio
    from guestagent.power import shut_down
    trio.run(lambda: shut_down(reboot=sys.argv[1] == "reboot", systemd=Path("/nonexistent")))
    sys.exit(3)
"""


@pytest.mark.parametrize(("verb", "number"), [("poweroff", signal.SIGINT), ("reboot", signal.SIGHUP)])
def test_without_systemd_the_kernel_is_told(verb: str, number: signal.Signals) -> None:
    """In a process namespace, reboot(2) ends the first process with a signal that says what was asked for.

    In a user namespace of its own the test could not even reach the machine if it wanted to.
    """
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child",
         sys.executable, "-c", IN_A_NAMESPACE, verb],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode in (-number, 128 + number), done.stderr


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemctl that writes down its arguments; returns where."""
    said = tmp_path / "said"
    program = tmp_path / "systemctl"
    program.write_text(f'#!/bin/sh\necho "$@" > {said}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return said


@pytest.mark.parametrize(("reboot", "verb"), [(False, "poweroff"), (True, "reboot")])
async def test_systemd_is_asked_where_it_runs(systemctl: Path, tmp_path: Path, reboot: bool, verb: str) -> None:
    await shut_down(reboot=reboot, systemd=tmp_path)
    assert systemctl.read_text() == f"--no-block {verb}\n"
