"""The console's last lines are text and nothing else."""

from __future__ import annotations

from pathlib import Path

from hostagent.serial_log import last_lines


def test_the_last_lines_that_say_something(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    log.write_bytes(b"one\r\n\r\ntwo\r\n  \r\nthree")
    assert last_lines(log, 2) == ["two", "three"]


def test_no_escape_sequence_reaches_the_terminal(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    log.write_bytes(b"\x1b[31mred\x1b[0m \x1b]0;title\x07\x00\x9b5nend\n")
    assert all(c.isprintable() for line in last_lines(log, 9) for c in line)
    assert "red" in last_lines(log, 9)[0]


def test_a_missing_log_has_no_lines(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "none", 3) == []


def test_a_huge_log_is_read_from_its_end(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    log.write_bytes(b"x" * 5_000_000 + b"\nend\n")
    assert last_lines(log, 1) == ["end"]
