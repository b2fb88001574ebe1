"""The phases of a start, what follows an end, and the states of an instance: pure, with the time as an argument.

A start is a fixed row of phases, each timed and shown. A phase that takes longer than anybody should expect is
*stalled*: that is said once, with how long it has lasted, and changes nothing else, since slow machines exist.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class InstanceState(enum.StrEnum):
    """What an instance is doing, for `list` and `status`."""

    STARTING = "starting"
    RUNNING = "running"
    DEGRADED = "degraded"
    """QEMU runs, and the guest agent is away."""
    STOPPING = "stopping"
    STOPPED = "stopped"
    BROKEN = "broken"


class Phase(enum.StrEnum):
    """The parts of `up`, in their order."""

    VALIDATE = "validate"
    IMAGE = "image"
    DISK = "disk"
    AGENT = "agent"
    """Find or freeze the guest agent."""
    SEED = "seed"
    ACCELERATOR = "accelerator"
    QEMU = "qemu"
    HELLO = "hello"
    """From QEMU's start to the guest agent's hello: the boot."""
    PORTS = "ports"


AGENT_PHASES = frozenset({Phase.QEMU, Phase.HELLO, Phase.PORTS})
"""Those that the host agent goes through; the others are the command's own."""


class PhaseState(enum.StrEnum):
    """What is said about a phase."""

    STARTED = "started"
    DONE = "done"
    FAILED = "failed"
    STALLED = "stalled"


_USUAL = 30.0
USUAL_SECONDS = {Phase.IMAGE: 600.0, Phase.AGENT: 180.0, Phase.HELLO: 90.0}
"""How long a phase may take before it is called stalled; others `_USUAL`. A first boot under emulation takes 35 s."""


@dataclass(frozen=True, slots=True)
class PhaseReport:
    """Something to show about a phase."""

    phase: Phase
    state: PhaseState
    seconds: float
    detail: str = ""


class PhaseClock:
    """Times the phases of one start."""

    def __init__(self) -> None:
        self._current: Phase | None = None
        self._began = 0.0
        self._stalled = False
        self.durations: dict[Phase, float] = {}
        """Seconds that each finished phase took."""

    @property
    def current(self) -> Phase | None:
        """The phase that is under way."""
        return self._current

    def begin(self, phase: Phase, now: float) -> PhaseReport:
        """`phase` starts."""
        self._current, self._began, self._stalled = phase, now, False
        return PhaseReport(phase, PhaseState.STARTED, 0.0)

    def end(self, now: float, detail: str = "") -> PhaseReport:
        """The current phase is done."""
        return self._finish(PhaseState.DONE, now, detail)

    def fail(self, now: float, detail: str) -> PhaseReport:
        """The current phase failed."""
        return self._finish(PhaseState.FAILED, now, detail)

    def _finish(self, state: PhaseState, now: float, detail: str) -> PhaseReport:
        assert self._current is not None
        phase, self._current = self._current, None
        seconds = now - self._began
        if state is PhaseState.DONE:
            self.durations[phase] = seconds
        return PhaseReport(phase, state, seconds, detail)

    def stall_due(self) -> float:
        """When the current phase will be called stalled; infinity when there is nothing to say any more."""
        if self._current is None or self._stalled:
            return float("inf")
        return self._began + USUAL_SECONDS.get(self._current, _USUAL)

    def stall(self, now: float, detail: str) -> PhaseReport:
        """The current phase has lasted too long."""
        assert self._current is not None
        self._stalled = True
        return PhaseReport(self._current, PhaseState.STALLED, now - self._began, detail)


def silent_console(name: str, accelerator: str) -> str:
    """What to say of the instance `name` whose guest has written nothing to its console for too long."""
    if accelerator == "tcg":
        return "the serial console is silent"
    return (
        f"the serial console is silent: perhaps {accelerator} cannot execute this guest; to do without it:\n"
        f"hostagent down --force {name} && HOSTAGENT_ACCELERATOR=tcg hostagent up {name}"
    )


RESETS = frozenset({"guest-reset", "host-qmp-system-reset"})
"""Reasons of QEMU's SHUTDOWN event that mean a reset (ShutdownCause in QEMU's qapi/run-state.json)."""

MOST_RESETS = 5
"""Resets in a row, without a hello in between, after which the guest is not booted again. Some distributions restart
once in the middle of their first boot; a kernel that panics and restarts would go on for ever."""


class AfterEnd(enum.StrEnum):
    """What follows when QEMU has ended."""

    BOOT_AGAIN = "boot again"
    OFF = "off"
    GIVE_UP = "give up"


def after_end(reason: str, *, stopping: bool, resets: int) -> AfterEnd:
    """What follows from QEMU's end for `reason`, as its SHUTDOWN event says it; empty when there was none.

    `resets` is how often in a row, this time included, it ended before the guest agent said hello.
    """
    if stopping or reason not in RESETS:
        return AfterEnd.OFF
    return AfterEnd.BOOT_AGAIN if resets <= MOST_RESETS else AfterEnd.GIVE_UP


def instance_state(*, qemu_runs: bool, ready: bool, agent_present: bool, stopping: bool) -> InstanceState:
    """The instance's state, from what is known of its parts."""
    if stopping:
        return InstanceState.STOPPING
    if not qemu_runs:
        return InstanceState.STOPPED
    if not ready:
        return InstanceState.STARTING
    return InstanceState.RUNNING if agent_present else InstanceState.DEGRADED
