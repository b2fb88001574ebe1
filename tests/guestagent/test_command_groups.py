from __future__ import annotations

import errno
import os
import subprocess
import time
from pathlib import Path

import pytest

from guestagent.command_groups import CommandGroups, LeftCommands, children_since


def ticks_now() -> int:
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def test_what_runs_is_written_down_until_it_has_ended() -> None:
    groups = CommandGroups()
    with groups.reserve() as first:
        first.started(101)
        with groups.reserve() as second:
            second.started(102)
        assert groups.take() == LeftCommands((101,), None)
    assert groups.take() == LeftCommands((), None)


def test_a_start_under_way_is_known_by_its_time() -> None:
    groups = CommandGroups()
    before = ticks_now()
    with groups.reserve(), groups.reserve():
        left = groups.take()
    assert left.groups == ()
    assert left.starting_since is not None
    assert before <= left.starting_since <= ticks_now()


def test_places_are_used_again_and_bounded() -> None:
    groups = CommandGroups(slots=2)
    for _ in range(5):
        with groups.reserve(), groups.reserve(), pytest.raises(OSError, match="too many commands") as caught:
            groups.reserve()
        assert caught.value.errno == errno.EAGAIN


def test_a_child_process_writes_and_its_parent_reads() -> None:
    groups = CommandGroups()
    if (child := os.fork()) == 0:
        groups.reserve().started(4711)
        os._exit(0)
    os.waitpid(child, 0)
    assert groups.take().groups == (4711,)
    assert groups.take().groups == ()


def test_children_since_a_time_are_found() -> None:
    before = ticks_now()
    with subprocess.Popen(["sleep", "100"]) as child:
        try:
            assert child.pid in children_since(os.getpid(), before)
            assert child.pid not in children_since(os.getpid(), ticks_now() + 1000)
            assert child.pid not in children_since(os.getppid(), before)
        finally:
            child.kill()


def test_a_name_cannot_pretend_to_be_fields(tmp_path: Path) -> None:
    for pid, name, parent in ((11, "sh", 7), (12, "a) S 7 (b", 8), (13, "x) S 8 1", 7)):
        (tmp_path / str(pid)).mkdir()
        fields = " ".join(["S", str(parent), *["0"] * 17, "500", "0"])
        (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) {fields}\n")
    (tmp_path / "14").mkdir()  # it has ended since
    (tmp_path / "self").mkdir()
    assert set(children_since(7, 500, tmp_path)) == {11, 13}
    assert set(children_since(7, 501, tmp_path)) == set()
