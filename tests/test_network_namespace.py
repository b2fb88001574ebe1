from __future__ import annotations

from pathlib import Path

import trio

from tests.guestagent.network_namespace import network_namespace


def ours() -> str:
    """The network namespace of the thread that asks (network_namespaces(7))."""
    return str(Path("/proc/thread-self/ns/net").readlink())


async def test_threads_are_in_the_namespace_of_whoever_asks() -> None:
    outside = ours()
    assert await trio.to_thread.run_sync(ours) == outside
    with network_namespace():
        inside = ours()
        assert inside != outside
        assert await trio.to_thread.run_sync(ours) == inside
    assert ours() == outside
    assert await trio.to_thread.run_sync(ours) == outside
