from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hostagent.guest_conduct import FAULTS, PAUSE, PERIOD, RESTARTS, Conduct


def test_one_fault_too_many_within_the_period() -> None:
    conduct = Conduct()
    assert [conduct.fault(number / 10) for number in range(FAULTS)] == [False] * (FAULTS - 1) + [True]


def test_faults_long_ago_are_forgiven() -> None:
    conduct = Conduct()
    assert not any(conduct.fault(number * (PERIOD + 1) / (FAULTS - 1)) for number in range(100))


def test_afterwards_one_fault_is_enough_until_a_period_went_well() -> None:
    conduct = Conduct()
    judged = [conduct.fault(0.0) for _ in range(FAULTS)]
    assert judged[-1]
    assert conduct.fault(PAUSE + 1)
    assert conduct.fault(PAUSE + 1 + PAUSE + PERIOD - 0.1)
    assert not conduct.fault(1_000.0)


def test_new_beginnings_count_apart() -> None:
    conduct = Conduct()
    assert not any(conduct.restart(0.0) for _ in range(RESTARTS - 1))
    assert not conduct.fault(0.0)
    assert conduct.restart(1.0)


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 5.0)), max_size=400))
def test_who_is_listened_to_breaks_few_rules_in_any_period(steps: list[tuple[bool, float]]) -> None:
    conduct, now = Conduct(), 0.0
    faults: list[float] = []
    for fault, pause in steps:
        now += pause
        judged = conduct.fault(now) if fault else conduct.restart(now)
        if judged:
            now += PAUSE
            faults.clear()
        elif fault:
            faults.append(now)
        assert sum(1 for time in faults if now - time <= PERIOD) < FAULTS
