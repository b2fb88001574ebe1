from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
AGENT = [sys.executable, "-m", "guestagent"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AGENT, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_version_is_one_line() -> None:
    done = run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("+source\n")


def test_the_self_test_passes() -> None:
    done = run("--self-test")
    assert (done.returncode, done.stdout, done.stderr) == (0, "self-test passed\n", "")


def test_a_channel_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    done = run("--channel", str(tmp_path))
    assert done.returncode == 70
    assert "<2>" in done.stderr
    assert "IsADirectoryError" in done.stderr


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "channel"))
        listener.listen(1)
        listener.settimeout(60)
        yield listener


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_agent_in_order(listener: socket.socket, number: signal.Signals) -> None:
    with subprocess.Popen([*AGENT, "--channel", listener.getsockname()], cwd=ROOT, stderr=subprocess.PIPE) as agent:
        try:
            host = listener.accept()[0]
            with host:
                host.settimeout(60)
                assert host.recv(1)  # it speaks first
                agent.send_signal(number)
                assert agent.wait(30) == 0
        finally:
            agent.kill()
        assert agent.stderr is not None
        assert b"Traceback" not in agent.stderr.read()


def test_a_killed_agent_is_back_on_the_channel(listener: socket.socket) -> None:
    with subprocess.Popen([*AGENT, "--channel", listener.getsockname()], cwd=ROOT) as supervisor:
        try:
            for _ in range(3):
                with listener.accept()[0] as host:
                    host.settimeout(60)
                    assert host.recv(1)
                    (agent,) = psutil.Process(supervisor.pid).children()
                    agent.kill()
                    while host.recv(65_536):
                        pass
            with listener.accept()[0]:
                supervisor.terminate()
                assert supervisor.wait(30) == 0
        finally:
            supervisor.kill()
