"""The faults are the faults they say they are, and a seed gives the same ones again."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.e2e.wire import Direction
from tests.faults.link_faults import LinkFault, LinkFaultKind, drawn, surgery

DATA = random.Random(1).randbytes(50_000)
FAULT = LinkFault(LinkFaultKind.CUT, Direction.HOST, pause=0.0, place=0.5, size=1_000, churn=False, seed=9)


def operated(kind: LinkFaultKind) -> tuple[bytes, bool]:
    done = surgery(replace(FAULT, kind=kind))(DATA)
    return done.arrives, done.cut


def test_a_seed_gives_the_same_faults_again_and_another_seed_others() -> None:
    series = [[drawn(rng) for _ in range(50)] for rng in (random.Random(1), random.Random(1), random.Random(2))]
    assert series[0] == series[1] != series[2]
    assert {fault.kind for fault in series[0]} == set(LinkFaultKind)


def test_cuts_end_the_connection_and_keep_what_came_before() -> None:
    assert operated(LinkFaultKind.CUT) == (DATA, True)
    assert operated(LinkFaultKind.CUT_IN_MID_FRAME) == (DATA[:25_000], True)


def test_bytes_are_lost_doubled_flipped_and_made_up() -> None:
    assert operated(LinkFaultKind.LOST_MIDDLE) == (DATA[:25_000] + DATA[26_000:], False)
    assert operated(LinkFaultKind.DOUBLED) == (DATA[:26_000] + DATA[25_000:], False)
    flipped, _ = operated(LinkFaultKind.FLIPPED_BIT)
    assert [number for number, byte in enumerate(flipped) if byte != DATA[number]] == [25_000]
    garbage, _ = operated(LinkFaultKind.GARBAGE)
    assert (len(garbage), garbage[:25_000], garbage[26_000:]) == (51_000, DATA[:25_000], DATA[25_000:])


@pytest.mark.parametrize("kind", LinkFaultKind)
@pytest.mark.parametrize("place", [0.0, 0.999_999])
def test_a_single_byte_can_be_operated_on_too(kind: LinkFaultKind, place: float) -> None:
    surgery(replace(FAULT, kind=kind, place=place))(b"x")
