"""Phases are timed, shown once, and called stalled once."""

from __future__ import annotations

import pytest

from hostagent.lifecycle import (
    MOST_RESETS,
    AfterEnd,
    InstanceState,
    Phase,
    PhaseClock,
    PhaseState,
    after_end,
    instance_state,
    silent_console,
)


def test_a_phase_is_timed_from_its_beginning_to_its_end() -> None:
    clock = PhaseClock()
    assert clock.begin(Phase.DISK, 10.0).state is PhaseState.STARTED
    report = clock.end(12.5, "grown")
    assert (report.phase, report.state, report.seconds, report.detail) == (Phase.DISK, PhaseState.DONE, 2.5, "grown")
    assert clock.durations == {Phase.DISK: 2.5}
    assert clock.current is None


def test_a_phase_that_takes_too_long_is_called_stalled_once() -> None:
    clock = PhaseClock()
    assert clock.stall_due() == float("inf")
    clock.begin(Phase.HELLO, 100.0)
    due = clock.stall_due()
    assert 100.0 < due < float("inf")
    report = clock.stall(due, "the console says nothing")
    assert report.state is PhaseState.STALLED
    assert report.seconds == due - 100.0
    assert clock.stall_due() == float("inf")
    assert clock.end(due + 50).state is PhaseState.DONE


def test_the_next_phase_can_stall_again() -> None:
    clock = PhaseClock()
    clock.begin(Phase.HELLO, 0.0)
    clock.stall(clock.stall_due(), "")
    clock.end(200.0)
    clock.begin(Phase.PORTS, 200.0)
    assert clock.stall_due() < float("inf")


def test_a_failed_phase_has_no_duration() -> None:
    clock = PhaseClock()
    clock.begin(Phase.QEMU, 0.0)
    assert clock.fail(1.0, "no such machine").state is PhaseState.FAILED
    assert clock.durations == {}


@pytest.mark.parametrize(
    ("reason", "stopping", "resets", "follows"),
    [
        ("guest-reset", False, 1, AfterEnd.BOOT_AGAIN),
        ("guest-reset", False, MOST_RESETS, AfterEnd.BOOT_AGAIN),
        ("guest-reset", False, MOST_RESETS + 1, AfterEnd.GIVE_UP),
        ("guest-reset", True, 1, AfterEnd.OFF),
        ("host-qmp-system-reset", False, 1, AfterEnd.BOOT_AGAIN),
        ("guest-shutdown", False, 1, AfterEnd.OFF),
        ("host-qmp-quit", False, 1, AfterEnd.OFF),
        ("", False, 1, AfterEnd.OFF),
    ],
)
def test_only_a_reset_that_nobody_else_ended_is_followed_by_a_boot(
    reason: str, stopping: bool, resets: int, follows: AfterEnd
) -> None:
    assert after_end(reason, stopping=stopping, resets=resets) is follows


@pytest.mark.parametrize(
    ("qemu_runs", "ready", "agent_present", "stopping", "state"),
    [
        (True, False, False, False, InstanceState.STARTING),
        (True, True, True, False, InstanceState.RUNNING),
        (True, True, False, False, InstanceState.DEGRADED),
        (True, True, True, True, InstanceState.STOPPING),
        (False, True, False, False, InstanceState.STOPPED),
    ],
)
def test_the_state_follows_from_the_parts(
    qemu_runs: bool, ready: bool, agent_present: bool, stopping: bool, state: InstanceState
) -> None:
    assert instance_state(qemu_runs=qemu_runs, ready=ready, agent_present=agent_present, stopping=stopping) is state


def test_a_silent_console_is_explained_where_an_accelerator_may_be_the_reason() -> None:
    assert silent_console("box", "tcg") == "the serial console is silent"
    assert silent_console("box", "kvm").splitlines()[1:] == [
        "hostagent down --force box && HOSTAGENT_ACCELERATOR=tcg hostagent up box"
    ]
