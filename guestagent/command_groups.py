"""Which commands run, in memory that outlives the agent: its supervisor ends them when the agent was killed.

An agent that ends in order ends its commands itself (`execution`). One that is killed cannot, and only it knew which
of the processes behind it were commands: a shell session to be hung up looks like the server that somebody left running
in the background. So the agent writes each command's process group into a page that it shares with the supervisor, who
finds there what the dead agent left (`take`).

The only gap is a command that was being started when the agent was killed: its number is in nobody's hands yet. So a
start is announced before with its time, and what the dead agent started since then counts as such a command.

Rejected: PR_SET_PDEATHSIG in each command, which counts the death of the *thread* that forked (prctl(2)) and is lost
in set-user-ID programs; a pipe to the supervisor, who would have to read it all the time.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from protocol.limits import MAX_STREAMS

SLOTS = 2 * MAX_STREAMS
"""Commands at a time: one for each stream, and as many whose stream is over and which are still being ended."""

HANGUP_SECONDS = 2.0
"""Seconds between hanging a command up and killing it."""

_FREE = 0
_WIDTH = 8
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class LeftCommands:
    """What a dead agent left behind."""

    groups: tuple[int, ...]
    starting_since: int | None
    """When the first of the starts that were under way began, in clock ticks since boot; None if none was."""


class CommandGroups:
    """Process groups of running commands; make it before the fork."""

    def __init__(self, slots: int = SLOTS) -> None:
        self._slots = memoryview(mmap.mmap(-1, slots * _WIDTH)).cast("q")
        self._returned: list[int] = []
        self._fresh = 0
        """Slots from here on were never used."""

    def reserve(self) -> GroupEntry:
        """A place for one command that is about to be started; raises `OSError` when all are taken."""
        if self._returned:
            slot = self._returned.pop()
        elif self._fresh < len(self._slots):
            slot, self._fresh = self._fresh, self._fresh + 1
        else:
            raise OSError(errno.EAGAIN, "too many commands run")
        self._slots[slot] = -int(time.clock_gettime(time.CLOCK_BOOTTIME) * _TICKS)
        return GroupEntry(self, slot)

    def write(self, slot: int, group: int) -> None:
        """The command of `slot` leads the process group `group`."""
        self._slots[slot] = group

    def release(self, slot: int) -> None:
        """The command of `slot` has ended."""
        self._slots[slot] = _FREE
        self._returned.append(slot)

    def take(self) -> LeftCommands:
        """What is written down now, and empty the memory for the next agent."""
        used = [number for number in self._slots if number != _FREE]
        for slot in range(len(self._slots)):
            self._slots[slot] = _FREE
        starts = [-number for number in used if number < 0]
        return LeftCommands(tuple(number for number in used if number > 0), min(starts, default=None))


class GroupEntry:
    """One command's place, until the end of the block."""

    __slots__ = ("_groups", "_slot")

    def __init__(self, groups: CommandGroups, slot: int) -> None:
        self._groups = groups
        self._slot = slot

    def started(self, group: int) -> None:
        """The command runs, and leads the process group `group`."""
        self._groups.write(self._slot, group)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._groups.release(self._slot)


def children_since(parent: int, ticks: int, processes: Path = Path("/proc")) -> Iterator[int]:
    """Children of `parent` that were started at `ticks` (clock ticks since boot) or later, from proc_pid_stat(5)."""
    for entry in processes.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            # The name is in parentheses and may hold anything; field 3 comes behind the last of them.
            fields = (entry / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if int(fields[1]) == parent and int(fields[19]) >= ticks:
            yield int(entry.name)
