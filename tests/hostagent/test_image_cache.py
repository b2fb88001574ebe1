"""Entries are locked between processes in a way that can be cancelled; disk errors become advice."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import trio
import trio.testing

from hostagent.errors import UserError
from hostagent.image_cache import disk_errors, entry_lock
from tests.fakes.silent_progress import SilentProgress


class Spoken:
    """Keeps what was reported."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def update(self, step: str, done: int, total: int | None) -> None:
        self.steps.append(step)


async def test_the_second_waits_for_the_first_and_says_so(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    spoken, order = Spoken(), []

    async def second() -> None:
        async with entry_lock(tmp_path / "lock", "the image", spoken):
            order.append("second")

    async with trio.open_nursery() as nursery:
        async with entry_lock(tmp_path / "lock", "the image", SilentProgress()):
            nursery.start_soon(second)
            await trio.sleep(10)
            order.append("first")
    assert order == ["first", "second"]
    assert spoken.steps[0] == "waiting for another hostagent that prepares the image"


async def test_waiting_can_be_cancelled(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with entry_lock(tmp_path / "lock", "the image", SilentProgress()):
        with trio.move_on_after(5) as scope:
            async with entry_lock(tmp_path / "lock", "the image", SilentProgress()):
                pytest.fail("two hold the lock")
    assert scope.cancelled_caught


async def test_the_lock_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="in the middle"):
        async with entry_lock(tmp_path / "lock", "the image", SilentProgress()):
            raise ValueError("in the middle")
    async with entry_lock(tmp_path / "lock", "the image", SilentProgress()):
        pass


async def test_a_cache_below_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="not a folder"):
        async with entry_lock(tmp_path / "file" / "below" / "lock", "the image", SilentProgress()):
            pass


async def test_a_cache_where_there_can_be_no_folder_is_said() -> None:
    with pytest.raises(UserError, match="/proc/no-such cannot be made") as caught:
        async with entry_lock(Path("/proc/no-such/lock"), "the image", SilentProgress()):
            pass
    assert "HOSTAGENT_CACHE" in caught.value.hint


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_what_the_user_can_mend_names_the_place_and_the_next_step(number: int) -> None:
    with pytest.raises(UserError, match="/some/place") as caught, disk_errors(Path("/some/place")):
        raise OSError(number, "as the system calls it")
    assert "HOSTAGENT_CACHE" in caught.value.hint


def test_other_errors_pass() -> None:
    with pytest.raises(OSError, match="broken"), disk_errors(Path("/some/place")):
        raise OSError(errno.EIO, "broken")
