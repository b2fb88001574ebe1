"""Tries every case and writes a table: `python -m tests.conformance [--long] [--rounds N] [--output FILE]`.

On one tiny guest: our forwarder over IPv4 and IPv6, then QEMU's own forward of the same servers as the reference.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import cache, partial
from pathlib import Path

import trio

from tests.conformance.bench import Bench, raise_descriptor_limit
from tests.conformance.case import Outcome, attempt
from tests.conformance.catalogue import applicable
from tests.conformance.hostfwd import HostForward, host_forward
from tests.conformance.ours import OurForwarder, host_process, our_forwarder
from tests.conformance.table import remarks, summary, table
from tests.e2e.server_control import GuestServer
from tests.e2e.shared_guest import shared_guest

RESULTS = Path(__file__).with_name("RESULTS.md")
Connect = Callable[[], AbstractAsyncContextManager[OurForwarder] | AbstractAsyncContextManager[HostForward]]


async def try_all(
    connect: Connect, server: GuestServer, arguments: argparse.Namespace, tell: Callable[[Outcome], None]
) -> None:
    """Try all cases that concern the forwarder, one after the other."""
    async with connect() as forwarder:
        for _ in range(arguments.rounds):
            for case, family in applicable(forwarder.abilities, long=arguments.long):
                if arguments.only.casefold() in f"{case.group}, {case.name}".casefold():
                    tell(await attempt(case, Bench(forwarder, server, family, long=arguments.long)))


@cache
def qemu_version() -> str:
    """The first line of what QEMU says about itself."""
    words = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    return words.splitlines()[0]


def document(outcomes: list[Outcome], command: str, load: tuple[float, float, float]) -> str:
    """The whole Markdown file."""
    today = dt.datetime.now(tz=dt.UTC).date()
    busy = ", ".join(f"{value:.1f}" for value in load)
    return f"""# Conformance

Written by `{command}` on {today}: {platform.system()} {platform.release()}, {os.cpu_count()} CPUs,
{qemu_version()}, tiny guest with 2 CPUs under software emulation (TCG), Python {platform.python_version()}.
Load average when it began: {busy}. "QEMU hostfwd" is QEMU's own static forward (user network, written in C) of the
same servers on the same guest. A dash: it does not claim to do that
(QEMU's listeners have a backlog of 1, so crowds wait for their own SYN retries; it has no IPv6 and follows nothing).

{summary(outcomes)}
{table(outcomes)}
## What was seen instead, and measured on the way

{remarks(outcomes)}"""


def main() -> int:
    """Try and write; exit status 1 when our forwarder did not do what it should."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description="Try what a forwarder must do.")
    parser.add_argument("--long", action="store_true", help="full counts and sizes: minutes instead of one or two")
    parser.add_argument("--rounds", type=int, default=1, help="how often everything is tried (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="WORDS", help="only cases whose name contains this")
    parser.add_argument("--forwarder", choices=["ours", "hostfwd", "both"], default="both")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the table goes (default: %(default)s)")
    arguments = parser.parse_args()
    load = os.getloadavg()
    command = shlex.join(["python", "-m", "tests.conformance", *sys.argv[1:]])
    raise_descriptor_limit()
    outcomes: list[Outcome] = []

    def tell(outcome: Outcome) -> None:
        # The table is written each time, so that a run that is cut short leaves what it found.
        outcomes.append(outcome)
        arguments.output.write_text(document(outcomes, command, load), encoding="utf-8")
        print(f"{outcome.seconds:6.1f} s  {outcome.forwarder}, {outcome.family}: {outcome.case.group},"
              f" {outcome.case.name}: {outcome.failure or 'yes'} {'; '.join(outcome.notes)}", flush=True)  # fmt: skip

    with shared_guest() as guest:
        if arguments.forwarder != "hostfwd":
            with host_process(guest.channel_socket) as process:
                trio.run(try_all, partial(our_forwarder, process, guest.server), guest.server, arguments, tell)
        if arguments.forwarder != "ours":
            trio.run(try_all, partial(host_forward, guest.monitor_socket), guest.server, arguments, tell)
    return 1 if any(one.failure and one.forwarder == OurForwarder.name for one in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
