"""The containers' names of ports that belong to container engines, told after the ports and never in their way.

A port is told when it opens, its owner a little later, and the container's name after that: an engine opens a port
while it is starting the container, and lists the container when that runs, a second later, or fifteen (Docker in an
emulated guest of a busy host). So a port is asked about after each of `PAUSES`, and then no more. While no port of an
engine is new, one task waits.

Ports that open within `BURST` are one round of questions, and rounds are followed by `REST` times as much rest as they
took, so that a storm of containers, or a program that calls itself an engine's, costs a fifth of a CPU at most.

A name belongs to an owner as it was found: the same process with the same sockets, or the same translation to the same
target. Where another takes over, it is asked about anew; where nobody knows, the owner stays as it was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NoReturn
from typing import Protocol as Seam

import trio

from guestagent.container_questions import Question, may_be_asked, question_about
from guestagent.port_owner import SLICE
from protocol.ports import Port, PortOwner

PAUSES = (0.1, 0.4, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 16.0)
"""Seconds before each time that is asked about a port."""

BURST = 0.1
"""Seconds that a question is asked early, if another one is asked anyhow."""

REST = 4
"""A round is followed by this many times as much rest as it took."""

SHORTEST_REST, LONGEST_REST = 0.05, 4.0
"""Seconds of rest between two rounds, whatever they took."""


class Lookup(Seam):
    """Who asks the engines: `ContainerLookup`, or a test."""

    failures: int

    async def find(self, questions: Collection[Question]) -> dict[Question, PortOwner]:
        """The owners with their containers' names, of as many questions as there is an answer to."""


@dataclass(slots=True)
class _Known:
    """What was found about a port."""

    owner: PortOwner
    target: str
    inodes: frozenset[int]
    named: PortOwner | None = None


@dataclass(slots=True)
class _Pending:
    """A port that is still asked about."""

    due: float
    asked: int = 0


class ContainerNames:
    """Names the owners of ports. `named` is told what was found out, `inodes` says which sockets a port has."""

    def __init__(
        self,
        lookup: Lookup,
        *,
        named: Callable[[Mapping[Port, PortOwner]], None],
        inodes: Callable[[Port], frozenset[int]],
    ) -> None:
        self._lookup = lookup
        self._named = named
        self._inodes = inodes
        self._known: dict[Port, _Known] = {}
        self._pending: dict[Port, _Pending] = {}
        self._news = trio.Event()
        self.rounds = 0
        """Rounds of questions."""

    @property
    def failures(self) -> int:
        """Engines that gave no answer, or none that makes sense."""
        return self._lookup.failures

    def take(self, port: Port, owner: PortOwner, target: str) -> PortOwner:
        """The owner to show for `port`: with the container's name if that is known, which may be found out later.

        `target` is the address that a translation leads to, if one opens the port.
        """
        if not may_be_asked(owner):
            self.forget(port)
            return owner
        inodes = self._inodes(port)
        known = self._known.get(port)
        if known and (known.owner, known.target, known.inodes) == (owner, target, inodes):
            return known.named or owner
        self._known[port] = _Known(owner, target, inodes)
        self._pending[port] = _Pending(trio.current_time() + PAUSES[0])
        self._news.set()
        return owner

    def forget(self, port: Port) -> None:
        """`port` is closed."""
        self._known.pop(port, None)
        self._pending.pop(port, None)

    async def run(self) -> NoReturn:
        """Ask until cancelled."""
        while True:
            await self._until_due()
            began = trio.current_time()
            if questions := await self._questions():
                self.rounds += 1
                self._settle(questions, await self._lookup.find([question for _, question in questions.values()]))
            took = trio.current_time() - began
            await trio.sleep(min(max(REST * took, SHORTEST_REST), LONGEST_REST))

    async def _until_due(self) -> None:
        while True:
            self._news = trio.Event()
            due = min((pending.due for pending in self._pending.values()), default=math.inf)
            if due <= trio.current_time():
                return
            with trio.move_on_at(due):
                await self._news.wait()

    async def _questions(self) -> dict[Port, tuple[_Known, Question]]:
        questions: dict[Port, tuple[_Known, Question]] = {}
        slice_end = trio.current_time() + SLICE
        for port, pending in list(self._pending.items()):
            known = self._known.get(port)
            if known is None or pending.due > trio.current_time() + BURST:
                continue
            if question := question_about(port, known.owner, known.target, known.inodes):
                questions[port] = (known, question)
            else:
                self._pending.pop(port, None)
            if trio.current_time() >= slice_end:
                await trio.lowlevel.checkpoint()
                slice_end = trio.current_time() + SLICE
        return questions

    def _settle(self, questions: Mapping[Port, tuple[_Known, Question]], answers: Mapping[Question, PortOwner]) -> None:
        """Take in the answers about ports that are still what was asked about; ask again later about the others."""
        named: dict[Port, PortOwner] = {}
        for port, (known, question) in questions.items():
            if self._known.get(port) is not known:
                continue
            pending = self._pending[port]
            pending.asked += 1
            if answer := answers.get(question):
                named[port] = known.named = answer
            if answer or pending.asked == len(PAUSES):
                del self._pending[port]
            else:
                pending.due = trio.current_time() + PAUSES[pending.asked]
        if named:
            self._named(named)
