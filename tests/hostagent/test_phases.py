"""What is shown of the phases that run in the command's own process."""

from __future__ import annotations

import pytest

from hostagent.errors import UserError
from hostagent.lifecycle import Phase, PhaseState
from hostagent.phases import ShownPhases


def test_a_phase_is_shown_when_it_begins_and_ends() -> None:
    shown: list[dict[str, object]] = []
    phases = ShownPhases(shown.append)
    with phases.shown(Phase.IMAGE) as detail:
        assert shown == [
            {"event": "phase", "phase": Phase.IMAGE, "state": PhaseState.STARTED, "seconds": 0.0, "detail": ""}
        ]
        phases.update("downloading", 1, 2)
        detail += ["debian-12", "cached"]
    progress, end = shown[1:]
    assert progress == {"event": "progress", "phase": Phase.IMAGE, "step": "downloading", "done": 1, "total": 2}
    assert (end["state"], end["detail"]) == (PhaseState.DONE, "debian-12; cached")
    assert isinstance(end["seconds"], float)
    assert end["seconds"] >= 0


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (UserError("no space", "make room"), "no space"),
        (ValueError(), "ValueError"),
    ],
)
def test_a_phase_that_fails_says_so_and_hides_nothing(error: Exception, why: str) -> None:
    shown: list[dict[str, object]] = []
    with pytest.raises(type(error)), ShownPhases(shown.append).shown(Phase.DISK):
        raise error
    assert (shown[-1]["state"], shown[-1]["detail"]) == (PhaseState.FAILED, why)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), BaseExceptionGroup("", [KeyboardInterrupt()])])
def test_a_phase_that_is_interrupted_did_not_fail(interruption: BaseException) -> None:
    shown: list[dict[str, object]] = []
    with pytest.raises(type(interruption)), ShownPhases(shown.append).shown(Phase.SEED):
        raise interruption
    assert [event["state"] for event in shown] == [PhaseState.STARTED]


def test_a_warning_belongs_to_no_phase() -> None:
    shown: list[dict[str, object]] = []
    ShownPhases(shown.append).warn("memory is short")
    assert shown == [{"event": "warning", "message": "memory is short"}]
