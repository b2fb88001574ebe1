"""Sources that cannot be opened, die and come back."""

from __future__ import annotations

import errno
import itertools
from pathlib import Path
from typing import NoReturn

import pytest
import trio
import trio.testing

from guestagent import wakeups
from guestagent.wakeups import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    NOTHING,
    TCP,
    UDP,
    SourceState,
    SourceUnavailableError,
    chosen_ports,
    explain,
    keep_open,
    went_live,
)
from protocol.ports import WakeupSource
from tests.guestagent.recording_watch import RecordingWatch


class MortalSource:
    """Lives for the given numbers of seconds, one after the other; 0 means that it cannot even be opened."""

    def __init__(self, *lives: float) -> None:
        self.state = SourceState("mortal", TCP, UDP)
        self.opened: list[float] = []
        self._lives = list(lives)

    @property
    def states(self) -> tuple[SourceState, ...]:
        return (self.state,)

    async def run(self, watch: wakeups.Watch) -> NoReturn:
        self.opened.append(trio.current_time())
        if not self._lives:
            await trio.sleep_forever()
        if life := self._lives.pop(0):
            went_live(self.state, watch)
            await trio.sleep(life)
        raise SourceUnavailableError("mortal: gone")


async def test_a_source_that_cannot_be_opened_is_tried_ever_more_rarely(autojump_clock: trio.testing.MockClock) -> None:
    source, watch = MortalSource(*[0.0] * 20), RecordingWatch()
    began = trio.current_time()
    with trio.move_on_after(3600):
        await keep_open(source, watch)
    pauses = [later - earlier for earlier, later in itertools.pairwise(source.opened)]
    assert source.opened[0] == began
    assert pauses[0] == FIRST_PAUSE
    assert pauses[-1] == LONGEST_PAUSE
    assert pauses == sorted(pauses)
    assert source.state.report() == WakeupSource("mortal", False, "mortal: gone", 0)
    assert watch.woken == []


async def test_a_source_that_dies_wakes_the_watch_and_comes_back(autojump_clock: trio.testing.MockClock) -> None:
    source, watch = MortalSource(0.0, 0.0, 50.0), RecordingWatch()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_open, source, watch)
        await trio.sleep(2 * FIRST_PAUSE + FIRST_PAUSE + 1)
        assert source.state.report() == WakeupSource("mortal", True, "", 0)
        assert watch.woken == [TCP | UDP]  # what happened before it was live was not seen
        died = source.opened[-1] + 50
        await trio.sleep(died + FIRST_PAUSE / 2 - trio.current_time())
        assert not source.state.live
        assert watch.woken == [TCP | UDP, TCP | UDP]
        await trio.sleep(FIRST_PAUSE)
        assert source.opened[-1] == died + FIRST_PAUSE
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EPERM, "not permitted"),
        (errno.EACCES, "not permitted"),
        (errno.ENOENT, "not compiled into this kernel"),
        (errno.EPROTONOSUPPORT, "not compiled into this kernel"),
        (errno.ECONNREFUSED, "initial"),
        (errno.EBUSY, "used by another process"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_reasons_are_in_words(number: int, words: str) -> None:
    reason = explain(OSError(number, "raw"), "thing")
    assert reason.startswith("thing: ")
    assert words in reason


def test_lockdown_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wakeups, "_is_locked_down", lambda: True)
    assert "lockdown" in explain(PermissionError(errno.EPERM, "raw"), "tracefs")


def test_an_error_without_number_keeps_its_own_words() -> None:
    assert explain(OSError("odd"), "thing") == "thing: odd"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("40000\t50000\n", range(40_000, 50_001)), ("", range(32_768, 61_000)), ("a b", range(32_768, 61_000))],
)
def test_the_ports_that_the_kernel_chooses_from(tmp_path: Path, text: str, expected: range) -> None:
    file = tmp_path / "ip_local_port_range"
    file.write_text(text)
    assert chosen_ports(file) == expected
    assert chosen_ports(tmp_path / "none") == range(32_768, 61_000)


def test_a_state_covers_what_it_sees_of_either() -> None:
    assert SourceState("s", TCP, UDP).covers == TCP | UDP
    assert SourceState("s", NOTHING, NOTHING).covers == NOTHING
