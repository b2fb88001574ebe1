from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hostagent import __main__, commands_show
from hostagent.errors import EndedBySignalError, UserError
from hostagent.instances import InstanceSummary
from tests.fakes.command_line import COMMAND, run
from tests.fakes.instance_folder import unstarted_instance


@pytest.fixture(autouse=True)
def _no_instances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTAGENT_HOME", str(tmp_path))


def failing(exc: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def fail() -> list[InstanceSummary]:
        raise exc

    monkeypatch.setattr(commands_show, "list_instances", fail)
    return __main__.main(["list"])


def test_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["list"]) == 0
    assert "hostagent up" in capsys.readouterr().out


def test_a_users_error_has_a_message_and_a_hint_without_escape_sequences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(UserError("no \x1b[2Jroom\nat all", "make\x07 room"), monkeypatch) == 1
    assert capsys.readouterr().err == "error: no room\nat all\nhint: make\\x07 room\n"


def test_an_error_of_one_task_is_shown_as_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grouped = ExceptionGroup("tasks", [ExceptionGroup("inner", [UserError("no room", "make room")])])
    assert failing(grouped, monkeypatch) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_a_bug_shows_its_traceback_and_where_to_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(LookupError("lost"), monkeypatch) == 70
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "LookupError: lost" in shown
    assert "report" in shown


@pytest.mark.parametrize(
    "exc",
    [KeyboardInterrupt(), BaseExceptionGroup("tasks", [KeyboardInterrupt()]), EndedBySignalError(signal.SIGINT)],
)
def test_an_interrupt(exc: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(exc, monkeypatch) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


@pytest.mark.parametrize("arguments", [["--no-such-option"], ["list", "too", "many"], ["nothing"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(arguments) == 2
    assert "Usage: hostagent" in capsys.readouterr().err


def test_output_in_an_encoding_that_lacks_a_character(tmp_path: Path) -> None:
    unstarted_instance(tmp_path / "ünïcode")
    done = run("list", home=tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert b"\\xfcn\\xefcode" in done.stdout


@pytest.mark.parametrize("arguments", [["list"], ["--help"], ["schema"], ["doctor", "--json"]])
def test_output_onto_a_full_disk(arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run([*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: the output cannot be written: No space left on device\nhint: ")
    assert done.stderr.count(b"\n") == 2


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_standard_streams_that_are_closed(closed: tuple[int, ...], tmp_path: Path) -> None:
    """What would be printed goes nowhere, and above all not into what was opened in their place."""
    missing = " ".join(f"{descriptor}>&-" for descriptor in closed)
    script = f'exec "$0" -m hostagent list --json {missing}'
    done = subprocess.run(["sh", "-c", script, sys.executable], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert bool(done.stdout) == (1 not in closed)


def test_help_that_nobody_reads() -> None:
    with subprocess.Popen([sys.executable, "-m", "hostagent", "--help"], stdout=-1, stderr=-1) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
