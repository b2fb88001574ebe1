"""Ports of the guest appear on the host and vanish from it soon, and say who has them; the rest is conformance/."""

from __future__ import annotations

import os
import time
from functools import partial

import pytest
import trio

from hostagent.forwards import ForwardState
from protocol.ports import Protocol
from tests.e2e.clients import eventually, exchange, receive_to_end, tcp_client, udp_client
from tests.e2e.host_side import HostSide
from tests.e2e.shared_guest import SharedGuest

pytestmark = pytest.mark.tiny_guest

SOON = 2.0
"""Seconds within which a port appears or vanishes even on a busy machine; the figures are in tests/perf."""

NUMBERS = iter(range(20_000, 26_000))


async def _says_hello(port: int) -> bool:
    try:
        async with tcp_client(port) as client:
            return await receive_to_end(client) == b"hello\n"
    except ConnectionError:
        return False


async def _refused(port: int) -> bool:
    """Whether the host itself says that nobody listens."""
    try:
        async with tcp_client(port):
            return False
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # the guest refused, and the host has not heard of it yet
        return False


async def test_a_tcp_port_is_usable_soon_after_listen_and_refused_soon_after_close(
    tiny: SharedGuest, host: HostSide
) -> None:
    for _ in range(5):
        port = await tiny.server.tcp("banner", "127.0.0.1", next(NUMBERS))
        await eventually(partial(_says_hello, port), SOON)
        await tiny.server.close(port)
        await eventually(partial(_refused, port), SOON)


async def test_a_udp_port_is_usable_soon_after_bind_and_gone_soon_after_close(
    tiny: SharedGuest, host: HostSide
) -> None:
    for _ in range(5):
        port = await tiny.server.udp("echo", "127.0.0.1", next(NUMBERS))
        with trio.fail_after(SOON):
            await host.listening(port, protocol=Protocol.UDP)
        async with udp_client(port) as client:
            assert await exchange(client, b"x") == b"x"
        await tiny.server.close(port)
        with trio.fail_after(SOON):
            await host.gone(port, protocol=Protocol.UDP)


async def test_a_taken_host_port_is_told_and_had_as_soon_as_it_is_free(tiny: SharedGuest, host: HostSide) -> None:
    port = await tiny.server.bind("127.0.0.1")
    with trio.socket.socket() as holder:
        await holder.bind(("127.0.0.1", port))
        holder.listen(1)
        await tiny.server.listen("banner", port)
        await host.listening(port)
        forward = host.forward(port)
        assert forward is not None
        await host.wait_until(lambda: f"pid {os.getpid()}" in forward.reason)
        async with tcp_client(port, "::1") as client:  # this half was free
            assert await receive_to_end(client) == b"hello\n"
    await host.wait_until(lambda: forward.reason == "")
    async with tcp_client(port) as client:
        assert await receive_to_end(client) == b"hello\n"
    await tiny.server.close(port)
    await host.gone(port)
    with pytest.raises(ConnectionRefusedError):
        async with tcp_client(port):
            pass


async def test_owners_are_named_and_noise_is_ignored(tiny: SharedGuest, host: HostSide) -> None:
    hello = await tiny.server.request("hello")
    port = await tiny.server.tcp("banner", "127.0.0.1", next(NUMBERS))
    client_like = await tiny.server.udp("echo", "0.0.0.0", 40_123)
    await host.wait_until(lambda: getattr(host.forward(port), "owner", None) is not None, seconds=30)
    forward = host.forward(port)
    assert forward is not None
    assert forward.owner is not None
    assert (forward.owner.process, forward.owner.pid, forward.owner.uid) == ("guest_server", hello["pid"], 0)
    await host.wait_until(lambda: host.forward(client_like, Protocol.UDP) is not None)
    ignored = host.forward(client_like, Protocol.UDP)
    assert ignored is not None
    assert (ignored.state, ignored.host) == (ForwardState.IGNORED, ())
    assert "belong to clients" in ignored.reason
    for used in (port, client_like):
        await tiny.server.close(used)


async def test_nothing_was_missed_by_the_events(tiny: SharedGuest, host: HostSide) -> None:
    status = await host.fresh_status()
    not_live = {source.name: source.reason for source in status.sources if not source.live}
    assert not not_live
    assert dict(status.counters)["misses"] == 0
    began = time.monotonic()
    await host.fresh_status()
    assert time.monotonic() - began < SOON
