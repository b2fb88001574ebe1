"""A case: what one thing that TCP or UDP promises is called, what it needs of a forwarder, and how it is tried."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from tests.conformance.bench import Bench, Family
from tests.conformance.forwarder import Ability

BOUND = 150.0
"""Seconds that a case may take; most take one. A hang is a failure, and must not cost the others their time."""

LONG_BOUND = 600.0


@dataclass(frozen=True, slots=True)
class Case:
    """One case. `run` returns when it holds and raises when it does not."""

    group: str
    name: str
    run: Callable[[Bench], Awaitable[None]]
    needs: frozenset[Ability]


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


def case(group: str, name: str, *needs: Ability) -> Callable[[Callable[[Bench], Awaitable[None]]], Case]:
    """Makes a case of a function and puts it on the list."""

    def decorate(run: Callable[[Bench], Awaitable[None]]) -> Case:
        CASES.append(made := Case(group, name, run, frozenset(needs)))
        return made

    return decorate


async def attempt(tried: Case, bench: Bench) -> Outcome:
    """Try a case and clear up after it. Only what the case itself is about becomes an outcome."""
    began = trio.current_time()
    failure = ""
    try:
        with trio.fail_after(LONG_BOUND if bench.long else BOUND):
            await tried.run(bench)
    except* (AssertionError, OSError, EOFError, trio.TooSlowError, trio.BrokenResourceError) as group:
        failure = "; ".join(describe(error) for error in leaves(group))
    seconds = trio.current_time() - began
    await bench.clear()
    return Outcome(tried, bench.forwarder.name, bench.family, seconds, failure, tuple(bench.notes))


def leaves(error: BaseException) -> list[BaseException]:
    """What an exception group holds, however deep."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]


def describe(error: BaseException) -> str:
    """One line about what went wrong and where in the case."""
    where = ""
    traceback = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if "/cases_" in code.co_filename:
            where = f" (in {code.co_name}, line {traceback.tb_lineno})"
        traceback = traceback.tb_next
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + text[0] if text else ''}{where}"
