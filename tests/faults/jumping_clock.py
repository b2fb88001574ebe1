"""A host agent whose wall clock can be set: `python -m tests.faults.jumping_clock NAME`.

The machine's own clock belongs to everybody, so only this process sees the jump: `time.time` and `time.time_ns` are off
by the seconds that the file `$FAULTS_CLOCK` holds. The steady clock is what it was, as after a real jump.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

CLOCK_FILE = "FAULTS_CLOCK"
LOOK_EVERY = 1.0
"""Seconds between the agent's looks at its clock; a minute otherwise."""


def set_clock(file: Path) -> None:
    """From now on the wall clock is off by what `file` says."""
    now, now_ns = time.time, time.time_ns

    def offset() -> float:
        return float(file.read_text() or "0")

    time.time = lambda: now() + offset()
    time.time_ns = lambda: now_ns() + int(offset() * 1e9)


def main() -> int:
    """Be the host agent."""
    set_clock(Path(os.environ[CLOCK_FILE]))
    from hostagent import agent, agent_main

    agent.CLOCK_INTERVAL = LOOK_EVERY
    return agent_main.main()


if __name__ == "__main__":
    sys.exit(main())
