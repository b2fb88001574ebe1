"""The long form: `python -m tests.faults --seed N [--scale 0.1] [--only PART ...] [--output FILE]`.

Does every fault as often as it takes to believe in it, on one instance, and writes a Markdown table. The seed decides
which faults happen, in which order, and with which traffic.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from tests.faults.channel_series import Fault, guest_agent_killed, link_fault, run_series, supervisor_killed
from tests.faults.instance import Instance, instance
from tests.faults.instance_series import agents_frozen, guest_reboots, host_agents_killed
from tests.faults.outcome import Outcome, row, write
from tests.faults.surroundings_series import clock_jumps, full_disk, guest_hangs, qemu_killed

RESULTS = Path(__file__).with_name("RESULTS.md")


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the long form, and how many faults it is made of."""

    count: int
    run: Callable[[Instance, int, int], Awaitable[list[Outcome]]]


async def on_the_channel(fault: Fault, victim: Instance, seed: int, count: int) -> list[Outcome]:
    """A series whose host's side is in this process: the instance gets its host agent back afterwards."""
    await trio.to_thread.run_sync(victim.kill_host_agent)
    async with victim.server() as server:
        outcome = await run_series(fault, count, victim.paths.channel_socket, server, seed)
    await trio.to_thread.run_sync(victim.up)
    return [outcome]


async def again(
    once: Callable[[Instance, int], Awaitable[list[Outcome]]], victim: Instance, seed: int, count: int
) -> list[Outcome]:
    """Do `once` `count` times, with other seeds."""
    first, *others = [await once(victim, seed + number) for number in range(count)]
    for outcomes in others:
        for outcome, other in zip(first, outcomes, strict=True):
            outcome.back += other.back
            outcome.problems += other.problems
            outcome.seen += other.seen
    return first


PARTS = {
    "link": Part(1_000, partial(on_the_channel, link_fault)),
    "guest-agent": Part(100, partial(on_the_channel, guest_agent_killed)),
    "supervisor": Part(5, partial(on_the_channel, supervisor_killed)),
    "host-agent": Part(100, host_agents_killed),
    "reboot": Part(20, guest_reboots),
    "stop": Part(3, partial(again, agents_frozen)),
    "clock": Part(3, partial(again, clock_jumps)),
    "disk": Part(2, partial(again, full_disk)),
    "panic": Part(3, partial(again, guest_hangs)),
    "qemu": Part(5, partial(again, qemu_killed)),
}


def outcomes_of(names: list[str], seed: int, scale: float) -> Iterator[Outcome]:
    """Do the parts `names`, one after the other."""
    with instance() as victim:
        for name in names:
            victim.recover()
            part = PARTS[name]
            try:
                yield from trio.run(part.run, victim, seed, max(1, round(part.count * scale)))
            except Exception as exc:  # the other parts have something to say too
                yield Outcome(f"{name}: given up", 0.0, [], [f"{part.run}: {exc!r}"])


def main() -> int:
    """Do all of it and write the table; exit status 1 when there was a problem."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Kill everything, again and again.")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same faults (default: 1)")
    parser.add_argument("--scale", type=float, default=1.0, help="0.1 does a tenth of everything (default: 1)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
                        help=f"one or more of: {', '.join(PARTS)}")  # fmt: skip
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the table goes (default: %(default)s)")
    arguments = parser.parse_args()
    options = [f"--seed {arguments.seed}"]
    if arguments.scale != 1.0:
        options.append(f"--scale {arguments.scale:g}")
    if arguments.only != list(PARTS):
        options.append(f"--only {' '.join(arguments.only)}")
    load, outcomes = os.getloadavg(), []
    for outcome in outcomes_of(arguments.only, arguments.seed, arguments.scale):
        outcomes.append(outcome)
        print(row(outcome), *outcome.problems, sep="\n    ", flush=True)
        # After each: whoever ends this early has what was done.
        write(arguments.output, outcomes, f"python -m tests.faults {' '.join(options)}", load)
    return 1 if any(outcome.problems for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
