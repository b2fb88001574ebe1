"""What links do to bytes, drawn from a seed: `drawn` is the plan, `inflict` carries one fault out on a wire."""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass

from tests.e2e.wire import Direction, Operated, Surgery, Wire

MOST_BYTES = 18.2
"""Logarithm (base 2) of the most bytes that are lost or made up at once, 300,000: several frames. Every order of
magnitude below is as likely."""


class LinkFaultKind(enum.StrEnum):
    """What happens."""

    CUT = "cut"
    CUT_IN_MID_FRAME = "cut in mid-frame"
    CUT_WITH_STALE_BYTES = "cut, then stale bytes"
    LOST_MIDDLE = "lost middle"
    FLIPPED_BIT = "flipped bit"
    DOUBLED = "doubled bytes"
    GARBAGE = "garbage"


WEIGHTS = {
    LinkFaultKind.CUT: 6,
    LinkFaultKind.CUT_IN_MID_FRAME: 6,
    LinkFaultKind.CUT_WITH_STALE_BYTES: 5,
    LinkFaultKind.LOST_MIDDLE: 2,
    LinkFaultKind.FLIPPED_BIT: 1,
    LinkFaultKind.DOUBLED: 1,
    LinkFaultKind.GARBAGE: 1,
}
"""Cuts are what happens. Bytes that are wrong are rarer, and have to be: the host agent leaves a guest alone for a
while that broke the rules eight times in ten seconds."""


@dataclass(frozen=True, slots=True)
class LinkFault:
    """One fault."""

    kind: LinkFaultKind
    toward: Direction
    pause: float
    """Seconds of undisturbed traffic before it."""
    place: float
    """Where in the next bytes it happens, from 0 to 1."""
    size: int
    """Bytes that it concerns, where it concerns some."""
    churn: bool
    """Whether the guest closes a port and opens another meanwhile."""
    seed: int


def drawn(rng: random.Random) -> LinkFault:
    """The next fault of a series."""
    return LinkFault(
        kind=rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0],
        toward=rng.choice(list(Direction)),
        pause=rng.uniform(0.0, 0.2),
        place=rng.random(),
        size=int(2 ** rng.uniform(0.0, MOST_BYTES)),
        churn=rng.random() < 0.5,
        seed=rng.getrandbits(32),
    )


def surgery(fault: LinkFault) -> Surgery:
    """What `fault` makes of the next bytes."""

    def operate(data: bytes) -> Operated:
        at = int(fault.place * len(data))
        before, behind = data[:at], data[at:]
        match fault.kind:
            case LinkFaultKind.CUT_IN_MID_FRAME:
                return Operated(before, cut=True)
            case LinkFaultKind.LOST_MIDDLE:
                return Operated(before + behind[fault.size :])
            case LinkFaultKind.DOUBLED:
                return Operated(before + behind[: fault.size] + behind)
            case LinkFaultKind.GARBAGE:
                return Operated(before + random.Random(fault.seed).randbytes(fault.size) + behind)
            case LinkFaultKind.FLIPPED_BIT:
                flipped = behind[0] ^ (1 << fault.seed % 8)
                return Operated(before + bytes([flipped]) + behind[1:])
            case _:
                return Operated(data, cut=True)

    return operate


async def inflict(wire: Wire, fault: LinkFault) -> None:
    """Return when it happened. Needs traffic: it happens to the next bytes."""
    if fault.kind is LinkFaultKind.CUT_WITH_STALE_BYTES:
        wire.deliver_stale(fault.toward)
    await wire.operate(fault.toward, surgery(fault))
