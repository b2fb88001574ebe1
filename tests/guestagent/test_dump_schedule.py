"""When looks are taken: with a clock that is a number."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from guestagent.dump_schedule import (
    IDLE_TICK,
    LATE,
    LONGEST_GAP,
    LONGEST_REST,
    POLL_TICK,
    RESCAN_AFTER_FIND,
    RESCANS,
    REST,
    SAFETY_TICK,
    SHORTEST_GAP,
    Cause,
    DumpSchedule,
)


def quiet(now: float = 100.0) -> DumpSchedule:
    """A covered schedule whose first look is done, long ago."""
    schedule = DumpSchedule(now - 1)
    schedule.cover(True, now - 1)
    assert schedule.begin(now - 1) is Cause.TICK
    schedule.finish(Cause.TICK, 0, 0.0, now - 1)
    return schedule


def looks(schedule: DumpSchedule, since: float, until: float, *, changes: int = 0) -> list[tuple[Cause, float]]:
    """All looks from `since` to `until`, each taken when it is due."""
    taken = []
    now = since
    while (now := max(now, schedule.due())) <= until:
        cause = schedule.begin(now)
        assert cause is not None
        schedule.finish(cause, changes if cause is Cause.WAKEUP else 0, 0.0, now)
        taken.append((cause, round(now, 6)))
    return taken


def test_the_first_wakeup_after_quiet_is_a_look_at_once() -> None:
    schedule = quiet()
    schedule.wake(100.0)
    assert schedule.wait(100.0) == 0
    assert schedule.due() <= 100.0
    assert schedule.begin(100.0) is Cause.WAKEUP


def test_a_look_that_found_nothing_is_repeated_shortly_after() -> None:
    schedule = quiet()
    schedule.wake(100.0)
    assert schedule.begin(100.0) is Cause.WAKEUP
    schedule.finish(Cause.WAKEUP, 0, 0.0, 100.0)
    assert looks(schedule, 100.0, 101.0) == [(Cause.RESCAN, 100.0 + step) for step in RESCANS]


def test_a_look_that_found_something_is_repeated_once() -> None:
    schedule = quiet()
    schedule.wake(100.0)
    assert schedule.begin(100.0) is Cause.WAKEUP
    schedule.finish(Cause.WAKEUP, 1, 0.0, 100.0)
    assert looks(schedule, 100.0, 101.0) == [(Cause.RESCAN, 100.0 + RESCAN_AFTER_FIND)]


def test_nothing_is_looked_at_before_it_is_due() -> None:
    schedule = quiet()
    assert schedule.begin(100.0) is None
    assert schedule.due() == 99.0 + 2 * SAFETY_TICK


def test_ticks_are_quick_without_events() -> None:
    schedule = quiet()
    schedule.cover(False, 100.0)
    assert schedule.due() == 100.0 + POLL_TICK
    assert len(looks(schedule, 100.0, 101.0)) == 4


def test_ticks_become_rare_in_an_idle_guest_and_frequent_again_with_the_next_event() -> None:
    schedule = quiet()
    times = [100.0, *(time for _, time in looks(schedule, 100.0, 300.0))]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert max(gaps) == gaps[-1] == IDLE_TICK
    schedule.wake(300.0)
    (*_, last), following = looks(schedule, 300.0, 301.0), schedule.due()
    assert following == last[1] + SAFETY_TICK


@given(st.floats(0.0005, 0.02), st.integers(0, 3))
def test_a_storm_costs_bounded_looks_and_its_end_is_seen_in_time(step: float, changes: int) -> None:
    schedule = quiet()
    now, taken, last = 100.0, [], 0.0
    while now < 100.6:
        schedule.wake(now)
        last, now = now, now + step
        taken += looks(schedule, last, now - 1e-9, changes=changes)
    taken += looks(schedule, now, now + 1, changes=changes)
    of_wakeups = [time for cause, time in taken if cause is Cause.WAKEUP]
    gaps = [later - earlier for earlier, later in itertools.pairwise(of_wakeups)]
    assert all(gap >= min(step, SHORTEST_GAP) - 1e-5 for gap in gaps)
    if step < SHORTEST_GAP:  # every wake-up has to wait, so the gap soon is the longest
        assert len([time for time in of_wakeups if time >= 100.2]) <= 0.4 / LONGEST_GAP + 2
    assert last - 1e-5 <= max(of_wakeups) <= last + LONGEST_GAP + 1e-5


def test_the_gap_is_short_again_after_quiet() -> None:
    schedule = quiet()
    for now in (100.0, 100.001, 100.002, 100.006):
        schedule.wake(now)
        looks(schedule, now, now, changes=1)
    looks(schedule, 100.006, 103.0)
    schedule.wake(103.0)
    assert schedule.wait(103.0) == 0
    looks(schedule, 103.0, 103.0, changes=1)
    assert schedule.wait(103.001) == 0  # the next event counts
    schedule.wake(103.001)
    assert 0 < schedule.wait(103.001) <= SHORTEST_GAP  # those behind it do not


def test_a_costly_look_makes_the_next_one_wait_longer_but_not_for_ever() -> None:
    schedule = quiet()
    schedule.wake(100.0)
    assert schedule.begin(100.0) is Cause.WAKEUP
    schedule.finish(Cause.WAKEUP, 1, 0.1, 100.1)
    schedule.wake(100.1)
    assert abs(schedule.wait(100.1) - REST * 0.1) < 1e-6
    assert schedule.begin(schedule.due()) is Cause.WAKEUP
    schedule.finish(Cause.WAKEUP, 1, 60.0, 101.0)
    schedule.wake(101.0)
    assert schedule.wait(101.0) == LONGEST_REST


def tick_that_finds(schedule: DumpSchedule) -> float:
    now = schedule.due()
    assert schedule.begin(now) is Cause.TICK
    schedule.finish(Cause.TICK, 2, 0.0, now)
    return now


def test_what_only_the_safety_tick_finds_is_a_miss() -> None:
    schedule = quiet()
    now = tick_that_finds(schedule)
    schedule.begin(now + LATE / 2)
    assert schedule.misses == 0
    schedule.begin(now + LATE)
    assert schedule.misses == 2


def test_an_event_that_comes_a_little_late_is_no_miss() -> None:
    schedule = quiet()
    now = tick_that_finds(schedule)
    schedule.wake(now + LATE / 2)
    looks(schedule, now, now + 60)
    assert schedule.misses == 0


def test_without_events_a_tick_misses_nothing() -> None:
    schedule = quiet()
    schedule.cover(False, 100.0)
    now = tick_that_finds(schedule)
    looks(schedule, now, now + 60)
    assert schedule.misses == 0


def test_a_failed_look_is_repeated_but_not_at_once() -> None:
    schedule = quiet()
    schedule.wake(100.0)
    assert schedule.begin(100.0) is Cause.WAKEUP
    schedule.failed(100.0)
    assert schedule.due() == 100.0 + LONGEST_GAP
    assert schedule.begin(schedule.due()) is Cause.WAKEUP
