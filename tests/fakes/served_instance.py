"""A fake instance behind the real API on a real unix socket, in a thread of its own for clients that block."""

from __future__ import annotations

import queue
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import trio

from hostagent.control_api import serve_api
from tests.fakes.running_instance import FakeInstance


@asynccontextmanager
async def served(instance: FakeInstance, path: Path) -> AsyncIterator[trio.CancelScope]:
    """Serve `instance` in the caller's own trio; yields the scope that ends the serving."""
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_api, instance, path))
        yield nursery.cancel_scope
        instance.events.close()
        nursery.cancel_scope.cancel()


class ServedInstance:
    """A fake instance that lives in another thread."""

    def __init__(self, instance: FakeInstance, token: trio.lowlevel.TrioToken, stop: trio.Event) -> None:
        self.instance = instance
        self._token = token
        self._stop = stop

    def call(self, function: object) -> None:
        """Call `function` in the thread where the instance lives."""
        trio.from_thread.run_sync(function, trio_token=self._token)  # type: ignore[arg-type]

    def end(self) -> None:
        """Let the host agent end, if it has not yet."""
        try:
            self.call(self._stop.set)
        except trio.RunFinishedError:
            return


@contextmanager
def served_in_thread(path: Path) -> Iterator[ServedInstance]:
    """Serve a fake instance on `path` for as long as the context lasts."""
    ready: queue.Queue[ServedInstance] = queue.Queue()

    async def main() -> None:
        instance, stop = FakeInstance(path.parent), trio.Event()
        async with served(instance, path):
            ready.put(ServedInstance(instance, trio.lowlevel.current_trio_token(), stop))
            await stop.wait()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    instance = ready.get(timeout=10)
    try:
        yield instance
    finally:
        instance.end()
        thread.join(timeout=10)
        assert not thread.is_alive(), "the API did not end"
