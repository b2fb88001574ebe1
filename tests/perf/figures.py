"""The figures: what each one is called, what is to be reached, and how it is measured.

A target is an absolute figure of the machine that it was set on. Where QEMU's own forward was measured there too, the
target is also a ratio, which says on any machine whether we are as good as was asked.

`Bench` has a guest, its test server and two ways to it: our forwarder, which gives each port its own number on the
host, and, where there is one, QEMU's own static forwards, which add `PEER_OFFSET`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from tests.perf import clients
from tests.perf.clients import Control, percentile

SERVERS = {"echo": 22_000, "source": 22_001, "sink": 22_002, "banner": 22_003, "digest": 22_004, "hold": 22_005}
UDP_PORT = 22_010
PEER_OFFSET = 1_000
"""A peer's host port is the guest's port plus this."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value, and what it was to be."""

    name: str
    value: float
    unit: str
    target: float
    at_least: bool = False
    peer: float | None = None
    """QEMU's own forward of the same server in the same run."""
    peer_then: float | None = None
    """The same on the machine and in the run that the target was set with."""

    @property
    def met(self) -> bool:
        """Whether the target was reached."""
        return self.reaches(self.target)

    @property
    def ratio(self) -> float | None:
        """How many times the peer's figure this one is."""
        return self.value / self.peer if self.peer else None

    @property
    def target_ratio(self) -> float | None:
        """The same of the target."""
        return self.target / self.peer_then if self.peer_then else None

    @property
    def ratio_met(self) -> bool | None:
        """Whether the target was reached as a ratio, where it is one."""
        if self.ratio is None or self.target_ratio is None:
            return None
        return self.ratio >= self.target_ratio if self.at_least else self.ratio <= self.target_ratio

    def reaches(self, bound: float) -> bool:
        """Whether the value is at `bound` or better."""
        return self.value >= bound if self.at_least else self.value <= bound


@dataclass(slots=True)
class Bench:
    """A guest that is measured. `scale` is the share of the full number of repetitions."""

    control: Control
    peer: bool
    scale: float = 1.0
    next_port: int = 21_000

    def count(self, full: int) -> int:
        """How often to repeat what a full run repeats `full` times."""
        return max(5, int(full * self.scale))

    def serve(self) -> None:
        """Start the servers, on all addresses: QEMU's forwards lead to the guest's network card."""
        for kind, port in SERVERS.items():
            self.control.ask("tcp", kind=kind, host="0.0.0.0", port=port)
        self.control.ask("udp", kind="echo", host="0.0.0.0", port=UDP_PORT)
        for ready in (
            clients.time_until(lambda: clients.says_hello(SERVERS["banner"]), time.monotonic()),
            clients.time_until(lambda: clients.echoes(UDP_PORT), time.monotonic()),
        ):
            if ready >= clients.LIMIT:
                raise RuntimeError("the servers cannot be reached through the forwarder")

    def both(self, measure: Callable[[int], float], port: int) -> tuple[float, float | None]:
        """`measure` through our forwarder and through the peer."""
        return measure(port), measure(port + PEER_OFFSET) if self.peer else None

    def fresh_port(self) -> int:
        """A port that was not used yet."""
        self.next_port += 1
        return self.next_port


def _pause() -> None:
    time.sleep(random.uniform(0.1, 0.6))  # so that no phase of anybody's timer is favoured


def _open_and_close(
    bench: Bench, protocol: str, server: str, usable: Callable[[int], bool], gone: Callable[[int], bool]
) -> tuple[list[float], list[float]]:
    """Milliseconds from the guest's opening a port until it is usable on the host, and from closing it until gone."""
    opened, closed = [], []
    for _ in range(bench.count(50)):
        port = bench.fresh_port()
        _pause()
        began = time.monotonic()
        bench.control.ask(protocol, kind=server, host="127.0.0.1", port=port)
        opened.append(clients.time_until(partial(usable, port), began) * 1e3)
        _pause()
        began = time.monotonic()
        bench.control.ask("close", port=port)
        closed.append(clients.time_until(partial(gone, port), began) * 1e3)
    return opened, closed


def port_latencies(bench: Bench) -> Iterator[Figure]:
    """How soon a TCP port is usable, and how soon it is gone."""
    opened, closed = _open_and_close(bench, "tcp", "banner", clients.says_hello, clients.refused)
    yield Figure("TCP open to first byte, p50", percentile(opened, 0.5), "ms", 15)
    yield Figure("TCP open to first byte, p99", percentile(opened, 0.99), "ms", 50)
    yield Figure("TCP close to refused, p50", percentile(closed, 0.5), "ms", 15)
    yield Figure("TCP close to refused, p99", percentile(closed, 0.99), "ms", 50)


def datagram_port_latencies(bench: Bench) -> Iterator[Figure]:
    """The same for UDP."""
    opened, closed = _open_and_close(bench, "udp", "echo", clients.echoes, clients.udp_free)
    yield Figure("UDP open to first echo, p99", percentile(opened, 0.99), "ms", 50)
    yield Figure("UDP close to host port free, p99", percentile(closed, 0.99), "ms", 50)


def latencies(bench: Bench) -> Iterator[Figure]:
    """Round trips of 64 bytes, alone and beside a bulk stream."""
    count = bench.count(1000)
    ours = clients.round_trips(SERVERS["echo"], count)
    theirs = clients.round_trips(SERVERS["echo"] + PEER_OFFSET, count) if bench.peer else []
    for name, share, target, then in (("p50", 0.5, 2.0, 0.20), ("p99", 0.99, 10.0, 0.94)):
        peer = percentile(theirs, share) * 1e3 if theirs else None
        value = percentile(ours, share) * 1e3
        yield Figure(f"round trip 64 B, {name}", value, "ms", target, peer=peer, peer_then=then)

    def loaded(offset: int) -> float:
        with clients.bulk_stream(SERVERS["source"] + offset):
            return percentile(clients.round_trips(SERVERS["echo"] + offset, bench.count(300)), 0.5) * 1e3

    peer = loaded(PEER_OFFSET) if bench.peer else None
    yield Figure("round trip 64 B under one bulk stream, p50", loaded(0), "ms", 5, peer=peer, peer_then=0.37)


def throughput(bench: Bench) -> Iterator[Figure]:
    """One stream in each direction."""
    size = bench.count(96) << 20
    ours, peer = bench.both(lambda port: clients.download(port, size) / 1e6, SERVERS["source"])
    yield Figure("one stream guest to host", ours, "MB/s", 25, at_least=True, peer=peer, peer_then=45)
    ours, peer = bench.both(lambda port: clients.upload(port, size) / 1e6, SERVERS["sink"])
    yield Figure("one stream host to guest", ours, "MB/s", 25, at_least=True, peer=peer, peer_then=85)


def connection_rates(bench: Bench) -> Iterator[Figure]:
    """Connect, request, close."""
    total = bench.count(400)
    for at_once, target, then in ((1, 100, 251), (16, 150, 290)):
        ours, peer = bench.both(
            lambda port, at_once=at_once: clients.connections_per_second(port, at_once, total),  # type: ignore[misc]
            SERVERS["banner"],
        )
        name = f"connect-request-close, {at_once} at once"
        yield Figure(name, ours, "/s", target, at_least=True, peer=peer, peer_then=then)


def datagrams(bench: Bench) -> Iterator[Figure]:
    """UDP rate and sizes."""
    total = bench.count(6000)
    ours, peer = bench.both(lambda port: clients.datagrams_per_second(port, total), UDP_PORT)
    yield Figure("UDP 1,200 B, 32 in flight", ours, "/s", 2500, at_least=True, peer=peer, peer_then=11_576)
    ours, peer = bench.both(clients.whole_datagrams, UDP_PORT)
    yield Figure("UDP sizes 0 to 65,507 intact", ours, f"of {len(clients.SIZES)}", len(clients.SIZES), True, peer)


def fidelity(bench: Bench) -> Iterator[Figure]:
    """Ends of data, aborts, many connections."""
    ours, peer = bench.both(clients.half_closes, SERVERS["digest"])
    yield Figure("half-close with the right answer", ours, "of 20", 20, at_least=True, peer=peer)
    ours, peer = bench.both(lambda port: clients.resets_seen(port, bench.control), SERVERS["hold"])
    yield Figure("client RST seen as RST", ours, "of 20", 20, at_least=True, peer=peer)
    count = bench.count(500)
    ours, peer = bench.both(lambda port: clients.held_at_once(port, count), SERVERS["echo"])
    yield Figure("connections held at once", ours, f"of {count}", count, at_least=True, peer=peer)


OVER_THE_WIRE: tuple[Callable[[Bench], Iterator[Figure]], ...] = (
    port_latencies,
    datagram_port_latencies,
    latencies,
    throughput,
    connection_rates,
    datagrams,
    fidelity,
)
"""Everything that needs nothing but a guest and its test server."""
