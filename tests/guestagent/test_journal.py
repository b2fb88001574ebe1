from __future__ import annotations

import logging
import socket
import sys
from pathlib import Path

import pytest

from guestagent.journal import JournalFormatter, notify_ready


@pytest.mark.parametrize(
    ("level", "prefix"),
    [(logging.DEBUG, "<7>"), (logging.INFO, "<6>"), (logging.WARNING, "<4>"), (logging.ERROR, "<3>"),
     (logging.CRITICAL, "<2>")],
)  # fmt: skip
def test_a_line_begins_with_its_priority(level: int, prefix: str) -> None:
    record = logging.LogRecord("guestagent", level, "", 0, "%d ports", (3,), None)
    assert JournalFormatter().format(record) == f"{prefix}3 ports"


def test_each_line_of_a_traceback_has_the_priority() -> None:
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        record = logging.LogRecord("guestagent", logging.ERROR, "", 0, "bug", (), sys.exc_info())
    lines = JournalFormatter().format(record).splitlines()
    assert len(lines) > 2
    assert all(line.startswith("<3>") for line in lines)


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_once_that_the_agent_is_ready(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, abstract: bool
) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + path if abstract else path)
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{path}" if abstract else path)
        notify_ready()
        assert systemd.recv(100) == b"READY=1"
        notify_ready()  # the variable is gone: commands must not speak for the agent
        with pytest.raises(BlockingIOError):
            systemd.recv(100)
