"""The guest agent: one connection to the host, and everything that is done for it.

What lives as long as the agent: the channel, the port watch, the epoll set of the relays' sockets. What lives as long
as a generation: the streams. When one ends, relays abort and commands are hung up; the ports are watched on, so that
the next generation starts at once with all that is open.

Events are acted on where they come in, without a task switch. The link flushes once behind each batch. A bug in a
stream's handler ends that stream (`stream_table`); a bug here ends the process, and the supervisor starts it again.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import trio

from guestagent import clock, power
from guestagent.channel import Channel
from guestagent.command_groups import CommandGroups
from guestagent.datagram_relay import DatagramRelays
from guestagent.execution import Execution, Executions
from guestagent.listeners import Listeners
from guestagent.lost_datagrams import lost_datagrams
from guestagent.port_watch import PortSink, PortWatch
from guestagent.readiness import Readiness
from guestagent.relay import TcpRelays
from guestagent.stream_table import StreamTable
from protocol.connection import Connection, Event, GenerationEnded, GenerationStarted, Incompatible, Role
from protocol.limits import MAX_PORTS, PORTS_PER_FRAME, PROTOCOL_VERSIONS
from protocol.listener_messages import Listen, Unlisten
from protocol.messages import (
    Clock,
    Hello,
    PortOwners,
    PortsChanged,
    PortsSnapshot,
    PowerOff,
    Status,
    StatusRequest,
)
from protocol.ports import Port, PortChange, PortOwner, Protocol
from protocol.stream_messages import (
    CommandTarget,
    Data,
    EndOfData,
    ListenerTarget,
    Open,
    Opened,
    Refused,
    Reset,
    Resize,
    Signal,
    SocketTarget,
    StreamKind,
)

CAPABILITIES = frozenset({"tcp", "udp", "unix", "listen", "exec", "ports", "clock", "power"})

_OWNERS_PER_FRAME = 64
"""Owners in one frame: each has two names of up to 255 bytes."""

_Item = TypeVar("_Item")
_log = logging.getLogger(__name__)


def describe_guest(release: Path = Path("/etc/os-release")) -> str:
    """Operating system and kernel in one line, for `status`."""
    name = "Linux"
    with contextlib.suppress(OSError):
        for line in release.read_text("utf-8", "replace").splitlines():
            key, _, value = line.partition("=")
            if key == "PRETTY_NAME":
                name = value.strip().strip("\"'")
    return f"{name}, Linux {platform.release()}"


def introduce(version: str) -> Hello:
    """What this agent says about itself."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return Hello(*PROTOCOL_VERSIONS, CAPABILITIES, version, boot_id, describe_guest())


def in_parts(items: Iterable[_Item], size: int) -> Iterator[tuple[_Item, ...]]:
    """`items` in order, at most `size` at a time."""
    iterator = iter(items)
    while part := tuple(islice(iterator, size)):
        yield part


class GuestAgent:
    """Serves the host at the other end of the virtio port called `channel`; a `PortSink`."""

    def __init__(
        self,
        channel: str,
        version: str,
        nursery: trio.Nursery,
        groups: CommandGroups,
        watch: Callable[[PortSink], PortWatch] = PortWatch,
    ) -> None:
        self._connection = connection = Connection(Role.GUEST, introduce(version), random=os.urandom)
        self._nursery = nursery
        self._table = table = StreamTable(connection)
        self._readiness = Readiness(settled=self.flush, failed=table.failed)
        self._channel = Channel(channel, connection, self._readiness, dispatch=self.dispatch, unpaused=table.unpaused)
        flush = self._channel.flush
        self._tcp = TcpRelays(connection, table, self._readiness, nursery, flush)
        self._udp = DatagramRelays(connection, table, self._readiness)
        self._commands = Executions(connection, table, nursery, flush, groups)
        self._watch = watch(self)
        self._listeners = listeners = Listeners(
            connection, table, self._readiness, nursery, self._watch.own_inodes, flush
        )
        self._watching = False
        self._generations = 0
        self._actions: dict[type[Event], Callable[[Any], None]] = {
            Data: table.data,
            EndOfData: table.end,
            Reset: table.reset,
            Open: self._open,
            Opened: listeners.opened,
            Refused: listeners.refused,
            Listen: listeners.listen,
            Unlisten: listeners.unlisten,
            Signal: self._signal,
            Resize: self._resize,
            GenerationStarted: self._start_generation,
            GenerationEnded: self._end_generation,
            Incompatible: self._refuse_host,
            StatusRequest: self._send_status,
            Clock: self._set_clock,
            PowerOff: self._power_off,
        }

    async def run(self) -> NoReturn:
        """Serve until cancelled. Raises `OSError` when the channel cannot be used."""
        with contextlib.closing(self._readiness):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch.run)
                nursery.start_soon(self._readiness.run)
                # What is there now stays: it need not be looked at again by each collection.
                gc.collect()
                gc.freeze()
                await self._channel.run()
        raise AssertionError("the channel is served until cancelled")

    def flush(self) -> None:
        """Write what was said."""
        self._channel.flush()

    def withdraw_ports(self) -> None:
        """Tell the host that nothing is to be forwarded any more: this guest is about to shut down."""
        if self._connection.running:
            self._connection.send(PortsSnapshot((), last=True))
            self._channel.flush()

    def dispatch(self, events: list[Event]) -> None:
        """Act on what the host said."""
        for event in events:
            action = self._actions.get(type(event))
            if action is None:
                _log.warning("the host sent %s, which is not for a guest", type(event).__name__)
            else:
                action(event)

    # ------------------------------------------------------------------ streams

    def _open(self, message: Open) -> None:
        stream = self._connection.stream(message.stream)
        if stream is None:
            return  # a RESET came in the same batch
        target = message.target
        try:
            if isinstance(target, CommandTarget):
                self._commands.open(stream, target)
            elif isinstance(target, ListenerTarget):
                self._connection.refuse_stream(stream, "EPERM", "the host's streams do not come from listeners")
            elif not isinstance(target, SocketTarget):
                self._tcp.open(stream, target)
            elif message.kind is StreamKind.UDP:
                self._udp.open(stream, self._watch.route(Protocol.UDP, target))
            else:
                self._tcp.open(stream, self._watch.route(Protocol.TCP, target))
        except Exception:
            _log.exception("%r could not be opened; it is reset", stream)
            self._connection.send_reset(stream, "bug in the guest agent; see its log")

    def _signal(self, message: Signal) -> None:
        if isinstance(execution := self._table.get(message.stream), Execution):
            execution.receive_signal(message.name)

    def _resize(self, message: Resize) -> None:
        if isinstance(execution := self._table.get(message.stream), Execution):
            execution.receive_size(message.size)

    # ------------------------------------------------------------------ generations

    def _start_generation(self, event: GenerationStarted) -> None:
        self._generations += 1
        _log.info("generation %d with host agent %s", self._generations, event.peer.agent_version)
        if self._watching:
            self._send_all_ports()
        self._send_status()

    def _end_generation(self, event: GenerationEnded) -> None:
        _log.log(logging.WARNING if event.fault else logging.INFO, "the generation ended: %s", event.reason)
        self._listeners.end_generation()
        self._table.end_generation()

    def _refuse_host(self, event: Incompatible) -> None:
        theirs = f"{event.peer.lowest_version} to {event.peer.highest_version}"
        _log.error("the host agent %s speaks versions %s of the protocol", event.peer.agent_version, theirs)

    # ------------------------------------------------------------------ ports (PortSink)

    def snapshot(self, ports: frozenset[Port]) -> None:
        """The port watch has begun."""
        self._watching = True
        if self._connection.running:
            self._send_all_ports()
            self._channel.flush()

    def changed(self, change: PortChange) -> None:
        """Ports opened or closed."""
        if not self._connection.running:
            return
        for part in in_parts(change.closed, PORTS_PER_FRAME):
            self._connection.send(PortsChanged((), part))
        for part in in_parts(change.opened, PORTS_PER_FRAME):
            self._connection.send(PortsChanged(part, ()))
        self._channel.flush()

    def owned(self, owners: Mapping[Port, PortOwner]) -> None:
        """Owners of ports became known."""
        if self._connection.running:
            self._send_owners(owners)
            self._channel.flush()

    def _send_all_ports(self) -> None:
        ports = sorted(self._watch.ports)
        if len(ports) > MAX_PORTS:
            _log.warning("%d ports are open; the host hears of %d", len(ports), MAX_PORTS)
            del ports[MAX_PORTS:]
        *parts, last = list(in_parts(ports, PORTS_PER_FRAME)) or [()]
        for part in parts:
            self._connection.send(PortsSnapshot(part, last=False))
        self._connection.send(PortsSnapshot(last, last=True))
        self._send_owners(self._watch.owners)

    def _send_owners(self, owners: Mapping[Port, PortOwner]) -> None:
        for part in in_parts(owners.items(), _OWNERS_PER_FRAME):
            self._connection.send(PortOwners(part))

    # ------------------------------------------------------------------ the guest itself

    def _send_status(self, _request: object = None) -> None:
        counters: dict[str, int] = {
            "generations": self._generations,
            "streams": len(self._table),
            "tasks": trio.lowlevel.current_statistics().tasks_living,
            **self._tcp.counters,
            **self._udp.counters,
            **self._commands.counters,
            **self._listeners.counters,
            **lost_datagrams(),
            **{name.replace("_", " "): count for name, count in asdict(self._watch.counters()).items()},
            **{f"NAT skipped: {reason}": count for reason, count in self._watch.skipped_rules().items()},
        }
        self._connection.send(Status(self._watch.sources(), tuple(counters.items())))

    def _set_clock(self, message: Clock) -> None:
        clock.follow_host(message.nanoseconds)

    def _power_off(self, message: PowerOff) -> None:
        self._nursery.start_soon(self._shut_down, message.reboot)

    async def _shut_down(self, reboot: bool) -> None:
        try:
            await power.shut_down(reboot=reboot)
        except OSError as exc:  # a container; the host has other ways
            _log.error("cannot shut down: %s", exc.strerror)
