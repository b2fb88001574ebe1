"""Whose port it is: from a socket's inode to process, user and unit, without holding anybody up.

Only /proc/PID/fd says which process holds a socket (proc(5)), so the search reads links until it has met every inode it
was asked for. Where it looks first decides its cost: the threads that the kernel's event named, the processes that were
found to be owners before, and then the newest process ids downwards. It works in slices of `SLICE` seconds on the event
loop and lets everybody else run in between; a thread would hold the interpreter's lock for longer.

When a socket is shared (systemd's socket activation, a forked worker) the first process met is the owner.
Names come from the guest's processes, which can set them to anything: they are bounded and made printable here.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import trio

from protocol.limits import MAX_NAME
from protocol.ports import PortOwner
from protocol.wire_values import text_clipped

SLICE = 0.002
"""Seconds of searching after which others get their turn."""

MAX_PROCESS_NAME, MAX_UNIT_NAME = 64, 128
"""Characters that are kept. comm has 15 bytes except for kernel threads; a unit may be a long escaped path."""

_REMEMBERED = 64
_READ_SIZE = 4096
_SHORT_ID = 12
_SOCKET_LINK = re.compile(r"socket:\[([0-9]{1,20})\]")
_CONTAINER = re.compile(r"(?:([a-z][a-z0-9-]{0,30})-)?([0-9a-f]{64})(?:\.scope)?")
_ENGINE_OPTIONS = {"conmon": ("podman", "-n"), "docker-proxy": ("docker", "-container-ip")}
"""Processes that hold ports for containers: the engine's name, and the option that says for which."""

_GONE = (FileNotFoundError, ProcessLookupError, PermissionError, NotADirectoryError)


class OwnerSearch:
    """Finds the processes that hold sockets, and remembers which held some before."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._holders: dict[int, None] = {}

    async def find(self, inodes: AbstractSet[int], threads: Sequence[int] = ()) -> dict[int, PortOwner]:
        """Owners of as many of `inodes` as can be found. `threads` are thread ids to look at first."""
        wanted = set(inodes)
        found: dict[int, PortOwner] = {}
        slice_end = trio.current_time() + SLICE
        for pid in self._candidates(threads):
            with contextlib.closing(self._sockets_of(pid)) as sockets:
                for inode in sockets:
                    if trio.current_time() >= slice_end:
                        await trio.lowlevel.checkpoint()
                        slice_end = trio.current_time() + SLICE
                    if inode in wanted and (owner := self._describe(pid)):
                        wanted.discard(inode)
                        found[inode] = owner
            if not wanted:
                break
        await trio.lowlevel.checkpoint()
        return found

    def _candidates(self, threads: Iterable[int]) -> Iterator[int]:
        seen: set[int] = set()
        for thread in threads:
            pid = self._process_of(thread)
            if pid and pid not in seen:
                seen.add(pid)
                yield pid
        for pid in list(self._holders):
            if pid not in seen:
                seen.add(pid)
                yield pid
        with os.scandir(self._proc) as entries:
            pids = sorted((int(entry.name) for entry in entries if entry.name.isdecimal()), reverse=True)
        for pid in pids:
            if pid not in seen:
                yield pid

    def _process_of(self, thread: int) -> int:
        """The process id of a thread id, 0 when it is gone."""
        found = re.search(r"^Tgid:\s*([0-9]+)$", self._read(thread, "status"), re.MULTILINE)
        return int(found[1]) if found else 0

    def _sockets_of(self, pid: int) -> Generator[int, None, None]:
        """Inodes of the sockets that `pid` holds, and a 0 for every other file, so that the search can pause."""
        yield 0
        try:
            directory = os.open(f"{self._proc}/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY)
        except _GONE:
            self._holders.pop(pid, None)
            return
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    with contextlib.suppress(*_GONE):
                        link = _SOCKET_LINK.fullmatch(os.readlink(entry.name, dir_fd=directory))
                        yield int(link[1]) if link else 0
        finally:
            os.close(directory)

    def _describe(self, pid: int) -> PortOwner | None:
        try:
            uid = (self._proc / str(pid)).stat().st_uid
        except _GONE:
            return None
        self._holders.pop(pid, None)
        self._holders[pid] = None
        if len(self._holders) > _REMEMBERED:
            del self._holders[next(iter(self._holders))]
        name = _printable(self._read(pid, "comm").removesuffix("\n"), MAX_PROCESS_NAME)
        unit = unit_of(self._read(pid, "cgroup"))
        if name in _ENGINE_OPTIONS:
            unit = container_of(name, self._read(pid, "cmdline")) or unit
        return PortOwner(process=name, pid=pid, uid=uid, unit=unit)

    def _read(self, pid: int, file: str) -> str:
        try:
            with (self._proc / str(pid) / file).open("rb", buffering=0) as status:
                return (status.read(_READ_SIZE) or b"").decode("utf-8", "replace")
        except _GONE:
            return ""


def container_of(process: str, command_line: str) -> str:
    """The container that a container engine's `process` holds a port for, as its command line (proc(5)) says.

    conmon has the container's name, docker-proxy only its address, which leads to the name (`container_questions`).
    Anybody can call a process that: it is text.
    """
    engine, option = _ENGINE_OPTIONS[process]
    value = option_of(command_line, option)
    return container_unit(engine, value) if value else ""


def option_of(command_line: str, option: str) -> str:
    """The value of the first `option` of a command line (proc(5)); nothing when it has none."""
    arguments = command_line.split("\0")
    return arguments[arguments.index(option) + 1] if option in arguments[:-1] else ""


def container_unit(engine: str, name: str) -> str:
    """A container as the unit of an owner: `ENGINE/NAME`, whatever the name is."""
    return _printable(f"{engine}/{name}", MAX_UNIT_NAME)


def unit_of(cgroup: str) -> str:
    """The container, else the innermost systemd unit, that the text of /proc/PID/cgroup names; else nothing.

    A container is `RUNTIME/SHORT-ID`, from `docker-ID.scope` (systemd driver) or `/docker/ID` (cgroupfs driver).
    """
    path = ""
    for line in cgroup.splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if hierarchy == "0" or controllers == "name=systemd":
            path = max(path, name, key=len)
    unit, parent = "", ""
    for part in path.split("/"):
        if container := _CONTAINER.fullmatch(part):
            runtime = container[1] or parent or "container"
            return _printable(f"{runtime}/{container[2][:_SHORT_ID]}", MAX_UNIT_NAME)
        if part.endswith((".service", ".scope", ".socket")):
            unit = part
        parent = part
    return _printable(unit, MAX_UNIT_NAME)


def _printable(text: str, most: int) -> str:
    """At most `most` characters, and as many of them as the protocol takes."""
    return text_clipped("".join(one if one.isprintable() else "?" for one in text[:most]), MAX_NAME)
