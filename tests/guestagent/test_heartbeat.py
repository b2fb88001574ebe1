from __future__ import annotations

import os

from guestagent.heartbeat import BEAT, LOOK, Heartbeat, Watchdog


def test_the_count_of_a_child_is_seen() -> None:
    beats = Heartbeat()
    if (child := os.fork()) == 0:
        beats.beat()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert beats.count == 1


def test_an_agent_that_moves_never_hangs() -> None:
    watchdog = Watchdog()
    assert not any(watchdog.hangs(count) for count in range(1000))
    assert BEAT < LOOK  # so that each look sees a count


def test_it_takes_two_looks_without_a_count() -> None:
    watchdog = Watchdog()
    assert [watchdog.hangs(count) for count in (0, 0, 1, 1, 1)] == [False, False, False, False, True]


def test_a_jump_of_time_is_one_missed_look_however_long_it_was() -> None:
    watchdog = Watchdog()
    assert [watchdog.hangs(count) for count in (7, 7, 8, 9)] == [False] * 4
