from __future__ import annotations

import errno
import time

import pytest

from guestagent.clock import MOST_NANOSECONDS, difference_to_step, follow_host

SECOND = 1_000_000_000


@pytest.mark.parametrize(
    ("guest", "host", "step"),
    [
        (0, 0, 0),
        (0, MOST_NANOSECONDS, 0),
        (MOST_NANOSECONDS, 0, 0),
        (0, MOST_NANOSECONDS + 1, MOST_NANOSECONDS + 1),
        (MOST_NANOSECONDS + 1, 0, -MOST_NANOSECONDS - 1),
    ],
)
def test_only_large_differences_are_stepped(guest: int, host: int, step: int) -> None:
    assert difference_to_step(guest, host) == step


class FakeClock:
    """The guest's wall clock, in the place of the machine's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, now: int) -> None:
        self.now = now
        self.refuses = False
        monkeypatch.setattr(time, "time_ns", lambda: self.now)
        monkeypatch.setattr(time, "clock_settime_ns", self._set)

    def _set(self, clock: int, nanoseconds: int) -> None:
        assert clock == time.CLOCK_REALTIME
        if self.refuses:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        self.now = nanoseconds


def test_a_guest_that_slept_wakes_up_in_the_present(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch, 1_000 * SECOND)
    assert follow_host(9_000 * SECOND) == 8_000 * SECOND
    assert clock.now == 9_000 * SECOND
    assert follow_host(9_000 * SECOND) == 0


def test_small_differences_are_left_to_ntp(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch, 1_000 * SECOND)
    assert follow_host(1_000 * SECOND + SECOND // 2) == 0
    assert clock.now == 1_000 * SECOND


def test_a_clock_that_may_not_be_set_stays(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock(monkeypatch, 1_000 * SECOND)
    clock.refuses = True
    assert follow_host(9_000 * SECOND) == 0
    assert "8000.0 s" in caplog.text
