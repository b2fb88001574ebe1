"""What a running instance offers to its API: the seam between `control_api` and `agent`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from hostagent.api_shapes import Status
from hostagent.event_log import EventLog
from hostagent.forwards import Forward
from hostagent.live_rules import LiveRules
from protocol.stream_messages import CommandTarget, TerminalSize


class Execution(Protocol):
    """One command in the guest. Leaving its context kills what is left of it."""

    async def send_input(self, data: bytes) -> None:
        """Give the command bytes on its standard input; waits while it does not read."""

    def end_input(self) -> None:
        """Close the command's standard input."""

    def resize(self, size: TerminalSize) -> None:
        """Tell the command's terminal its new size."""

    def send_signal(self, name: str) -> None:
        """Send a signal (without SIG) to the command's process group."""

    def output(self) -> AsyncGenerator[tuple[str, bytes], None]:
        """("stdout" | "stderr", bytes) until both have ended. Ask for the end afterwards."""

    @property
    def status(self) -> int:
        """Exit status as a shell shows it: 128 + n after signal n. Known when `output` has ended."""


class RunningInstance(Protocol):
    """One instance, as its host agent knows it."""

    @property
    def events(self) -> EventLog:
        """What happened, and what happens."""

    async def refresh(self) -> None:
        """Ask the guest how it is doing, and wait a bounded time for the answer; `status` then knows."""

    def status(self) -> Status:
        """State, phases, guest, accelerator, sources, counters: the JSON of `hostagent status`."""

    def forwards(self) -> Sequence[Forward]:
        """All forwards, in the order of their guest ports."""

    @property
    def rules(self) -> LiveRules:
        """The forwarding rules, which can change."""

    def execute(self, target: CommandTarget) -> AbstractAsyncContextManager[Execution]:
        """Start a command in the guest; raises `UserError` when that cannot be done."""

    async def stop(self, *, force: bool) -> str:
        """Shut the guest down, and say what was needed: "guest agent", or a step of `StopStep`."""
