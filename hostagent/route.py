"""Where the connections of a host listener lead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hostagent.forwards import Traffic
from protocol.stream_messages import StreamKind, Target


@dataclass(frozen=True, slots=True)
class Route:
    """What the next client of a listener gets. It is asked for each client: another guest port may take over."""

    kind: StreamKind
    target: Target
    traffic: Traffic
    wait: float = 0.0
    """Seconds that a connection waits for the guest's program, when it is refused."""
    answered: Callable[[bool], None] = lambda _served: None
    """Hears of each dial whether somebody served the target: False when nobody did, nothing of other errors."""
