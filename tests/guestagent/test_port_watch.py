"""The port watch: on the real kernel with every source, with none, and on a made-up kernel with a clock that jumps."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import NoReturn

import pytest
import trio
import trio.testing

from guestagent.dump_schedule import LATE, POLL_TICK, SAFETY_TICK
from guestagent.netlink import KernelDataError
from guestagent.port_owner import OwnerSearch
from guestagent.port_watch import PortWatch, all_sources
from guestagent.sock_diag import SocketReader
from guestagent.socket_table import ListeningSocket, SocketState
from guestagent.wakeup_netlink import DestroyedSocketsSource, NftablesSource
from guestagent.wakeup_tracefs import TracefsSource
from guestagent.wakeups import TCP_AND_UDP, Source, SourceState, SourceUnavailableError, Watch, went_live
from protocol.ports import Port, PortChange, PortKind, PortOwner, Protocol
from protocol.stream_messages import SocketTarget
from tests.guestagent.network_namespace import network_namespace


class RecordingSink:
    """Keeps what it is told, checks that it adds up, and can be waited for."""

    def __init__(self) -> None:
        self.snapshots: list[frozenset[Port]] = []
        self.ports: set[Port] = set()
        self.changes: list[tuple[float, PortChange]] = []
        self.owners: dict[Port, PortOwner] = {}
        self._news = trio.Event()

    def snapshot(self, ports: frozenset[Port]) -> None:
        self.snapshots.append(ports)
        self.ports = set(ports)

    def changed(self, change: PortChange) -> None:
        assert change
        assert not self.ports & set(change.opened)
        assert self.ports >= set(change.closed)
        self.ports = (self.ports - set(change.closed)) | set(change.opened)
        self.changes.append((trio.current_time(), change))
        self._tell()

    def owned(self, owners: Mapping[Port, PortOwner]) -> None:
        assert self.ports >= owners.keys()
        self.owners.update(owners)
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(20):
            while not condition():
                await self._news.wait()


@asynccontextmanager
async def watching(watch: PortWatch) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(watch.run)
        yield
        nursery.cancel_scope.cancel()


# --- the real kernel ------------------------------------------------------------------------------------------------

ADDRESSES = (
    (Protocol.TCP, socket.AF_INET, "127.0.0.1"),
    (Protocol.TCP, socket.AF_INET6, "::"),
    (Protocol.UDP, socket.AF_INET, "0.0.0.0"),
    (Protocol.UDP, socket.AF_INET6, "::1"),
)


def bind(protocol: Protocol, family: socket.AddressFamily, address: str) -> tuple[socket.socket, Port]:
    bound = socket.socket(family, socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM)
    bound.bind((address, 0))
    if protocol is Protocol.TCP:
        bound.listen()
    return bound, Port(protocol, address, bound.getsockname()[1])


@pytest.fixture
def namespace() -> Iterator[None]:
    with network_namespace():
        yield


def real_sources() -> tuple[Source, ...]:
    """All sources, with the tracing instance under a name of our own."""
    others = [source for source in all_sources() if not isinstance(source, TracefsSource)]
    return (TracefsSource(name=f"hostagent_test{os.getpid()}"), *others)


FORCED_AWAY: dict[str, Callable[[], tuple[tuple[Source, ...], SocketReader]]] = {
    "everything there": lambda: (real_sources(), SocketReader()),
    "no sources": lambda: ((), SocketReader()),
    "no sock_diag": lambda: (real_sources()[:1], SocketReader(use_sock_diag=False)),
    "no tracefs": lambda: (real_sources()[1:], SocketReader()),
    "nothing at all": lambda: ((), SocketReader(use_sock_diag=False)),
}


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("kernel", FORCED_AWAY)
async def test_every_port_is_told_with_its_owner_whatever_the_kernel_lacks(kernel: str) -> None:
    sources, reader = FORCED_AWAY[kernel]()
    early, early_port = bind(*ADDRESSES[0])
    sink = RecordingSink()
    watch = PortWatch(sink, sources=sources, reader=reader)
    async with watching(watch):
        assert sink.snapshots == [{early_port}]
        opened = [bind(*address) for address in ADDRESSES]
        ports = {port for _, port in opened}
        await sink.until(lambda: sink.ports == ports | {early_port})
        await sink.until(lambda: sink.owners.keys() == ports | {early_port})
        assert {owner.pid for owner in sink.owners.values()} == {os.getpid()}
        assert watch.ports == sink.ports
        assert watch.owners == sink.owners
        for bound, _ in opened:
            bound.close()
        early.close()
        await sink.until(lambda: not sink.ports)
        assert not watch.owners
    assert watch.counters().misses == 0
    assert watch.counters().failed_looks == 0


@pytest.mark.usefixtures("namespace")
async def test_a_udp_server_that_connects_stays_open_until_it_closes() -> None:
    sink = RecordingSink()
    async with watching(PortWatch(sink, sources=[DestroyedSocketsSource(Protocol.UDP)])):
        server, port = bind(Protocol.UDP, socket.AF_INET, "0.0.0.0")
        await sink.until(lambda: port in sink.ports)
        server.connect(("127.0.0.1", 9))
        other, other_port = bind(Protocol.UDP, socket.AF_INET, "127.0.0.1")
        await sink.until(lambda: other_port in sink.ports)  # a look that sees the server connected
        assert port in sink.ports
        server.close()
        await sink.until(lambda: port not in sink.ports)
        other.close()


@pytest.mark.usefixtures("namespace")
async def test_a_storm_of_binds_is_a_few_looks() -> None:
    sink = RecordingSink()
    watch = PortWatch(sink, sources=real_sources()[:1])
    async with watching(watch):
        storm = [bind(Protocol.TCP, socket.AF_INET, "127.0.0.1") for _ in range(300)]
        await sink.until(lambda: len(sink.ports) == 300)
        assert watch.counters().looks < 60
        for bound, _ in storm:
            bound.close()
        await sink.until(lambda: not sink.ports)


# --- a made-up kernel -----------------------------------------------------------------------------------------------


class MadeUpKernel(SocketReader):
    """A socket table that a test writes, and that can fail."""

    def __init__(self) -> None:
        super().__init__()
        self.sockets: set[ListeningSocket] = set()
        self.failing: Exception | None = None

    def read(self, protocol: Protocol) -> frozenset[ListeningSocket]:
        if self.failing:
            raise self.failing
        return frozenset(item for item in self.sockets if item.protocol is protocol)


class ScriptedSource:
    """A source that wakes when the test says so, and may die."""

    def __init__(self) -> None:
        self.state = SourceState("scripted", TCP_AND_UDP, TCP_AND_UDP)
        self.watch: Watch | None = None
        self.dies = trio.Event()

    @property
    def states(self) -> tuple[SourceState, ...]:
        return (self.state,)

    async def run(self, watch: Watch) -> NoReturn:
        self.watch = watch
        went_live(self.state, watch)
        await self.dies.wait()
        raise SourceUnavailableError("scripted: died")

    def wake(self) -> None:
        assert self.watch
        self.state.wakeups += 1
        self.watch.wake(TCP_AND_UDP)


class NobodyKnows(OwnerSearch):
    """Finds no owner and touches no /proc."""

    async def find(self, *_: object) -> dict[int, PortOwner]:
        await trio.lowlevel.checkpoint()
        return {}


WEB = ListeningSocket(Protocol.TCP, "0.0.0.0", 8080, 5, 0, SocketState.LISTENING)
WEB_PORT = Port(Protocol.TCP, "0.0.0.0", 8080)
QUIET = 120.0


@asynccontextmanager
async def made_up() -> AsyncIterator[tuple[MadeUpKernel, ScriptedSource, RecordingSink, PortWatch]]:
    kernel, source, sink = MadeUpKernel(), ScriptedSource(), RecordingSink()
    watch = PortWatch(sink, sources=[source], reader=kernel, search=NobodyKnows())
    async with watching(watch):
        await trio.sleep(QUIET)
        yield kernel, source, sink, watch


async def test_a_wakeup_is_told_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with made_up() as (kernel, source, sink, _):
        kernel.sockets.add(WEB)
        now = trio.current_time()
        source.wake()
        assert sink.changes == [(now, PortChange((WEB_PORT,), ()))]


async def test_an_event_before_its_socket_can_be_seen_is_not_lost(autojump_clock: trio.testing.MockClock) -> None:
    async with made_up() as (kernel, source, sink, watch):
        source.wake()
        now = trio.current_time()
        await trio.sleep(0.001)
        kernel.sockets.add(WEB)
        await trio.sleep(1)
        assert [round(time - now, 6) for time, _ in sink.changes] == [0.002]
        assert watch.counters().misses == 0


async def test_what_only_the_tick_finds_is_counted_as_missed(autojump_clock: trio.testing.MockClock) -> None:
    async with made_up() as (kernel, _, sink, watch):
        kernel.sockets.add(WEB)
        await trio.sleep(QUIET)
        assert sink.ports == {WEB_PORT}
        assert watch.counters().misses == 1
        (tick,) = [source for source in watch.sources() if source.name == "safety tick"]
        assert tick.wakeups == 1


async def test_an_idle_guest_is_hardly_looked_at(autojump_clock: trio.testing.MockClock) -> None:
    async with made_up() as (_, _, _, watch):
        before = watch.counters().looks
        await trio.sleep(60)
        assert watch.counters().looks - before <= 4


async def test_when_the_source_dies_its_reason_is_said_and_looks_become_frequent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with made_up() as (kernel, source, sink, watch):
        source.dies.set()
        await trio.testing.wait_all_tasks_blocked()
        assert watch.sources()[0].reason == "scripted: died"
        await trio.sleep(0.5)  # past the looks that its death asked for
        kernel.sockets.add(WEB)
        began = trio.current_time()
        await trio.sleep(POLL_TICK * 1.1)
        ((found, _),) = sink.changes
        assert found - began <= POLL_TICK
        assert watch.counters().misses == 0
        assert watch.counters().finds == 1
        source.dies = trio.Event()
        await trio.sleep(10)
        assert watch.sources()[0].live


@pytest.mark.parametrize("failure", [OSError(5, "scripted"), KernelDataError("scripted")])
async def test_a_look_that_fails_closes_nothing(failure: Exception, autojump_clock: trio.testing.MockClock) -> None:
    async with made_up() as (kernel, source, sink, watch):
        kernel.sockets.add(WEB)
        source.wake()
        await trio.sleep(1)
        kernel.failing = failure
        kernel.sockets.clear()
        source.wake()
        await trio.sleep(1)
        assert sink.ports == watch.ports == {WEB_PORT}
        assert 1 <= watch.counters().failed_looks <= 2 * 25  # both protocols, 50 ms apart
        kernel.failing = None
        await trio.sleep(0.1)
        assert sink.ports == set()


async def test_the_snapshot_waits_for_a_kernel_that_answers(autojump_clock: trio.testing.MockClock) -> None:
    kernel, sink = MadeUpKernel(), RecordingSink()
    kernel.sockets.add(WEB)
    kernel.failing = KernelDataError("scripted")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(PortWatch(sink, sources=[], reader=kernel, search=NobodyKnows()).run)
        await trio.sleep(5)
        assert not sink.snapshots
        kernel.failing = None
        await trio.sleep(1)
        assert sink.snapshots == [{WEB_PORT}]
        nursery.cancel_scope.cancel()


class SlowSearch(OwnerSearch):
    """Needs ten seconds, and names the process by the inode."""

    async def find(self, inodes: object, threads: object = ()) -> dict[int, PortOwner]:
        await trio.sleep(10)
        assert isinstance(inodes, set)
        return {inode: PortOwner(f"process {inode}", inode, 0) for inode in inodes}


async def test_owners_come_later_and_only_of_ports_that_are_still_theirs(
    autojump_clock: trio.testing.MockClock,
) -> None:
    kernel, source, sink = MadeUpKernel(), ScriptedSource(), RecordingSink()
    watch = PortWatch(sink, sources=[source], reader=kernel, search=SlowSearch())
    async with watching(watch):
        await trio.sleep(QUIET)
        gone = ListeningSocket(Protocol.TCP, "0.0.0.0", 81, 6, 0, SocketState.LISTENING)
        kernel.sockets |= {WEB, gone}
        source.wake()
        await trio.sleep(1)
        assert len(sink.ports) == 2
        kernel.sockets = {ListeningSocket(Protocol.TCP, "0.0.0.0", 8080, 7, 0, SocketState.LISTENING)}
        source.wake()
        await trio.sleep(10)
        assert sink.owners == {}  # of what was asked for one is closed, and one has another owner
        await trio.sleep(200)
        assert sink.owners == watch.owners == {WEB_PORT: PortOwner("process 7", 7, 0)}
        assert len(sink.changes) == 2  # taken over: never closed


def test_ticks_leave_time_for_late_events() -> None:
    assert LATE < SAFETY_TICK


# --- ports that are no sockets ----------------------------------------------------------------------------------------


def nft(rules: str) -> None:
    subprocess.run(["nft", "--file", "-"], input=rules, text=True, check=True)


def translating(*rules: str) -> str:
    chain = "\n".join(("type nat hook prerouting priority dstnat;", *rules))
    return f"table ip test {{\nchain prerouting {{\n{chain}\n}}\n}}\n"


NAT_PORT = Port(Protocol.TCP, "0.0.0.0", 8080, PortKind.NAT)


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("events", [True, False])
async def test_a_translated_port_is_told_with_its_target_and_its_rule(events: bool) -> None:
    sink = RecordingSink()
    watch = PortWatch(sink, sources=[NftablesSource()] if events else [])
    target = SocketTarget("0.0.0.0", 8080)
    async with watching(watch):
        assert watch.route(Protocol.TCP, target) == target
        nft(translating('tcp dport 8080 dnat to 10.0.0.2:80 comment "web"'))
        await sink.until(lambda: sink.ports == {NAT_PORT})
        await sink.until(lambda: NAT_PORT in sink.owners)
        assert sink.owners[NAT_PORT] == PortOwner("nftables rule", 0, 0, "web")
        assert watch.ports == {NAT_PORT}
        assert watch.route(Protocol.TCP, target) == SocketTarget("10.0.0.2", 80)
        assert watch.route(Protocol.UDP, target) == target
        nft("delete table ip test")
        await sink.until(lambda: not sink.ports)
        assert not watch.owners
    assert watch.counters().failed_nat_reads == 0
    assert any(source.name == "NAT rules" and source.live for source in watch.sources())


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
async def test_a_port_that_a_socket_and_a_rule_open_is_one_and_is_open_while_either_is(address: str) -> None:
    sink = RecordingSink()
    watch = PortWatch(sink, sources=real_sources())
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    async with watching(watch):
        held = socket.socket(family)
        held.bind((address, 8080))
        held.listen()
        port = Port(Protocol.TCP, address, 8080)
        await sink.until(lambda: sink.ports == {port})
        nft(translating("tcp dport 8080 dnat to 10.0.0.2:80", "tcp dport 8081 dnat to 10.0.0.2:81"))
        other = Port(Protocol.TCP, "0.0.0.0", 8081, PortKind.NAT)
        await sink.until(lambda: sink.ports == {port, other})
        assert watch.route(Protocol.TCP, SocketTarget(address, 8080)) == SocketTarget("10.0.0.2", 80)
        first = len(sink.changes)
        held.close()
        await sink.until(lambda: sink.ports == {NAT_PORT, other})
        opened_first = [bool(change.opened) for _, change in sink.changes[first:]]
        assert opened_first == [True, False]
        nft("flush chain ip test prerouting")
        await sink.until(lambda: not sink.ports)


@pytest.mark.usefixtures("namespace")
async def test_listeners_and_rules_of_another_namespace_are_not_ours() -> None:
    sink = RecordingSink()
    watch = PortWatch(sink, sources=real_sources())
    async with watching(watch):
        with network_namespace():
            theirs, _ = bind(*ADDRESSES[0])
            nft(translating("tcp dport 8080 dnat to 10.0.0.2:80"))
        ours, port = bind(*ADDRESSES[0])
        await sink.until(lambda: port in sink.ports)
        nft(translating("tcp dport 8081 dnat to 10.0.0.2:80"))
        await sink.until(lambda: len(sink.ports) == 2)
        assert sink.ports == {port, Port(Protocol.TCP, "0.0.0.0", 8081, PortKind.NAT)}
        theirs.close()
        ours.close()
