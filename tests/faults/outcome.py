"""What a series of faults showed, and the table of it."""

from __future__ import annotations

import datetime as dt
import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Outcome:
    """One kind of fault."""

    fault: str
    promised: float
    """Seconds from the link being back, or from the fault where it stays, to the right table."""
    back: list[float] = field(default_factory=list)
    """What it took, once for each fault."""
    problems: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    """The traffic meanwhile."""

    @property
    def late(self) -> int:
        """How often it took longer than promised."""
        return sum(seconds > self.promised for seconds in self.back)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def row(outcome: Outcome) -> str:
    """One line of the table."""
    times = "- | -"
    if outcome.back:
        times = f"{percentile(outcome.back, 0.5):.2f} | {max(outcome.back):.2f}"
    problems = f"**{len(outcome.problems)}**" if outcome.problems else "0"
    return f"| {outcome.fault} | {len(outcome.back)} | {times} | {outcome.promised:g} | {outcome.late} | {problems} |"


def document(outcomes: Sequence[Outcome], command: str, load: tuple[float, float, float]) -> str:
    """The whole Markdown file."""
    seen: Counter[str] = sum((outcome.seen for outcome in outcomes), Counter())
    busy = ", ".join(f"{value:.1f}" for value in load)
    found = [f"- {outcome.fault}: {problem}" for outcome in outcomes for problem in outcome.problems]
    return f"""# Faults

Written by `{command}` on {dt.datetime.now(tz=dt.UTC).date()}: {platform.system()} {platform.release()},
{os.cpu_count()} CPUs, tiny guest with 2 CPUs under software emulation (TCG), Python {platform.python_version()}.
Load average when it began: {busy}.

*Back* is the time from the link being back (or from the fault, where the link stays) until the table of forwards is
right: every port that is open, and no other, with its listeners on both loopback addresses. *Problems* are stale or
missing listeners, orphan processes, leaked descriptors or tasks, memory that does not come back, streams that were cut
short without a reset, and bytes that were wrong, lost or doubled.

| fault | done | back, median s | worst s | promised s | later than that | problems |
|---|---|---|---|---|---|---|
{chr(10).join(row(outcome) for outcome in outcomes)}

Traffic that was checked meanwhile: {seen["downloaded"] / 1e6:,.0f} MB to the host, {seen["uploaded"] / 1e6:,.0f} MB to
the guest, {seen["exchanges"]:,} exchanges with a digest, {seen["datagrams"]:,} datagrams; {seen["resets"]:,} resets.
""" + ("\n" + "\n".join(found) + "\n" if found else "")


def write(path: Path, outcomes: Sequence[Outcome], command: str, load: tuple[float, float, float]) -> None:
    """Write the file."""
    path.write_text(document(outcomes, command, load), encoding="utf-8")
