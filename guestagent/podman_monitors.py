"""The monitors (conmon) of Podman's containers: which there are, and which of them a process works for.

Each running container has a monitor, whose command line has the container's id and name. What forwards the ports of a
user's container is tied to it in one of two ways, both of which /proc shows (proc(5)):

- rootlessport and slirp4netns end when the monitor does: they hold the reading end of a pipe, it holds the other one.
  Pipes that both have inherited from whoever started them tie nothing: those are the same end, or both, or everybody's.
- pasta has the container's network namespace open, and the container is a child of the monitor's. Podman bind-mounts
  the namespace, so that the link in /proc/PID/fd is a path; /proc/PID/fdinfo has its number without touching the path,
  which may be anything that the user likes.

A walk reads a small file of every process, a few of each monitor, and lets others run every `SLICE` seconds. Processes
can call themselves anything, so what comes of it is text, and bounded.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import trio

from guestagent.port_owner import SLICE, option_of

_NAME = "conmon"
_MOST_MONITORS = 1_024
_MOST_FILES = 256
"""Open files of one process that are read. A forwarder has two for each connection; its ties are the first ones."""

_READ_SIZE = 4_096
_IDENTIFIER = re.compile(r"[0-9a-f]{64}")
_PIPE = re.compile(r"pipe:\[[0-9]{1,20}\]")
_INODE = re.compile(r"^ino:\s*([0-9]{1,20})$", re.MULTILINE)
_FLAGS = re.compile(r"^flags:\s*[0-7]*([0-7])$", re.MULTILINE)
_GONE = (FileNotFoundError, ProcessLookupError, PermissionError, NotADirectoryError)


@dataclass(frozen=True, slots=True)
class Monitor:
    """A running conmon."""

    pid: int
    uid: int
    identifier: str
    """All 64 digits of its container's id."""
    name: str
    """Its container's."""


_NOBODY = Monitor(0, 0, "", "")


class MonitorSearch:
    """Walks through /proc."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._slice_end = 0.0

    async def find(self) -> list[Monitor]:
        """The monitors, the oldest process ids first."""
        found: list[Monitor] = []
        with os.scandir(self._proc) as entries:
            pids = sorted(int(entry.name) for entry in entries if entry.name.isdecimal())
        for pid in pids:
            await self._give_way()
            if self._read(pid, "comm") == f"{_NAME}\n" and (monitor := self._monitor(pid)):
                found.append(monitor)
        return found[:_MOST_MONITORS]

    async def ties(self, monitors: Iterable[Monitor]) -> dict[str, Monitor]:
        """What others can have in common with one monitor: pipes that only it writes to, and the namespaces of its
        container. In a pod all share one; the monitor that was started first counts, whose container has the ports."""
        own = self._namespace("self")
        namespaces: dict[str, Monitor] = {own: _NOBODY}
        pipes: dict[str, Monitor] = {}
        for monitor in monitors:
            for child in self._read(monitor.pid, f"task/{monitor.pid}/children").split():
                namespaces.setdefault(self._namespace(child), monitor)
            for pipe in (await self._pipes(monitor.pid))[1]:
                known = pipes.setdefault(pipe, monitor)
                if known.identifier != monitor.identifier:
                    pipes[pipe] = _NOBODY
        return {tie: monitor for tie, monitor in (pipes | namespaces).items() if tie and monitor is not _NOBODY}

    async def tied_to(self, pid: int, ties: Mapping[str, Monitor]) -> Monitor | None:
        """The monitor that process `pid` works for."""
        read, written = await self._pipes(pid)
        found = [ties[pipe] for pipe in sorted(read - written) if pipe in ties]
        if not found and (path := option_of(self._read(pid, "cmdline"), "--netns")):
            for descriptor, link in self._links(pid):
                if link == path and (number := _INODE.search(self._read(pid, f"fdinfo/{descriptor}"))):
                    link = f"net:[{number[1]}]"
                if link in ties and not _PIPE.fullmatch(link):
                    found.append(ties[link])
        return found[0] if found else None

    async def _pipes(self, pid: int) -> tuple[set[str], set[str]]:
        """Pipes that `pid` reads from, and those that it writes to."""
        ends: tuple[set[str], set[str]] = (set(), set())
        for descriptor, link in self._links(pid):
            await self._give_way()
            if _PIPE.fullmatch(link):
                flags = _FLAGS.search(self._read(pid, f"fdinfo/{descriptor}"))
                mode = int(flags[1]) & os.O_ACCMODE if flags else os.O_ACCMODE
                if mode in (os.O_RDONLY, os.O_WRONLY):
                    ends[mode].add(link)
        return ends

    async def _give_way(self) -> None:
        if trio.current_time() >= self._slice_end:
            await trio.lowlevel.checkpoint()
            self._slice_end = trio.current_time() + SLICE

    def _monitor(self, pid: int) -> Monitor | None:
        command_line = self._read(pid, "cmdline")
        identifier, name = option_of(command_line, "-c"), option_of(command_line, "-n")
        if not name or not _IDENTIFIER.fullmatch(identifier):
            return None
        try:
            return Monitor(pid, (self._proc / str(pid)).stat().st_uid, identifier, name)
        except _GONE:
            return None

    def _links(self, pid: int) -> list[tuple[str, str]]:
        """The open files of `pid`: descriptor and what it leads to."""
        found: list[tuple[str, str]] = []
        try:
            folder = os.open(f"{self._proc}/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY)
        except _GONE:
            return found
        try:
            with os.scandir(folder) as entries:
                for entry in itertools.islice(entries, _MOST_FILES):
                    with contextlib.suppress(*_GONE):
                        found.append((entry.name, os.readlink(entry.name, dir_fd=folder)))
        finally:
            os.close(folder)
        return found

    def _namespace(self, pid: str) -> str:
        try:
            return str((self._proc / pid / "ns" / "net").readlink())
        except _GONE:
            return ""

    def _read(self, pid: int, file: str) -> str:
        try:
            with (self._proc / str(pid) / file).open("rb", buffering=0) as status:
                return (status.read(_READ_SIZE) or b"").decode("utf-8", "replace")
        except _GONE:
            return ""
