"""The host's side of a guest without a host agent around it: the real channel, the real forwarder, no API, no QEMU.

Between the channel and QEMU's socket stands a `Wire`, so that a test can cut it, or write into it what neither agent
said.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from hostagent.channel import Channel
from hostagent.forward_rules import ForwardRule, RuleSet
from hostagent.forwarder import Forwarder
from hostagent.forwards import Endpoint, Forward, ForwardState, SocketFile
from hostagent.port_reports import PortReports
from hostagent.reverse_forwards import ReverseForwards
from protocol.limits import PROTOCOL_VERSIONS
from protocol.listener_messages import ListenFailed, Listening
from protocol.messages import Hello, Message, PortOwners, PortsChanged, PortsSnapshot, Status, StatusRequest
from protocol.ports import Protocol
from tests.e2e.wire import Wire

PATIENCE = 30.0
"""Bound on what should happen at once. It only has to hold on a machine that is busy with something else as well."""


def port_number(end: Endpoint | SocketFile) -> int:
    """The port of an end that is one."""
    assert isinstance(end, Endpoint)
    return end.port


class HostSide:
    """What a host agent would know of the guest. Implements `channel.ChannelObserver`."""

    def __init__(self, channel_socket: Path, rules: RuleSet) -> None:
        hello = Hello(*PROTOCOL_VERSIONS, frozenset({"tcp", "udp", "unix", "listen", "exec"}), "test", "", "")
        self.channel = Channel(channel_socket, hello, self)
        self.reverse = ReverseForwards(self.channel, rules.standing(), self._forward_changed, most_connections=256)
        self.forwarder = Forwarder(self.channel, rules, self._forward_changed)
        self.ends: list[str] = []
        """Why generations ended."""
        self.generations = 0
        self.status: Status | None = None
        self._ports = PortReports(self.forwarder)
        self._ready_generation = 0
        self._changed = trio.lowlevel.ParkingLot()

    # ------------------------------------------------------------------ ChannelObserver

    def generation_started(self, peer: Hello) -> None:
        """The guest agent is there."""
        self.generations += 1
        self._ports.begin_generation()
        self.reverse.start(peer)

    def generation_ended(self, reason: str, *, fault: bool) -> None:
        """The guest agent is away."""
        self.ends.append(f"fault: {reason}" if fault else reason)
        self.forwarder.stall()
        self.reverse.stall()
        self._changed.unpark_all()

    def distrusted(self, reason: str) -> None:
        """No test here goes that far."""
        raise AssertionError(reason)

    def incompatible(self, peer: Hello) -> None:
        """Never: both come from the same checkout."""
        raise AssertionError(peer)

    def message(self, message: Message) -> None:
        """What a host agent does with it."""
        match message:
            case PortsSnapshot() | PortsChanged() | PortOwners():
                assert self._ports.receive(message)
                if isinstance(message, PortsSnapshot) and message.last:
                    self._ready_generation = self.generations
            case Listening() | ListenFailed():
                self.reverse.answer(message)
            case Status():
                self.status = message
        self._changed.unpark_all()

    def _forward_changed(self, _forward: Forward, _present: bool) -> None:
        self._changed.unpark_all()

    # ------------------------------------------------------------------ for tests

    async def wait_until(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Wait for `condition`, looked at whenever the guest said something; `TooSlowError` after `seconds`."""
        with trio.fail_after(seconds):
            while not condition():
                await self._changed.park()

    async def ready(self, after: int = 0, seconds: float = PATIENCE) -> None:
        """Wait for the whole list of ports of a generation later than number `after`."""
        await self.wait_until(lambda: self._ready_generation > after and self.channel.running, seconds)

    def forward(self, port: int, protocol: Protocol = Protocol.TCP) -> Forward | None:
        """The forward of the guest's `port`; of several addresses, the first."""
        found = (one for one in self.forwarder.forwards if (port_number(one.guest), one.protocol) == (port, protocol))
        return next(found, None)

    async def listening(self, *ports: int, protocol: Protocol = Protocol.TCP) -> None:
        """Wait until all of `ports` are forwarded."""

        def all_there() -> bool:
            found = [self.forward(port, protocol) for port in ports]
            return all(one is not None and one.state is ForwardState.LISTENING for one in found)

        await self.wait_until(all_there)

    async def gone(self, *ports: int, protocol: Protocol = Protocol.TCP) -> None:
        """Wait until none of `ports` has a forward."""
        await self.wait_until(lambda: not any(self.forward(port, protocol) for port in ports))

    async def fresh_status(self) -> Status:
        """What the guest agent answers now when asked how it is doing."""
        self.status = None
        self.channel.send(StatusRequest())
        await self.wait_until(lambda: self.status is not None)
        assert self.status is not None
        return self.status


@asynccontextmanager
async def host_side(channel_socket: Path, *rules: ForwardRule) -> AsyncIterator[HostSide]:
    """A host's side that has the guest's list of ports."""
    side = HostSide(channel_socket, RuleSet(rules))
    async with trio.open_nursery() as nursery:
        await nursery.start(side.forwarder.run)
        await nursery.start(side.reverse.run)
        nursery.start_soon(side.channel.run)
        await side.ready(seconds=60)  # the guest agent may just be starting

        yield side
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def breakable_host_side(channel_socket: Path, *rules: ForwardRule) -> AsyncIterator[tuple[HostSide, Wire]]:
    """The same behind a wire that can be cut."""
    with tempfile.TemporaryDirectory(prefix="wire-") as folder:
        wire = Wire(Path(folder) / "wire.sock", channel_socket)
        async with trio.open_nursery() as nursery:
            await nursery.start(wire.run)
            async with host_side(wire.path, *rules) as side:
                yield side, wire
            nursery.cancel_scope.cancel()
