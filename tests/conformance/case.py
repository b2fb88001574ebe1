"""A case: what one thing that TCP or UDP promises is called, what it needs of a forwarder, and how it is tried."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.conformance.bench import Bench, Family
from tests.conformance.forwarder import Ability
from tests.e2e.server_control import GuestServerError

BOUND = 150.0
"""Seconds that a case may take; most take one. A hang is a failure, and must not cost the others their time."""

LONG_BOUND = 600.0

FAILURES = (AssertionError, OSError, EOFError, trio.TooSlowError, trio.BrokenResourceError, GuestServerError)
"""What a forwarder can cause. Anything else is a mistake in the case, and comes out as it is."""


@dataclass(frozen=True, slots=True)
class Case:
    """One case. `run` returns when it holds and raises when it does not."""

    group: str
    name: str
    run: Callable[[Bench], Awaitable[None]]
    needs: frozenset[Ability]
    long_only: bool = False
    """Whether it only runs in the long form, because it must wait for the clock."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one case went."""

    case: Case
    forwarder: str
    family: Family
    seconds: float
    failure: str
    """What was seen instead; empty when the case holds."""
    notes: tuple[str, ...]
    """What was measured on the way."""


CASES: list[Case] = []


def case(
    group: str, name: str, *needs: Ability, long_only: bool = False
) -> Callable[[Callable[[Bench], Awaitable[None]]], Case]:
    """Makes a case of a function and puts it on the list."""

    def decorate(run: Callable[[Bench], Awaitable[None]]) -> Case:
        CASES.append(made := Case(group, name, run, frozenset(needs), long_only))
        return made

    return decorate


async def attempt(tried: Case, bench: Bench) -> Outcome:
    """Try a case and clear up after it; what cannot be cleared up is a failure as well."""
    began = trio.current_time()
    failures: list[str] = []
    try:
        with trio.fail_after(LONG_BOUND if bench.long else BOUND):
            await tried.run(bench)
    except* FAILURES as group:
        failures += [describe(error) for error in leaves(group)]
    seconds = trio.current_time() - began
    try:
        await bench.clear()
    except* FAILURES as group:
        failures += [f"afterwards {describe(error)}" for error in leaves(group)]
    return Outcome(tried, bench.forwarder.name, bench.family, seconds, "; ".join(failures), tuple(bench.notes))


def leaves(error: BaseException) -> list[BaseException]:
    """What an exception group holds, however deep."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]


def describe(error: BaseException) -> str:
    """One line about what went wrong, and where in the case."""
    where = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if Path(frame.filename).name.startswith("cases_"):
            where = f" at `{frame.line}` in {frame.name}"
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + text[0] if text else ''}{where}"
