from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.command_line import BOUND, COMMAND, on_terminal, run, running
from tests.fakes.instance_folder import unstarted_instance
from tests.fakes.served_instance import ServedInstance, served_in_thread

NAME = "box"


@pytest.fixture
def home() -> Iterator[Path]:
    # Not tmp_path: a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="ha-") as folder:
        yield Path(folder)


@pytest.fixture
def served(home: Path) -> Iterator[ServedInstance]:
    unstarted_instance(home / NAME)
    with served_in_thread(home / NAME / "api.sock") as instance:
        yield instance


def test_output_error_output_and_status_are_the_commands(served: ServedInstance, home: Path) -> None:
    done = run("shell", NAME, "--", "sh", "-c", "echo out; echo err >&2; exit 7", home=home, stdin=subprocess.DEVNULL)
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 7)


def test_the_command_is_run_without_a_shell_in_between(served: ServedInstance, home: Path) -> None:
    words = ["a b", "$HOME", "'", "--", "-x", ""]
    done = run("shell", "--", "printf", "[%s]", *words, home=home)
    assert done.stdout.decode() == "".join(f"[{word}]" for word in words)


def test_death_by_signal_is_shown_as_a_shell_does(served: ServedInstance, home: Path) -> None:
    assert run("shell", "--", "sh", "-c", "kill -TERM $$", home=home).returncode == 128 + signal.SIGTERM


def test_megabytes_go_through_unchanged(served: ServedInstance, home: Path) -> None:
    data = os.urandom(3_000_000)
    done = run("shell", "--", "cat", home=home, input=data)
    assert done.stdout == data
    assert done.returncode == 0


def test_input_may_be_a_file(served: ServedInstance, home: Path) -> None:
    with (home / NAME / "input").open("wb+") as file:
        file.write(b"x" * 100_000)
        file.seek(0)
        assert run("shell", "--", "wc", "-c", home=home, stdin=file).stdout == b"100000\n"


def test_input_may_be_closed(served: ServedInstance, home: Path) -> None:
    done = run("shell", "--", "cat", home=home, preexec_fn=lambda: os.close(0))
    assert (done.stdout, done.returncode) == (b"", 0)


def test_shared_files_stay_as_blocking_as_they_were(served: ServedInstance, home: Path) -> None:
    near, far = socket.socketpair()
    with near, far:
        with running("shell", "--", "sh", "-c", "read line; echo $line", home=home, stdin=far, stdout=far) as process:
            near.sendall(b"hello\n")
            near.settimeout(BOUND)
            assert near.recv(100) == b"hello\n"
            assert not fcntl.fcntl(far.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK
            assert process.wait(BOUND) == 0


def test_an_interrupt_is_passed_on(served: ServedInstance, home: Path) -> None:
    script = "trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.05; done"
    with running("shell", "--", "sh", "-c", script, home=home) as process:
        assert process.stdout is not None
        assert process.stdout.read(6) == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read(7) == b"caught\n"
        assert process.wait(BOUND) == 3


def test_an_interrupt_does_not_wait_behind_input_that_nobody_reads(served: ServedInstance, home: Path) -> None:
    with running("shell", "--", "sh", "-c", "echo ready >&2; exec sleep 100", home=home) as process:
        assert process.stderr is not None
        assert process.stderr.read(6) == b"ready\n"
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        stuck = 0
        while stuck < 3:  # fill every buffer on the way
            _, writable, _ = _select_writable(process.stdin.fileno())
            stuck = 0 if writable and os.write(process.stdin.fileno(), bytes(65_536)) else stuck + 1
        process.send_signal(signal.SIGINT)
        assert process.wait(BOUND) == 128 + signal.SIGINT


def _select_writable(descriptor: int) -> tuple[list[int], list[int], list[int]]:
    import select

    return select.select([], [descriptor], [], 0.2)


def test_the_second_interrupt_leaves_and_ends_the_command(served: ServedInstance, home: Path) -> None:
    with running("shell", "--", "sh", "-c", "trap '' INT; echo ready; exec sleep 100", home=home) as process:
        assert process.stdout is not None
        assert process.stdout.read(6) == b"ready\n"
        process.send_signal(signal.SIGINT)
        execution = served.instance.executions[0]
        _until(lambda: execution.signals == ["INT"])
        process.send_signal(signal.SIGINT)
        assert process.wait(BOUND) == 130
        _until(lambda: served.instance.left == 1)
        assert execution.process.returncode == -signal.SIGKILL


def _until(condition: object) -> None:
    """Wait for something that another thread is about to do."""
    assert callable(condition)
    done = threading.Event()
    for _ in range(400):
        if condition():
            return
        done.wait(0.025)
    raise AssertionError("it did not happen")


def test_termination_ends_the_command_too(served: ServedInstance, home: Path) -> None:
    with running("shell", "--", "sh", "-c", "echo ready; exec sleep 100", home=home) as process:
        assert process.stdout is not None
        assert process.stdout.read(6) == b"ready\n"
        process.terminate()
        assert process.wait(BOUND) == 128 + signal.SIGTERM
        _until(lambda: served.instance.left == 1)


def test_a_client_that_was_killed_takes_its_command_along(served: ServedInstance, home: Path) -> None:
    with running("shell", "--", "sh", "-c", "echo ready; exec sleep 100", home=home) as process:
        assert process.stdout is not None
        assert process.stdout.read(6) == b"ready\n"
        process.kill()
        _until(lambda: served.instance.left == 1)


def test_a_reader_that_leaves_ends_the_command(served: ServedInstance, home: Path) -> None:
    with running("shell", "--", "yes", home=home) as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"y\n"
        process.stdout.close()
        assert process.wait(BOUND) == 141
        _until(lambda: served.instance.left == 1)


def test_a_command_that_is_not_there_is_the_users_to_mend(served: ServedInstance, home: Path) -> None:
    done = run("shell", "--", "no-such-command", home=home)
    assert done.returncode == 127
    assert done.stderr.startswith(b"error: 'no-such-command' cannot be started")
    assert b"hint: check its name" in done.stderr


def test_a_stopped_instance_says_how_to_start_it(home: Path) -> None:
    unstarted_instance(home / NAME)
    done = run("shell", "--", "true", home=home)
    assert done.returncode == 1
    assert b"hint: start it with `hostagent up box`" in done.stderr


def test_an_agent_that_ends_ends_the_session(served: ServedInstance, home: Path) -> None:
    with running("shell", "--", "sh", "-c", "echo ready; exec sleep 100", home=home) as process:
        assert process.stdout is not None
        assert process.stdout.read(6) == b"ready\n"
        served.end()
        assert process.stderr is not None
        assert b"the connection to the command was lost" in process.stderr.read()
        assert process.wait(BOUND) == 1


def test_words_without_separator_are_a_usage_error(home: Path) -> None:
    done = run("shell", NAME, "uname", "-a", home=home)
    assert done.returncode == 2
    assert b"Write -- before the command" in done.stderr


SHELL = (*COMMAND, "shell")


def test_a_terminal_gets_a_login_shell_of_its_size(served: ServedInstance, home: Path) -> None:
    with on_terminal(*SHELL, home=home, rows=33, columns=111) as terminal:
        terminal.type(b"stty size; echo $TERM\r")
        terminal.expect(b"33 111\r\n")
        terminal.expect(b"xterm\r\n")
        assert terminal.is_raw
        terminal.type(b"exit 5\r")
        assert terminal.end() == 5
        assert terminal.mode == terminal.before


def test_changes_of_size_reach_the_guest(served: ServedInstance, home: Path) -> None:
    script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done"
    with on_terminal(*SHELL, NAME, "--", "sh", "-c", script, home=home) as terminal:
        terminal.expect(b"ready\r\n")
        terminal.resize(50, 140)
        terminal.expect(b"50 140\r\n")


def test_control_keys_go_to_the_guest(served: ServedInstance, home: Path) -> None:
    script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done"
    with on_terminal(*SHELL, "--", "sh", "-c", script, home=home) as terminal:
        terminal.expect(b"ready\r\n")
        terminal.type(b"\x03")
        terminal.expect(b"caught\r\n")
        assert terminal.end() == 9
        assert terminal.mode == terminal.before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_the_terminal_is_restored_when_we_are_ended(served: ServedInstance, home: Path, number: signal.Signals) -> None:
    with on_terminal(*SHELL, "--", "sh", "-c", "trap '' INT; echo ready; exec sleep 100", home=home) as terminal:
        terminal.expect(b"ready\r\n")
        assert terminal.is_raw
        terminal.process.send_signal(number)
        if number == signal.SIGINT:
            _until(lambda: served.instance.executions[0].signals == ["INT"])
            terminal.process.send_signal(number)
        assert terminal.end() == 128 + number
        assert terminal.mode == terminal.before


def test_the_terminal_is_restored_when_the_agent_dies(served: ServedInstance, home: Path) -> None:
    with on_terminal(*SHELL, "--", "sh", "-c", "echo ready; exec sleep 100", home=home) as terminal:
        terminal.expect(b"ready\r\n")
        served.end()
        assert terminal.end() == 1
        assert terminal.mode == terminal.before
        terminal.expect(b"the connection to the command was lost\r\n")


def test_without_a_terminal_when_asked_for(served: ServedInstance, home: Path) -> None:
    with on_terminal(*SHELL, "-T", "--", "sh", "-c", "test -t 1 || echo pipe", home=home) as terminal:
        terminal.expect(b"pipe\r\n")
        assert not terminal.is_raw
        assert terminal.end() == 0


def test_with_a_terminal_when_asked_for(served: ServedInstance, home: Path) -> None:
    done = run("shell", "-t", "--", "sh", "-c", "test -t 1 && echo terminal", home=home, stdin=subprocess.DEVNULL)
    assert done.stdout == b"terminal\r\n"


def test_in_the_background_it_is_not_stopped_for_reading_the_terminal(served: ServedInstance, home: Path) -> None:
    bash = shutil.which("bash")
    assert bash, "install bash: it is the shell whose job control is tried here"
    script = f"set -m; {' '.join(SHELL)} -- sh -c 'cat; echo served' & wait $!; echo status=$?"
    with on_terminal(bash, "-c", script, home=home) as terminal:
        assert b"Stopped" not in terminal.expect(b"status=0\r\n")
