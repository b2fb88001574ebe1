from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hostagent import commands_lifecycle, shutdown, startup
from hostagent.cli import cli
from hostagent.instance_lock import try_lock
from hostagent.paths import InstancePaths
from tests.documents import problems
from tests.fakes.command_line import COMMAND, on_terminal, run
from tests.fakes.instance_folder import unstarted_instance
from tests.fakes.served_instance import ServedInstance, served_in_thread

PHASE = {"event": "phase", "phase": "qemu", "state": "done", "seconds": 0.5, "detail": "tcg"}


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ha-") as folder:
        yield Path(folder)


@pytest.fixture
def served(home: Path) -> Iterator[ServedInstance]:
    directory = home / "box"
    directory.mkdir()
    with try_lock(directory / "lock"), served_in_thread(directory / "api.sock") as instance:
        yield instance


@pytest.fixture
def started(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """`startup.up` in the form of what it was asked for; it finds the instance running."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setenv("HOSTAGENT_HOME", str(home))

    def up(
        argument: str | None,
        *,
        name: str | None,
        foreground: bool,
        show: Callable[[dict[str, object]], None],
        ended_by: Collection[int],
    ) -> InstancePaths:
        asked.append({"argument": argument, "name": name, "foreground": foreground})
        show(dict(PHASE))
        show({"event": "ready", "name": "box"})
        return InstancePaths.of("box")

    monkeypatch.setattr(startup, "up", up)
    return asked


def test_up_ends_with_the_ports_and_the_next_step(served: ServedInstance, started: list[dict[str, Any]]) -> None:
    shown = CliRunner().invoke(cli, ["up", "default", "--name", "box"]).output.splitlines()
    assert started == [{"argument": "default", "name": "box", "foreground": False}]
    assert shown[0] == "QEMU             0.5 s  tcg"
    assert any(line.startswith("listening  localhost:8080") for line in shown)
    assert shown[-1] == "open a shell with: hostagent shell box"


def test_up_as_json_is_one_document_a_line(served: ServedInstance, started: list[dict[str, Any]]) -> None:
    lines = CliRunner().invoke(cli, ["up", "--json"]).output.splitlines()
    first, ready, last = (json.loads(line) for line in lines)
    assert (first, ready["event"], last["event"]) == (PHASE, "ready", "ports")
    assert last["ports"][0]["state"] == "listening"


def test_up_in_the_foreground_asks_nobody_afterwards(home: Path, started: list[dict[str, Any]]) -> None:
    result = CliRunner().invoke(cli, ["up", "--foreground"])
    assert result.exit_code == 0, result.output
    assert started[0]["foreground"] is True
    assert result.output.splitlines()[-1].startswith("box is ready; Ctrl-C stops it.")


def test_down_says_what_was_needed(served: ServedInstance, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTAGENT_HOME", str(home))
    monkeypatch.setattr(shutdown, "END_BOUND", 0.0)  # the fake answers and does not end
    assert CliRunner().invoke(cli, ["down"]).output.endswith("by way of: guest agent\n")
    document = json.loads(CliRunner().invoke(cli, ["down", "box", "--force", "--json"]).stdout)
    assert (document["name"], document["stopped_by"]) == ("box", "kill")
    assert problems(document, "Shutdown") == []
    assert served.instance.stops == [False, True]


def test_down_of_a_stopped_instance_is_done(home: Path) -> None:
    unstarted_instance(home / "box")
    done = run("down", home=home)
    assert (done.returncode, done.stdout) == (0, b"box was not running\n")
    assert commands_lifecycle.NOT_RUNNING in json.loads(run("down", "--json", home=home).stdout)["stopped_by"]


def test_delete_asks_on_a_terminal(home: Path) -> None:
    for answer, left in ((b"n\r", True), (b"y\r", False)):
        unstarted_instance(home / "box")
        with on_terminal(*COMMAND, "delete", "box", home=home) as terminal:
            terminal.expect(b"everything on its disk? [y/N]")
            terminal.type(answer)
            terminal.expect(b"nothing was deleted" if left else b"box is deleted")
            assert terminal.end() == (1 if left else 0)
        assert (home / "box").exists() is left


def test_delete_without_anybody_to_ask_deletes_nothing(home: Path) -> None:
    unstarted_instance(home / "box")
    done = run("delete", "box", home=home, input=b"y\n")
    assert done.returncode == 1
    assert b"--yes" in done.stderr
    assert (home / "box").exists()
    assert run("delete", "--yes", "box", home=home).returncode == 0
    assert not (home / "box").exists()
