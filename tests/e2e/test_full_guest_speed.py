"""The performance suite's figures in short, with floors far below the targets: not a benchmark, but an alarm.

`python -m tests.perf` measures in full. A floor here is passed even on a machine that does much else at the same time,
and missed when something waits for a timer, copies too much or polls.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import psutil
import pytest

from tests.e2e import guest_server
from tests.e2e.vm import Vm
from tests.perf.clients import Control
from tests.perf.figures import OVER_THE_WIRE, Bench, Figure

pytestmark = [pytest.mark.full_guest, pytest.mark.timeout(900)]

FLOORS = {
    "TCP open to first byte, p50": 400,
    "TCP close to refused, p50": 400,
    "UDP open to first echo, p99": 2000,
    "UDP close to host port free, p99": 2000,
    "round trip 64 B, p50": 20,
    "round trip 64 B under one bulk stream, p50": 100,
    "one stream guest to host": 3,
    "one stream host to guest": 3,
    "connect-request-close, 1 at once": 8,
    "connect-request-close, 16 at once": 8,
    "UDP 1,200 B, 32 in flight": 150,
    "UDP sizes 0 to 65,507 intact": 11,
    "half-close with the right answer": 20,
    "client RST seen as RST": 20,
}
"""The least, or the most, that is let pass."""


@pytest.fixture(scope="module")
def figures(shared_vm: Vm) -> Iterator[dict[str, Figure]]:
    """All figures of a short run."""
    if not shared_vm.is_up():
        shared_vm.up()
    shared_vm.put(Path(guest_server.__file__).read_bytes(), "/root/guest_server.py")
    with shared_vm.running("python3", "-u", "/root/guest_server.py") as server:
        control = Control(cast("BinaryIO", server.stdin), cast("BinaryIO", server.stdout))
        bench = Bench(control, peer=False, scale=0.1)
        bench.serve()
        found = [figure for measure in OVER_THE_WIRE for figure in measure(bench)]
        yield {figure.name: figure for figure in found}


def test_no_figure_is_far_off(figures: dict[str, Figure]) -> None:
    missed = []
    for name, figure in figures.items():
        print(f"{name}: {figure.value:.3g} {figure.unit} (target {figure.target:g})")
        floor = FLOORS.get(name, figure.target if figure.at_least else float("inf"))
        if figure.value < floor if figure.at_least else figure.value > floor:
            missed.append(figure)
    assert not missed
    assert set(FLOORS) <= set(figures)


def test_agents_stay_small(shared_vm: Vm, figures: dict[str, Figure]) -> None:
    (pid,) = shared_vm.agent_pids()
    assert psutil.Process(pid).memory_info().rss < 120 << 20
    # Both processes, each with its share of what they have in common.
    shares = shared_vm.shell("for pid in $(pidof guestagent); do grep ^Pss: /proc/$pid/smaps_rollup; done")
    kib = [int(line.split()[1]) for line in shares.splitlines()]
    print(f"guest agent and supervisor: {kib} KiB")
    assert len(kib) == 2
    assert sum(kib) < 70 << 10
