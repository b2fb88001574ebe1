"""A host and a guest that do anything, over a link that does anything.

Whatever is cut, lost, repeated or made up: what a stream's reader gets is a prefix of what its writer sent, all of it
when the end of data came, and after the last fault both ends are in one generation again that works.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from protocol.connection import Event, GenerationEnded
from protocol.errors import LocalProtocolError
from protocol.limits import GUEST_PING_AFTER, PONG_WITHIN, STREAM_WINDOW
from protocol.stream_messages import Data, EndOfData, Open, Refused, Reset, SocketTarget, StreamKind
from protocol.streams import Stream, StreamState
from tests.protocol.pair import End, Pair

SIDES = st.sampled_from(["host", "guest"])


@dataclass
class Direction:
    """What one end wrote to a stream, and what the other end got."""

    sent: bytearray = field(default_factory=bytearray)
    got: bytearray = field(default_factory=bytearray)
    finished: bool = False
    ended: bool = False


@dataclass
class Tunnel:
    """One stream, with the opener's name, and both of its directions by the writer's name."""

    opener: str
    ends: dict[str, Stream]
    ways: dict[str, Direction] = field(default_factory=lambda: {"host": Direction(), "guest": Direction()})


class LossyLink(RuleBasedStateMachine):
    """The rules are what agents and links do; the invariants are what this package promises."""

    tunnels = Bundle("tunnels")

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed: int) -> None:
        self.pair = Pair(seed=seed).connect()
        self.by_address: dict[str, Tunnel] = {}
        self.known: dict[tuple[str, int], Tunnel] = {}

    def end(self, name: str) -> End:
        return self.pair.host if name == "host" else self.pair.guest

    def hear(self, name: str, events: list[Event]) -> None:
        """Do what an agent does with events."""
        connection = self.end(name).connection
        for event in events:
            if isinstance(event, Open):
                stream = connection.stream(event.stream)
                assert isinstance(event.target, SocketTarget)
                tunnel = self.by_address[event.target.address]
                self.known[name, event.stream] = tunnel
                if stream is not None:
                    tunnel.ends[name] = stream
                    connection.accept_stream(stream)
            elif isinstance(event, Data):
                way = self.way_to(name, event.stream)
                assert not way.ended
                way.got += event.payload
                stream = self.known[name, event.stream].ends.get(name)
                if stream is not None:
                    connection.consumed(stream, len(event.payload))
            elif isinstance(event, EndOfData):
                self.way_to(name, event.stream).ended = True
            elif isinstance(event, Refused | Reset):
                del self.known[name, event.stream]
            elif isinstance(event, GenerationEnded):
                self.forget(name)

    def way_to(self, reader: str, number: int) -> Direction:
        return self.known[reader, number].ways["guest" if reader == "host" else "host"]

    def forget(self, name: str) -> None:
        self.known = {key: tunnel for key, tunnel in self.known.items() if key[0] != name}

    # -- what agents do

    @rule(target=tunnels, name=SIDES)
    def open(self, name: str) -> Tunnel:
        tunnel = Tunnel(name, {})
        address = str(ipaddress.IPv6Address(len(self.by_address) + 1))
        self.by_address[address] = tunnel
        if self.end(name).connection.running:
            stream = self.end(name).connection.open_stream(StreamKind.TCP, SocketTarget(address, 1))
            tunnel.ends[name] = stream
            self.known[name, stream.number] = tunnel
        return tunnel

    @rule(tunnel=tunnels, name=SIDES, size=st.sampled_from([1, 10, 5_000, 70_000, 300_000]))
    def write(self, tunnel: Tunnel, name: str, size: int) -> None:
        way = tunnel.ways[name]
        stream = tunnel.ends.get(name)
        if stream is None or way.finished:
            return
        data = bytes((len(way.sent) + i) % 251 for i in range(min(size, 1_000))) * max(1, size // 1_000)
        try:
            if self.end(name).connection.send_data(stream, data):
                way.sent += data
        except LocalProtocolError:
            assert stream.state is StreamState.OFFERED

    @rule(tunnel=tunnels, name=SIDES)
    def finish(self, tunnel: Tunnel, name: str) -> None:
        stream = tunnel.ends.get(name)
        if stream is not None and not tunnel.ways[name].finished and stream.state not in ("opening", "offered"):
            self.end(name).connection.send_end(stream)
            tunnel.ways[name].finished = True

    @rule(tunnel=consumes(tunnels), name=SIDES)
    def reset(self, tunnel: Tunnel, name: str) -> None:
        if (stream := tunnel.ends.get(name)) is not None:
            self.end(name).connection.send_reset(stream, "any reason")
            self.known.pop((name, stream.number), None)

    # -- what the link does

    @rule(name=SIDES)
    def leave(self, name: str) -> None:
        self.pair.other(self.end(name)).coming += self.end(name).connection.data_to_send()

    @rule(name=SIDES, size=st.integers(0, 200_000) | st.just(10**9), step=st.sampled_from([None, None, 4_096]))
    def arrive(self, name: str, size: int, step: int | None) -> None:
        end = self.end(name)
        for _ in range(1 if step is None else 10):
            self.hear(name, self.pair.arrive(end, size if step is None else step))

    @rule()
    def talk(self) -> None:
        for name in ("host", "guest", "host", "guest"):
            self.leave(name)
            self.arrive("guest" if name == "host" else "host", 10**9, None)

    @rule(name=SIDES, start=st.integers(0, 1_000), size=st.integers(1, 150_000))
    def lose(self, name: str, start: int, size: int) -> None:
        del self.end(name).coming[start : start + size]

    @rule(name=SIDES, start=st.integers(0, 100_000), size=st.integers(1, 5_000))
    def repeat(self, name: str, start: int, size: int) -> None:
        coming = self.end(name).coming
        coming[start:start] = coming[start : start + size]

    @rule(name=SIDES, garbage=st.binary(min_size=1, max_size=100))
    def insert(self, name: str, garbage: bytes) -> None:
        self.end(name).coming += garbage

    @rule(name=SIDES, keep=st.integers(0, 100_000))
    def restart(self, name: str, keep: int) -> None:
        """The agent dies in mid-frame; all, some or none of what it wrote still arrives."""
        end = self.end(name)
        del self.pair.other(end).coming[keep:]
        self.forget(name)
        for tunnel in self.by_address.values():
            tunnel.ends.pop(name, None)
        self.pair.restart(end)

    @rule(name=SIDES, keep=st.integers(0, 100_000))
    def reconnect(self, name: str, keep: int) -> None:
        """The transport is replaced below an agent that lives."""
        end = self.end(name)
        del self.pair.other(end).coming[keep:]
        self.hear(name, end.connection.disconnected("cut"))
        end.connection.connected(self.pair.now)

    @rule(seconds=st.sampled_from([0.5, 1.0, 6.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.pair.now += seconds
        for name in ("host", "guest"):
            self.hear(name, self.end(name).connection.handle_time(self.pair.now))

    # -- what is promised

    @invariant()
    def readers_get_a_prefix(self) -> None:
        for tunnel in getattr(self, "by_address", {}).values():
            for way in tunnel.ways.values():
                assert way.sent.startswith(way.got)
                assert not way.ended or (way.finished and way.got == way.sent)

    @invariant()
    def credit_and_queues_are_bounded(self) -> None:
        for name in ("host", "guest") if hasattr(self, "pair") else ():
            for stream in self.end(name).connection.streams:
                assert 0 <= stream.credit <= STREAM_WINDOW
                assert 0 <= stream._granted <= STREAM_WINDOW

    def teardown(self) -> None:
        """No more faults: both come back by themselves, and everything that still lives arrives."""
        if not hasattr(self, "pair"):
            return
        deadline = self.pair.now + GUEST_PING_AFTER + PONG_WITHIN + 10.0
        while self.pair.now < deadline:
            for _ in range(20):
                self.talk()
            self.wait(0.5)
        host, guest = self.pair.host.connection, self.pair.guest.connection
        assert host.running
        assert guest.running
        assert host._handshake._marker == guest._handshake._peer_marker
        assert {stream.number for stream in host.streams} == {stream.number for stream in guest.streams}
        for tunnel in self.by_address.values():
            if all(name in tunnel.ends and not tunnel.ends[name].finished for name in ("host", "guest")):
                assert all(way.got == way.sent for way in tunnel.ways.values())
        self.readers_get_a_prefix()


TestLossyLink = LossyLink.TestCase
TestLossyLink.settings = settings(max_examples=40, stateful_step_count=40)
