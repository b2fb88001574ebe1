from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hostagent.commands_logs import tail
from tests.fakes.command_line import BOUND, run, running
from tests.fakes.instance_folder import unstarted_instance
from tests.fakes.served_instance import served_in_thread


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ha-") as folder:
        unstarted_instance(Path(folder) / "box")
        yield Path(folder)


def test_the_agents_log_is_readable(home: Path) -> None:
    log = home / "box" / "agent.log"
    log.write_bytes(b'{"id":1,"time":0,"kind":"log","level":"warning","message":"slow \\u001b[2J"}\n{"torn \x1b[2J')
    shown = run("logs", home=home).stdout.decode()
    assert shown.splitlines()[0].endswith("  log      level=warning slow")
    assert shown.splitlines()[1] == '{"torn '
    assert run("logs", "--raw", home=home).stdout == log.read_bytes() + b"\n"


def test_other_logs_are_shown_without_escape_sequences(home: Path) -> None:
    (home / "box" / "serial.log").write_bytes(b"[\x1b[0;32m  OK  \x1b[0m] up\r\nlogin: \xff")
    (home / "box" / "qemu.log").write_bytes(b"one\ntwo\nthree\n")
    assert run("logs", "--serial", home=home).stdout.decode() == "[  OK  ] up\nlogin: \N{REPLACEMENT CHARACTER}\n"
    assert run("logs", "--qemu", "-n", "2", home=home).stdout == b"two\nthree\n"


def test_a_log_that_is_not_there_yet(home: Path) -> None:
    done = run("logs", "--serial", home=home)
    assert done.returncode == 1
    assert b"hint: it begins with `hostagent up box`" in done.stderr


def test_following_goes_on_with_what_is_added_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    path.write_text("1\n2\n3")
    steps: Iterator[Callable[[], object]] = iter(
        [
            lambda: path.write_text("1\n2\n3 and a half\n4\nunfinished"),
            lambda: path.rename(tmp_path / "log.1"),
            lambda: path.write_text("5\n"),
            lambda: None,
            lambda: path.write_text(""),
            lambda: path.write_text("6\n"),
        ]
    )

    class Done(Exception):  # noqa: N818
        pass

    def instead_of_sleeping(seconds: float) -> None:
        step = next(steps, None)
        if step is None:
            raise Done
        step()

    monkeypatch.setattr("hostagent.commands_logs.time.sleep", instead_of_sleeping)
    seen: list[str] = []
    with pytest.raises(Done):
        seen.extend(tail(path, 2, follow=True))
    assert seen == ["1", "2", "3 and a half", "4", "unfinished", "5", "6"]


def test_following_waits_for_the_file(home: Path) -> None:
    with running("logs", "--qemu", "-f", home=home) as process:
        (home / "box" / "qemu.log").write_text("first\n")
        assert process.stdout is not None
        assert process.stdout.readline() == b"first\n"
        process.terminate()
        process.wait(BOUND)


def test_events(home: Path) -> None:
    with served_in_thread(home / "box" / "api.sock") as served:
        served.call(lambda: served.instance.events.append("guest", agent="present"))
        served.call(lambda: served.instance.events.append("guest", agent="away"))
        assert run("events", home=home).stdout.decode().splitlines()[0].endswith("  guest    agent=present")
        (line,) = run("events", "--json", "--after", "1", home=home).stdout.splitlines()
        assert json.loads(line)["agent"] == "away"
        with running("events", "-f", "--json", home=home) as process:
            assert process.stdout is not None
            assert [json.loads(process.stdout.readline())["id"] for _ in range(2)] == [1, 2]
            served.end()
            assert process.wait(BOUND) == 0
