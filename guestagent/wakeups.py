"""The seam between the port watch and the kernel's ways of saying "look again".

A source owns its file descriptors, wakes the port watch, and knows what it can see: the opening or closing of which
protocol's ports, or changes of the address translation rules. It promises nothing else. Every source is optional: when
it cannot be opened, or dies, it says why in words and is tried again with growing pauses, while the port watch looks
more often at what nobody watches over.

Each wake-up is answered with the number of seconds during which further ones would change nothing. A source sleeps that
long before it reads again, so that a storm of events costs the same bounded CPU as a few of them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from typing import Protocol as Seam

import trio

from protocol.ports import Protocol, WakeupSource

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 300.0
"""Seconds between two attempts to open a source: doubled each time, back to the first after it was live."""

NOTHING: frozenset[Protocol] = frozenset()
TCP = frozenset({Protocol.TCP})
UDP = frozenset({Protocol.UDP})
TCP_AND_UDP = TCP | UDP

_LOCKDOWN = Path("/sys/kernel/security/lockdown")


class SourceUnavailableError(Exception):
    """A source cannot be opened, or has died. The message says why, in words for `status`."""


@dataclass(slots=True)
class SourceState:
    """What `status` shows of one source, kept by the source itself."""

    name: str
    opening: frozenset[Protocol]
    """Protocols whose opening ports it sees."""
    closing: frozenset[Protocol]
    """Protocols whose closing ports it sees."""
    rules: bool = False
    """Whether it sees changes of address translation rules, and not sockets."""
    live: bool = False
    reason: str = "not tried yet"
    wakeups: int = field(default=0)

    def up(self) -> None:
        """It works from now on."""
        self.live, self.reason = True, ""

    def down(self, reason: str) -> None:
        """It does not work, and `reason` says why."""
        self.live, self.reason = False, reason

    @property
    def covers(self) -> frozenset[Protocol]:
        """Every protocol that it sees something of."""
        return self.opening | self.closing

    def report(self) -> WakeupSource:
        """The state as a value."""
        return WakeupSource(self.name, self.live, self.reason, self.wakeups)


class Watch(Seam):
    """What a source needs of the port watch."""

    def wake(self, protocols: frozenset[Protocol]) -> float:
        """Look again at `protocols`.

        Returns the seconds during which further wake-ups for the same protocols change nothing.
        """

    def wake_rules(self) -> float:
        """Read the address translation rules again.

        Returns the seconds during which further wake-ups change nothing.
        """

    def note_threads(self, threads: Sequence[int]) -> None:
        """Thread ids that have opened or closed something: where to look for owners first."""

    def is_open(self, protocol: Protocol, number: int) -> bool:
        """Whether a port with that number is known to be open."""


class Source(Seam):
    """One of the kernel's ways of saying that a port may have changed."""

    @property
    def states(self) -> tuple[SourceState, ...]:
        """What `status` shows; more than one where one descriptor serves several events."""

    async def run(self, watch: Watch) -> NoReturn:
        """Open the source, mark its states up, wake `watch` until cancelled. Raises `SourceUnavailableError`."""


async def keep_open(source: Source, watch: Watch) -> NoReturn:
    """Run `source` for ever, opening it again with growing pauses whenever it cannot be opened or dies."""
    pause = FIRST_PAUSE
    while True:
        try:
            await source.run(watch)
        except SourceUnavailableError as exc:
            was_live = any(state.live for state in source.states)
            for state in source.states:
                state.down(str(exc))
        if was_live:
            pause = FIRST_PAUSE
            for state in source.states:
                wake_for(state, watch, state.covers)
        await trio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)


def wake_for(state: SourceState, watch: Watch, protocols: frozenset[Protocol]) -> float:
    """Wake `watch` for what `state` sees: `protocols` among the sockets, or the rules. See `Watch.wake`."""
    return watch.wake_rules() if state.rules else watch.wake(protocols)


def went_live(state: SourceState, watch: Watch) -> None:
    """Mark `state` up, and have everything it sees looked at once, since it has not seen what came before."""
    state.up()
    wake_for(state, watch, state.covers)


def chosen_ports(file: Path = Path("/proc/sys/net/ipv4/ip_local_port_range")) -> range:
    """The port numbers that the kernel chooses from (ip(7)). UDP sockets there are clients', nearly always."""
    try:
        first, last = map(int, file.read_text("ascii", "replace").split())
    except (OSError, ValueError):
        return range(32_768, 61_000)  # its default
    return range(first, last + 1)


def explain(exc: OSError, what: str) -> str:
    """Why the kernel refused `what`, in words that tell a user where to look."""
    match exc.errno:
        case errno.EPERM | errno.EACCES:
            if _is_locked_down():
                return f"{what}: refused by kernel lockdown (confidentiality)"
            return f"{what}: not permitted (needs root and the initial namespaces)"
        case errno.ENOENT | errno.EPROTONOSUPPORT | errno.ENODEV | errno.EOPNOTSUPP | errno.EAFNOSUPPORT:
            return f"{what}: not compiled into this kernel, or its module is missing"
        case errno.ECONNREFUSED:
            return f"{what}: belongs to other (the initial) namespaces, or is turned off"
        case errno.EBUSY:
            return f"{what}: used by another process"
        case None:
            return f"{what}: {exc}"
        case number:
            return f"{what}: {os.strerror(number)}"


def _is_locked_down() -> bool:
    try:
        return "[confidentiality]" in _LOCKDOWN.read_text("ascii", "replace")
    except OSError:
        return False
