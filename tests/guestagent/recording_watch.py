"""A port watch that only remembers what woke it."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from protocol.ports import Protocol


class RecordingWatch:
    """Remembers every wake-up, and can be waited for."""

    def __init__(self, *known: tuple[Protocol, int]) -> None:
        self.known = set(known)
        self.woken: list[frozenset[Protocol]] = []
        self.threads: list[int] = []
        self.rule_wakeups = 0
        self._news = trio.Event()

    def wake(self, protocols: frozenset[Protocol]) -> float:
        self.woken.append(protocols)
        self._news.set()
        self._news = trio.Event()
        return 0.0

    def wake_rules(self) -> float:
        self.rule_wakeups += 1
        self._news.set()
        self._news = trio.Event()
        return 0.0

    def note_threads(self, threads: Sequence[int]) -> None:
        self.threads += threads

    def is_open(self, protocol: Protocol, number: int) -> bool:
        return (protocol, number) in self.known

    async def until_woken_for(self, protocols: frozenset[Protocol]) -> None:
        """Wait until a wake-up for exactly `protocols` has come since the last `forget`."""
        with trio.fail_after(10):
            while protocols not in self.woken:
                await self._news.wait()

    async def until_woken_for_rules(self) -> None:
        """Wait until a wake-up for the rules has come since the last `forget`."""
        with trio.fail_after(10):
            while not self.rule_wakeups:
                await self._news.wait()

    def forget(self) -> None:
        """Start to remember anew."""
        self.woken, self.threads, self.rule_wakeups = [], [], 0
