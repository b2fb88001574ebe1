"""Keeps up with the address translation rules: reads them when a wake-up says that they changed, and now and then.

One change is read at once. Whoever rewrites thousands of rules ten times a second gets a read, then a rest of `REST`
times the CPU time that it took, and so on: at most a fifth of a CPU, and the last change is read in any case, since a
wake-up during a read or a rest leads to another one. Reading is a worker thread's, which is mostly in the kernel;
making sense of it is done on the event loop, in slices of `SLICE` seconds. (A thread for that would hold the
interpreter's lock for 5 ms at a time.) Neither outlives the task that runs `run`.

A read that fails changes nothing: what was open stays open. It is counted, `report` says why in words, and the next one
comes after a rest. Between events, asking for the rules' generation is one short message; iptables-legacy has no such
number, so where its tables exist they are read in whole at each tick.

Measured on 5,000 rules, Linux 6.18, x86-64 without emulation: reading 30 ms (legacy 7 ms), making sense of them 0.8 s
the first time and 0.14 s when most are the same as before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn
from typing import Protocol as Seam

import trio

from guestagent.nat_contents import Interpreter, RawRules
from guestagent.nat_ports import NO_PORTS, NatPorts
from guestagent.nat_reader import NatReader, RulesChangingError, RulesTooLargeError
from guestagent.nat_rules import RulesTooComplexError
from guestagent.netlink import KernelDataError
from guestagent.wakeups import explain
from protocol.ports import WakeupSource

SLICE = 0.002
"""Seconds of work on the event loop after which others get their turn."""

REST = 4
"""A read's CPU time is followed by this many times as much rest."""

SHORTEST_REST, LONGEST_REST = 0.05, 10.0
"""Seconds of rest between two reads, whatever they cost."""

TICK, POLL_TICK = 60.0, 2.0
"""Seconds between reads that nothing asked for: with a live wake-up source, and without."""

_STEPS_PER_GLANCE = 4  # a look at the clock is dear under emulation
_MOST_NAMED = 8

_Problem = (OSError, KernelDataError, RulesChangingError, RulesTooLargeError, RulesTooComplexError)


class RuleReader(Seam):
    """Where the rules come from: `NatReader`, or a test."""

    async def read(self) -> tuple[RawRules, float]:
        """The rules as they are now, and what it took in seconds of CPU. Raises what `NatReader.read` raises."""


@dataclass(frozen=True, slots=True)
class NatCounters:
    """What was done so far."""

    reads: int
    failed_reads: int


class NatWatch:
    """The ports that the rules of this network namespace open. `changed` is called when they are others than before."""

    def __init__(
        self,
        changed: Callable[[NatPorts], None],
        *,
        covered: Callable[[], bool],
        reader: RuleReader | None = None,
    ) -> None:
        self._changed = changed
        self._covered = covered
        self._reader = reader or NatReader()
        self._interpreter = Interpreter()
        self._woken = trio.Event()
        self._rest_ends = 0.0
        self._cost = 0.0
        self._wakeups = self._reads = self._failed_reads = 0
        self._reason = "not tried yet"
        self.ports = NO_PORTS
        """As of the last read that gave an answer."""

    def wake(self) -> float:
        """Read again soon. Returns the seconds during which further wake-ups change nothing."""
        self._wakeups += 1
        self._woken.set()
        return max(self._rest_ends - trio.current_time(), 0.0)

    def report(self) -> WakeupSource:
        """Whether the rules could be read, and if not, why."""
        return WakeupSource("NAT rules", not self._reason, self._reason, self._wakeups)

    def counters(self) -> NatCounters:
        """What was done so far."""
        return NatCounters(self._reads, self._failed_reads)

    def skipped(self) -> dict[str, int]:
        """What rules were left out, in words, with how many: the most frequent ones."""
        by_count = sorted(self.ports.skipped.items(), key=lambda item: -item[1])
        return dict(by_count[:_MOST_NAMED])

    async def run(self) -> NoReturn:
        """Keep up until cancelled."""
        while True:
            self._woken = trio.Event()
            self._cost = 0.0
            self._reads += 1
            try:
                ports = await self._read()
            except _Problem as exc:
                self._failed_reads += 1
                self._reason = explain(exc, "NAT rules") if isinstance(exc, OSError) else f"NAT rules: {exc}"
                if isinstance(exc, RulesChangingError):
                    self._woken.set()
            else:
                self._reason = ""
                if ports != self.ports:
                    self.ports = ports
                    self._changed(ports)
            rest = min(max(REST * self._cost, SHORTEST_REST), LONGEST_REST)
            self._rest_ends = trio.current_time() + rest
            await trio.sleep(rest)
            with trio.move_on_after(TICK if self._covered() else POLL_TICK):
                await self._woken.wait()

    async def _read(self) -> NatPorts:
        raw, cost = await self._reader.read()
        self._cost += cost
        return await self._interpret(raw)

    async def _interpret(self, raw: RawRules) -> NatPorts:
        last: NatPorts | None = None
        slice_end, began = trio.current_time() + SLICE, time.thread_time()
        for step, found in enumerate(self._interpreter.read(raw)):
            last = found or last
            if step % _STEPS_PER_GLANCE == 0 and trio.current_time() >= slice_end:
                self._cost += time.thread_time() - began
                await trio.lowlevel.checkpoint()
                slice_end, began = trio.current_time() + SLICE, time.thread_time()
        self._cost += time.thread_time() - began
        assert last is not None, "the interpreter ends with the ports"
        return last
