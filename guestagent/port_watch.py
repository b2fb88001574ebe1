"""The guest's open ports, told within milliseconds of their opening and closing.

Events are wake-ups; a complete look at the socket table is the truth; the difference to the look before is what is
told. So an event may be late, doubled, about another namespace or lost, and nothing false is ever said: the worst is a
delay until the safety tick. A look that fails changes nothing: what was open stays open until a look shows otherwise.

Ports that address translation opens (`nat_watch`) are merged with those of sockets: a port is open while either says
so, and is told once. `route` says where to dial it.

Five kinds of tasks: one per source (`wakeups.keep_open`), which only marks a protocol as to be looked at; the loop
here, which looks when `DumpSchedule` says so, for each protocol apart, so that a storm of UDP binds does not delay TCP;
the search for owners, which runs behind, so that no port is told later because its process is hard to find; the reading
of rules; and behind both, the asking of container engines for names (`container_names`).

Whoever listens (`PortSink`) is called on the event loop and must not block. `ports` and `owners` are always current,
for a listener that has to start over.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn
from typing import Protocol as Seam

import trio

from guestagent.container_lookup import ContainerLookup
from guestagent.container_names import ContainerNames, Lookup
from guestagent.dump_schedule import Cause, DumpSchedule
from guestagent.nat_ports import LOOPBACK, MergedPorts, NatPorts, dial_for
from guestagent.nat_watch import NatWatch, RuleReader
from guestagent.netlink import KernelDataError
from guestagent.port_owner import OwnerSearch
from guestagent.sock_diag import SocketReader
from guestagent.socket_table import ListeningSocket, PortTable
from guestagent.timer import Timer
from guestagent.wakeup_audit import AuditSource
from guestagent.wakeup_netlink import DestroyedSocketsSource, NftablesSource
from guestagent.wakeup_tracefs import TracefsSource
from guestagent.wakeups import Source, chosen_ports, keep_open
from protocol.ports import Port, PortChange, PortOwner, Protocol, WakeupSource
from protocol.stream_messages import SocketTarget

OWNER_DELAY = 0.03
"""Seconds from a port's opening to the search for its owner: the news itself and the first client go first, and a burst
is one search."""

OWNER_REST = 10
"""How many times as long as a search took the next one has to wait: searching takes at most a tenth of the time."""

OWNER_REST_MOST = 1.0
"""Seconds after which the next search begins anyhow: one among thousands of processes must not hide later owners."""

NO_CHANGE = PortChange((), ())

_FAILED_LOOK_PAUSE = 0.25
_MAX_THREAD_HINTS = 64


class PortSink(Seam):
    """Who is told. None of the methods may block."""

    def snapshot(self, ports: frozenset[Port]) -> None:
        """Everything that is open; called once, before anything else."""

    def changed(self, change: PortChange) -> None:
        """What is different from the snapshot and all changes so far."""

    def owned(self, owners: Mapping[Port, PortOwner]) -> None:
        """Who is behind ports that were opened, or taken over by another process, a little earlier."""


@dataclass(frozen=True, slots=True)
class WatchCounters:
    """What the port watch has done so far."""

    looks: int
    """Looks at the sockets of one protocol."""
    failed_looks: int
    """Looks that gave no answer."""
    retries: int
    """Dumps that were not complete and were taken again."""
    misses: int
    """Changes that no event announced although events were live. Should stay 0."""
    finds: int
    """Changes that a tick found while no events were live."""
    owner_searches: int
    """Searches through /proc."""
    nat_reads: int
    """Reads of the address translation rules."""
    failed_nat_reads: int
    """Those that gave no answer."""
    name_rounds: int
    """Rounds of asking container engines for names."""
    failed_name_lookups: int
    """Engines that gave no answer, or none that makes sense."""


def all_sources() -> tuple[Source, ...]:
    """Every wake-up source there is."""
    return (
        TracefsSource(),
        DestroyedSocketsSource(Protocol.TCP),
        DestroyedSocketsSource(Protocol.UDP),
        NftablesSource(),
        AuditSource(),
    )


class PortWatch:
    """Watches the ports of this network namespace."""

    def __init__(
        self,
        sink: PortSink,
        *,
        sources: Sequence[Source] | None = None,
        reader: SocketReader | None = None,
        search: OwnerSearch | None = None,
        nat_reader: RuleReader | None = None,
        lookup: Lookup | None = None,
    ) -> None:
        self._sink = sink
        self._sources = all_sources() if sources is None else tuple(sources)
        self._reader = reader or SocketReader()
        self._search = search or OwnerSearch()
        self._table = PortTable()
        self._nat = NatWatch(self._rules_changed, covered=self._sees_rules, reader=nat_reader)
        self._merged = MergedPorts(self._table)
        self._names = ContainerNames(
            lookup or ContainerLookup(search=self._search), named=self._tell_owners, inodes=self._table.inodes
        )
        self._schedules: dict[Protocol, DumpSchedule] = {}
        self._look_timer = Timer()
        self._owners: dict[Port, PortOwner] = {}
        self._orphans: dict[Port, int] = {}
        self._owner_timer = Timer()
        self._threads: list[int] = []
        self.own_inodes: set[int] = set()
        """Sockets that are nobody's port: the agent listens there for the host."""
        self._chosen_by_kernel = chosen_ports()
        self._looks = self._failed_looks = self._finds = self._searches = 0

    @property
    def ports(self) -> frozenset[Port]:
        """The ports that are open."""
        return self._table.ports | self._merged.shown

    @property
    def owners(self) -> Mapping[Port, PortOwner]:
        """The owners that are known, of ports that are open."""
        return self._owners

    def sources(self) -> tuple[WakeupSource, ...]:
        """The wake-up sources, then the safety tick and the reader of the truth: live, or why not."""
        reason = self._reader.reason()
        return (
            *(state.report() for source in self._sources for state in source.states),
            WakeupSource("safety tick", True, "", self.counters().misses + self._finds),
            WakeupSource("sock_diag dump", not reason, f"{reason} (/proc/net is read)" if reason else "", 0),
            self._nat.report(),
        )

    def counters(self) -> WatchCounters:
        """What was done so far."""
        return WatchCounters(
            looks=self._looks,
            failed_looks=self._failed_looks,
            retries=self._reader.retries,
            misses=sum(schedule.misses for schedule in self._schedules.values()),
            finds=self._finds,
            owner_searches=self._searches,
            nat_reads=self._nat.counters().reads,
            failed_nat_reads=self._nat.counters().failed_reads,
            name_rounds=self._names.rounds,
            failed_name_lookups=self._names.failures,
        )

    def skipped_rules(self) -> dict[str, int]:
        """What translation rules were left out, in words, with how many."""
        return self._nat.skipped()

    def route(self, protocol: Protocol, target: SocketTarget) -> SocketTarget:
        """Where to dial for `target`: itself unless a translation leads elsewhere (`nat_ports`)."""
        dial = dial_for((protocol, target.address, target.port), self._nat.ports.dials, self._table)
        return SocketTarget(*dial) if dial else target

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Watch until cancelled; started as soon as the sink has its snapshot."""
        try:
            await self._take_snapshot()
            task_status.started()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._find_owners)
                nursery.start_soon(self._nat.run)
                nursery.start_soon(self._names.run)
                for source in self._sources:
                    nursery.start_soon(keep_open, source, self)
                await self._look_when_due()
        finally:
            self._reader.close()
        raise AssertionError("the loop above ends only by being cancelled")

    def wake(self, protocols: frozenset[Protocol]) -> float:
        """Look at `protocols`, at once if it is time; see `wakeups.Watch`."""
        now = trio.current_time()
        for protocol in protocols:
            self._schedules[protocol].wake(now)
        self._look_at_what_is_due()  # here and not in the loop: a task switch costs milliseconds under emulation
        self._cover()
        self._look_timer.hurry(self._next_look())
        now = trio.current_time()
        return min((self._schedules[protocol].wait(now) for protocol in protocols), default=0.0)

    def wake_rules(self) -> float:
        """Read the translation rules again; see `wakeups.Watch`."""
        return self._nat.wake()

    def note_threads(self, threads: Sequence[int]) -> None:
        """Where to look for owners first. Only the last ones are kept."""
        self._threads = [*self._threads, *threads][-_MAX_THREAD_HINTS:]

    def is_open(self, protocol: Protocol, number: int) -> bool:
        """Whether a port with that number is known to be open, at any address."""
        return self._table.is_open(protocol, number)

    async def _take_snapshot(self) -> None:
        while True:
            try:
                for protocol in Protocol:
                    self._orphans.update(self._table.update(protocol, self._read(protocol)).new_inodes)
                break
            except (OSError, KernelDataError):
                self._failed_looks += 1
            await trio.sleep(_FAILED_LOOK_PAUSE)
        now = trio.current_time()
        self._schedules = {protocol: DumpSchedule(now) for protocol in Protocol}
        self._sink.snapshot(self._table.ports)

    async def _look_when_due(self) -> NoReturn:
        self._cover()
        while True:
            await self._look_timer.wait(self._next_look())
            self._look_at_what_is_due()

    def _next_look(self) -> float:
        return min(schedule.due() for schedule in self._schedules.values())

    def _look_at_what_is_due(self) -> None:
        for protocol, schedule in self._schedules.items():
            if cause := schedule.begin(trio.current_time()):
                self._look(protocol, schedule, cause)

    def _cover(self) -> None:
        """Tell the schedules which protocols are watched over by live events."""
        live = [state for source in self._sources for state in source.states if state.live]
        now = trio.current_time()
        for protocol, schedule in self._schedules.items():
            opening = any(protocol in state.opening for state in live)
            closing = any(protocol in state.closing for state in live)
            schedule.cover(opening and closing, now)

    def _look(self, protocol: Protocol, schedule: DumpSchedule, cause: Cause) -> None:
        self._looks += 1
        began = time.thread_time()
        try:
            sockets = self._read(protocol)
        except (OSError, KernelDataError):
            self._failed_looks += 1
            schedule.failed(trio.current_time())
            return
        look = self._table.update(protocol, sockets)
        change = look.change
        if change:
            for port in change.closed:
                self._orphans.pop(port, None)
            self._tell(change, self._merged.follow(change))
        if look.new_inodes:
            self._orphans.update(look.new_inodes)
            self._owner_timer.hurry(trio.current_time() + OWNER_DELAY)
        changes = len(change.opened) + len(change.closed)
        if cause is Cause.TICK and schedule.covered:
            changes -= sum(map(self._is_clients, change.opened))
        elif cause is Cause.TICK:
            self._finds += changes
        schedule.finish(cause, changes, time.thread_time() - began, trio.current_time())

    def _is_clients(self, port: Port) -> bool:
        """Whether no event announces it: the kernel chose the number (`wakeup_tracefs`)."""
        return port.protocol is Protocol.UDP and port.number in self._chosen_by_kernel

    def _read(self, protocol: Protocol) -> frozenset[ListeningSocket]:
        sockets = self._reader.read(protocol)
        if not self.own_inodes:
            return sockets
        return frozenset(sock for sock in sockets if sock.inode not in self.own_inodes)

    def _sees_rules(self) -> bool:
        return any(state.live and state.rules for source in self._sources for state in source.states)

    def _rules_changed(self, found: NatPorts) -> None:
        self._tell(NO_CHANGE, self._merged.replace(found.ports()))
        self._tell_owners(self._owners_of_rules(self._merged.shown, found))

    def _tell(self, sockets: PortChange, translated: PortChange) -> None:
        """Tell what has changed. A port that passes from one to the other is opened first, so that it is never gone."""
        changes: tuple[PortChange, ...] = (sockets, translated)
        if translated and sockets:
            opened, closed = (sockets.opened + translated.opened, sockets.closed + translated.closed)
            changes = (PortChange(opened, ()), PortChange((), closed))
        for change in filter(None, changes):
            self._sink.changed(change)
            for port in change.closed:
                self._owners.pop(port, None)
                self._names.forget(port)
        self._tell_owners(self._owners_of_rules(translated.opened, self._nat.ports))

    def _owners_of_rules(self, ports: Iterable[Port], found: NatPorts) -> dict[Port, PortOwner]:
        owners = {}
        for port in ports:
            key = (port.protocol, port.address, port.number)
            target = found.dials[key][0]
            owners[port] = self._names.take(port, found.owners[key], "" if target in LOOPBACK.values() else target)
        return owners

    def _tell_owners(self, owners: Mapping[Port, PortOwner]) -> None:
        if new := {port: owner for port, owner in owners.items() if self._owners.get(port) != owner}:
            self._owners.update(new)
            self._sink.owned(new)

    async def _find_owners(self) -> NoReturn:
        while True:
            await self._owner_timer.wait(trio.current_time() + OWNER_DELAY if self._orphans else math.inf)
            asked, self._orphans = self._orphans, {}
            threads, self._threads = self._threads[::-1], []
            began = trio.current_time()
            self._searches += 1
            found = await self._search.find(set(asked.values()), threads)
            owners = {
                port: self._names.take(port, found[inode], "")
                for port, inode in asked.items()
                if inode in found and inode in self._table.inodes(port)
            }
            self._tell_owners(owners)
            await trio.sleep(min(OWNER_REST * (trio.current_time() - began), OWNER_REST_MOST))
