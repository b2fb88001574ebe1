from __future__ import annotations

import math

import trio
import trio.testing

from guestagent.timer import Timer


async def test_it_ends_at_its_time(autojump_clock: trio.testing.MockClock) -> None:
    began = trio.current_time()
    await Timer().wait(began + 5)
    assert trio.current_time() == began + 5


async def test_it_is_hurried_and_never_delayed(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    timer, began, ended = Timer(), trio.current_time(), []

    async def wait() -> None:
        for until in (math.inf, began + 20):
            await timer.wait(until)
            ended.append(trio.current_time() - began)

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    timer.hurry(began + 9)
    timer.hurry(began + 7)
    timer.hurry(began + 8)
    await trio.sleep(10)
    timer.hurry(began + 30)
    await trio.sleep(20)
    assert ended == [7, 20]


async def test_a_time_that_has_passed_ends_it_at_once(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    timer, began, over = Timer(), trio.current_time(), trio.Event()

    async def wait() -> None:
        await timer.wait(math.inf)
        over.set()

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    timer.hurry(began - 1)
    await over.wait()
    assert trio.current_time() == began


async def test_hurrying_nobody_does_nothing(autojump_clock: trio.testing.MockClock) -> None:
    timer = Timer()
    timer.hurry(trio.current_time())
    began = trio.current_time()
    await timer.wait(began + 3)
    assert trio.current_time() == began + 3
