from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostagent.forwards import ForwardState
from hostagent.instance_lock import try_lock
from tests.documents import problems
from tests.fakes.command_line import BOUND, COMMAND, on_terminal, run, running
from tests.fakes.instance_folder import unstarted_instance
from tests.fakes.running_instance import web_forward
from tests.fakes.screen import Screen
from tests.fakes.served_instance import ServedInstance, served_in_thread

FRAME_END = b"\x1b[?2026l"


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


def block(served: ServedInstance) -> None:
    """Another program takes the host port."""

    def change() -> None:
        served.instance.listed[0] = web_forward(ForwardState.CONFLICT, "taken by nginx")
        served.instance.events.append("forward", state="conflict")

    served.call(change)


def test_ports_as_text_and_as_json(served: ServedInstance, home: Path) -> None:
    assert b"listening  localhost:8080  0.0.0.0:8080  tcp" in run("ports", home=home).stdout
    (port,) = json.loads(run("ports", "box", "--json", home=home).stdout)["ports"]
    assert (port["state"], port["host"][0]) == ("listening", {"address": "127.0.0.1", "port": 8080})


def test_a_command_without_its_dashes_is_no_instance(home: Path) -> None:
    unstarted_instance(home / "box")
    done = run("shell", "ls", home=home)
    hint = b"the instances are: box; for a command: `hostagent shell [NAME] -- ls`"
    assert done.stderr == b"error: there is no instance 'ls'\nhint: " + hint + b"\n"


def test_ports_of_a_stopped_instance(home: Path) -> None:
    unstarted_instance(home / "box")
    done = run("ports", home=home)
    assert (done.returncode, done.stdout) == (1, b"")
    hint = b"start it with `hostagent up box`; how it ended is in `hostagent logs box`"
    assert done.stderr == b"error: the instance 'box' is not running\nhint: " + hint + b"\n"


def test_watching_elsewhere_prints_changes(served: ServedInstance, home: Path) -> None:
    with running("ports", "--watch", home=home) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"listening  tcp localhost:8080 -> 0.0.0.0:8080  python3 (812)\n"
        block(served)
        assert process.stdout.readline().startswith(b"conflict  tcp localhost:8080")
        process.send_signal(signal.SIGINT)
        assert process.wait(BOUND) == 130


def test_watching_as_json_is_a_listing_a_line(served: ServedInstance, home: Path) -> None:
    with running("ports", "-w", "--json", home=home) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["ports"][0]["state"] == "listening"
        block(served)
        assert json.loads(process.stdout.readline())["ports"][0]["state"] == "conflict"
        served.end()
        assert process.wait(BOUND) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b"box is off\n"


def test_watching_on_a_terminal_redraws_in_place(served: ServedInstance, home: Path) -> None:
    screen = Screen(30, 100)
    with on_terminal(*COMMAND, "ports", "--watch", home=home) as terminal:
        shown = terminal.expect(FRAME_END)
        screen.write(shown.decode())
        assert [line.split()[0] for line in screen.lines] == ["STATE", "listening"]
        block(served)
        shown += terminal.expect(FRAME_END)
        terminal.type(b"\x03")
        shown += terminal.expect(b"interrupted")
        assert terminal.end() == 130
    assert b"\x1b[2" not in shown.replace(b"\x1b[2A", b""), "nothing is erased before it is drawn"
    assert shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h") == 1, "the cursor is back"
    screen = Screen(30, 100)
    screen.write(shown.decode().split("^C")[0])
    assert [line.split()[:2] for line in screen.lines][:2] == [["STATE", "HOST"], ["conflict", "localhost:8080"]]


def test_a_window_of_another_size_is_drawn_to_at_once(served: ServedInstance, home: Path) -> None:
    with on_terminal(*COMMAND, "ports", "--watch", home=home, columns=40) as terminal:
        narrow = Screen(30, 40)
        narrow.write(terminal.expect(FRAME_END).decode())
        assert narrow.lines == ["STATE      HOST            GUEST", "listening  localhost:8080  0.0.0.0:8080"]
        terminal.resize(30, 100)
        wide = Screen(30, 100)
        wide.write(terminal.expect(FRAME_END).decode())
        assert wide.lines[0].endswith("TO GUEST  TO HOST")


def test_a_table_that_is_taller_than_the_terminal_is_cut(served: ServedInstance, home: Path) -> None:
    served.call(lambda: served.instance.listed.extend(web_forward(port=port) for port in range(1, 100)))
    with on_terminal(*COMMAND, "ports", "--watch", home=home, rows=10) as terminal:
        screen = Screen(10, 100)
        screen.write(terminal.expect(FRAME_END).decode())
        assert screen.lines[0].startswith("STATE")
        assert "and 93 more lines" in screen.lines[8]
        assert len(screen.lines) == 9


def test_colours_are_for_terminals_of_users_that_want_them(served: ServedInstance, home: Path) -> None:
    assert b"\x1b" not in run("ports", home=home).stdout
    with on_terminal(*COMMAND, "ports", home=home) as terminal:
        terminal.expect(b"\x1b[32mlistening\x1b[0m")
    with on_terminal("env", "NO_COLOR=1", *COMMAND, "ports", home=home) as terminal:
        assert b"\x1b" not in terminal.expect(b"listening")


def test_status_of_a_running_and_of_a_stopped_instance(served: ServedInstance, home: Path) -> None:
    document = json.loads(run("status", "--json", home=home).stdout)
    assert (document["name"], document["state"], document["accelerator"]["name"]) == ("box", "running", "tcg")
    assert [line for line in problems(document, "Status") if "not documented" not in line] == []
    assert [line for line in problems(document, "Instance") if "not documented" not in line] == []
    text = run("status", home=home).stdout.decode()
    assert "accelerator:\n  name: tcg\n  warning: no KVM\n" in text
    assert "\narch: x86_64\n" in text
    unstarted_instance(home / "old")
    stopped = json.loads(run("status", "old", "--json", home=home).stdout)
    assert (stopped["state"], stopped["directory"]) == ("stopped", str(home / "old"))


def test_the_list_is_as_documented(served: ServedInstance, home: Path) -> None:
    unstarted_instance(home / "old")
    document = json.loads(run("list", "--json", home=home).stdout)
    assert [instance["name"] for instance in document["instances"]] == ["box", "old"]
    assert problems(document, "InstanceList") == []


def test_without_a_name_the_candidates_are_named(home: Path) -> None:
    for name in ("one", "two"):
        unstarted_instance(home / name)
    done = run("status", home=home)
    assert done.returncode == 1
    assert b"one, two" in done.stderr


def test_a_reader_that_has_enough_is_no_error_to_talk_about(home: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with running("list", home=home, stdout=writing) as process:
        os.close(writing)
        assert process.wait(BOUND) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""
