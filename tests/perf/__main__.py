"""Measures everything and writes a Markdown table: `python -m tests.perf [--quick] [--output FILE]`.

What counts is what the table compares: our forwarder and QEMU's own, in one run, on one guest. Absolute figures are
those of the machine and of what else it did.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.e2e.server_control import AGENT
from tests.e2e.vm import Vm
from tests.perf.figures import OVER_THE_WIRE, Bench, Figure
from tests.perf.guest import MeasuredGuest, measured_guest

RESULTS = Path(__file__).with_name("RESULTS.md")
COMMANDS = ("ports", "list", "--help")
IDLE_SECONDS = 60.0
MIB = 1 << 20
VERDICTS = {True: "yes", False: "**no**", None: "-"}


def footprint(guest: MeasuredGuest, seconds: float) -> Iterator[Figure]:
    """Memory and idle CPU time of both agents."""
    host_agent = psutil.Process(guest.host_agent)

    def guest_agent(what: str) -> int:
        """The sum for the agent and its supervisor."""
        found = guest.control.ask("processes", pattern=AGENT)["processes"]
        return sum(process[what] for process in found)

    def host_seconds() -> float:
        return float(sum(host_agent.cpu_times()[:2]))

    time.sleep(5)  # until the work of earlier figures has settled
    before, host_before = guest_agent("ticks"), host_seconds()
    time.sleep(seconds)
    after, host_after = guest_agent("ticks"), host_seconds()
    per_minute = 60 / seconds
    ticks = (after - before) / 100  # USER_HZ (proc(5))
    yield Figure("resident memory, guest agent and supervisor", guest_agent("memory") * 1024 / MIB, "MiB", 45)
    yield Figure("resident memory, host agent", host_agent.memory_info().rss / MIB, "MiB", 80)
    yield Figure("idle CPU, guest agent", ticks * per_minute, "s/min", 0.2)
    yield Figure("idle CPU, host agent", (host_after - host_before) * per_minute, "s/min", 0.2)


def command_times(vm: Vm) -> Iterator[Figure]:
    """CPU time of commands, user and system, best of five."""
    for command in COMMANDS:
        taken = []
        for _ in range(5):
            process = subprocess.Popen(vm.at.command(command), env=dict(vm.at.environment), stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise RuntimeError(f"hostagent {command} ended with status {process.returncode}")
            taken.append(usage.ru_utime + usage.ru_stime)
        yield Figure(f"hostagent {command}: CPU time", min(taken), "s", 0.25)


def boots(guest: MeasuredGuest) -> Iterator[Figure]:
    """Power-on to ready."""
    yield Figure("power-on to ready, first boot", guest.first_boot, "s", 35)
    yield Figure("power-on to ready, second boot", guest.second_boot, "s", 20)


def all_figures(guest: MeasuredGuest, scale: float) -> Iterator[Figure]:
    """Every figure, quiet ones first."""
    yield from boots(guest)
    yield from command_times(guest.vm)
    yield from footprint(guest, max(5.0, IDLE_SECONDS * scale))
    bench = Bench(guest.control, peer=True, scale=scale)
    bench.serve()
    for measure in OVER_THE_WIRE:
        yield from measure(bench)


def row(figure: Figure) -> str:
    """One line of the table."""
    sign = "≥" if figure.at_least else "≤"
    cells = [
        figure.name,
        f"{figure.value:.3g} {figure.unit}",
        f"{sign} {figure.target:g}",
        VERDICTS[figure.met],
        "-" if figure.peer is None else f"{figure.peer:.3g}",
        "-" if figure.ratio is None else f"{figure.ratio:.2f}",
        "-" if figure.target_ratio is None else f"{sign} {figure.target_ratio:.2f}",
        VERDICTS[figure.ratio_met],
    ]
    return f"| {' | '.join(cells)} |"


def document(rows: list[str], command: str, load: tuple[float, float, float]) -> str:
    """The whole Markdown file."""
    qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    today = dt.datetime.now(tz=dt.UTC).date()
    busy = ", ".join(f"{value:.1f}" for value in load)
    head = f"""# Measured

Written by `{command}` on {today}: {platform.system()} {platform.release()}, {os.cpu_count()} CPUs,
{qemu.splitlines()[0]}, Debian 12 guest with 2 CPUs under software emulation (TCG), Python {platform.python_version()}.
Load average when it began: {busy} (another program's load makes every figure worse; ratios are what to compare).
"QEMU" is QEMU's own static forward (hostfwd, written in C) of the same servers on the same guest in the same run. The
ratio asked is the target's to what QEMU's forward did on the machine that the targets were set on: 0.20 ms for the
round trip.

| figure | measured | target | met | QEMU | ratio to QEMU | ratio asked | ratio met |
|---|---|---|---|---|---|---|---|
"""
    return head + "\n".join(rows) + "\n"


def main() -> int:
    """Measure and write; exit status 1 when a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.perf", description="Measure hostagent against its targets.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the repetitions: a minute instead of five")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the table goes (default: %(default)s)")
    arguments = parser.parse_args()
    load = os.getloadavg()
    rows, all_met = [], True
    with measured_guest() as guest:
        for figure in all_figures(guest, 0.1 if arguments.quick else 1.0):
            rows.append(row(figure))
            all_met = all_met and figure.met
            print(rows[-1], flush=True)
    command = "python -m tests.perf" + (" --quick" if arguments.quick else "")
    arguments.output.write_text(document(rows, command, load), encoding="utf-8")
    return 0 if all_met else 1


if __name__ == "__main__":
    sys.exit(main())
