"""TCP through a forward is what TCP without one would be: every byte, both ends of data, every abort, every refusal."""

from __future__ import annotations

import hashlib
import os
import random
import time

import pytest
import trio

from protocol.ports import Port, Protocol
from tests.e2e.clients import (
    LOOPBACKS,
    abort,
    eventually,
    receive_exactly,
    receive_to_end,
    send_all,
    tcp_client,
)
from tests.e2e.host_side import PATIENCE, HostSide
from tests.e2e.shared_guest import SharedGuest

pytestmark = pytest.mark.tiny_guest

SIZES = (0, 1, 70_000, 10_000_000)
BOUND_TO = ("127.0.0.1", "::1", "0.0.0.0", "::")


async def serve(tiny: SharedGuest, host: HostSide, kind: str, address: str = "127.0.0.1") -> int:
    """A forwarded server in the guest; its port."""
    port = await tiny.server.tcp(kind, address)
    await host.listening(port)
    return port


async def counted(tiny: SharedGuest, name: str, expected: int) -> None:
    """Wait until the guest's server has counted `expected` of `name`."""

    async def reached() -> bool:
        return (await tiny.server.counters()).get(name, 0) >= expected

    await eventually(reached, PATIENCE)


@pytest.mark.parametrize("bound_to", BOUND_TO)
async def test_answers_on_both_loopbacks_whatever_the_server_is_bound_to(
    tiny: SharedGuest, host: HostSide, bound_to: str
) -> None:
    port = await serve(tiny, host, "echo", bound_to)
    for loopback in LOOPBACKS:
        async with tcp_client(port, loopback) as client:
            await client.send(b"anybody there?")
            assert await receive_exactly(client, 14) == b"anybody there?"
    await tiny.server.close(port)


@pytest.mark.parametrize("size", SIZES)
async def test_the_end_of_the_clients_data_arrives_and_the_answer_comes_back(
    tiny: SharedGuest, host: HostSide, size: int
) -> None:
    port = await serve(tiny, host, "digest")
    data = random.Random(size).randbytes(size)
    for loopback in LOOPBACKS:
        async with tcp_client(port, loopback) as client:
            await send_all(client, data)
            client.shutdown(trio.socket.SHUT_WR)
            assert await receive_to_end(client) == hashlib.sha256(data).hexdigest().encode() + b"\n"
    await tiny.server.close(port)


@pytest.mark.parametrize("size", SIZES)
async def test_the_end_of_the_servers_data_arrives_and_the_client_may_go_on(
    tiny: SharedGuest, host: HostSide, size: int
) -> None:
    port = await serve(tiny, host, "half")
    before = await tiny.server.counters()
    async with tcp_client(port) as client:
        assert await client.recv(1) == b""
        await send_all(client, bytes(size))
        client.shutdown(trio.socket.SHUT_WR)
        await counted(tiny, "eof", before.get("eof", 0) + 1)
    assert (await tiny.server.counters()).get("half", 0) - before.get("half", 0) == size
    await tiny.server.close(port)


@pytest.mark.parametrize("size", SIZES)
async def test_what_the_server_sends_arrives_whole_and_ends(tiny: SharedGuest, host: HostSide, size: int) -> None:
    port = await serve(tiny, host, "source")
    async with tcp_client(port) as client:
        await client.send(b"%d\n" % size)
        assert await receive_to_end(client) == bytes(size)
    await tiny.server.close(port)


async def test_an_abort_by_the_client_is_an_abort_in_the_guest(tiny: SharedGuest, host: HostSide) -> None:
    port = await serve(tiny, host, "hold")
    before = await tiny.server.counters()
    for _ in range(20):
        async with tcp_client(port) as client:
            await client.send(b"abc")
            abort(client)
    await counted(tiny, "reset", before.get("reset", 0) + 20)
    assert (await tiny.server.counters()).get("eof", 0) == before.get("eof", 0)
    await tiny.server.close(port)


async def test_an_abort_by_the_server_is_an_abort_for_the_client(tiny: SharedGuest, host: HostSide) -> None:
    port = await serve(tiny, host, "reset")
    for _ in range(20):
        async with tcp_client(port) as client:
            await client.send(b"abc")
            with pytest.raises(ConnectionResetError):
                await client.recv(1)
    await tiny.server.close(port)


@pytest.mark.parametrize("address", LOOPBACKS)
async def test_a_refusal_by_the_guest_is_a_reset_and_no_empty_answer(
    tiny: SharedGuest, host: HostSide, address: str
) -> None:
    nobody = await tiny.server.bind(address)  # taken, so that nobody else can listen there
    port = Port(Protocol.TCP, address, nobody)
    assert host.forwarder.change([port], [])
    await host.listening(nobody)
    async with tcp_client(nobody) as client:
        with pytest.raises(ConnectionResetError):
            await client.recv(1)
    forward = host.forward(nobody)
    assert forward is not None
    assert (forward.traffic.connections, forward.traffic.connections_refused) == (0, 1)
    await tiny.server.close(nobody)


async def test_a_closed_port_is_refused_by_the_host_itself(tiny: SharedGuest, host: HostSide) -> None:
    port = await serve(tiny, host, "banner")
    await tiny.server.close(port)
    await host.gone(port)
    for loopback in LOOPBACKS:
        with pytest.raises(ConnectionRefusedError):
            async with tcp_client(port, loopback):
                pass


@pytest.mark.parametrize("kind", ["stall", "deaf"])
async def test_a_reader_that_does_not_read_stops_its_writer(tiny: SharedGuest, host: HostSide, kind: str) -> None:
    """Both agents hold a bounded part of the 100 MB, and go on serving others."""
    port = await serve(tiny, host, kind)
    before = await tiny.server.agent_memory()
    async with tcp_client(port) as client:
        with trio.move_on_after(2) as scope:
            await send_all(client, bytes(100_000_000))
        assert scope.cancelled_caught
        forward = host.forward(port)
        assert forward is not None
        assert forward.traffic.bytes_to_guest < 8_000_000  # the guest's socket buffers and one window
        assert await tiny.server.agent_memory() - before < 4_096
        other = await serve(tiny, host, "banner")
        async with tcp_client(other) as quick:
            assert await receive_to_end(quick) == b"hello\n"
        abort(client)
    for used in (port, other):
        await tiny.server.close(used)


async def test_a_client_that_does_not_read_stops_the_server(tiny: SharedGuest, host: HostSide) -> None:
    port = await serve(tiny, host, "source")
    before = await tiny.server.agent_memory()
    async with tcp_client(port) as client:
        await client.send(b"100000000\n")
        forward = host.forward(port)
        assert forward is not None
        held = -1
        while held != forward.traffic.bytes_to_host:  # until nothing comes any more
            held = forward.traffic.bytes_to_host
            await trio.sleep(0.5)
        assert 0 < held < 16_000_000
        assert await tiny.server.agent_memory() - before < 4_096
        assert await receive_exactly(client, 100_000_000) == bytes(100_000_000)
        assert await client.recv(1) == b""
    await tiny.server.close(port)


async def test_both_directions_at_once_do_not_block_each_other(tiny: SharedGuest, host: HostSide) -> None:
    port = await serve(tiny, host, "echo")
    data = os.urandom(5_000_000)

    async def there_and_back() -> None:
        async with tcp_client(port) as client, trio.open_nursery() as nursery:
            nursery.start_soon(send_all, client, data)
            assert await receive_exactly(client, len(data)) == data

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(there_and_back)
    await tiny.server.close(port)


async def test_500_connections_are_held_at_once(tiny: SharedGuest, host: HostSide) -> None:
    port = await serve(tiny, host, "echo")
    async with trio.open_nursery() as nursery:
        done = 0
        all_there, release = trio.Event(), trio.Event()

        async def hold(number: int) -> None:
            nonlocal done
            async with tcp_client(port) as client:
                await client.send(b"%03d" % number)
                assert await receive_exactly(client, 3) == b"%03d" % number
                done += 1
                if done == 500:
                    all_there.set()
                await release.wait()
                await client.send(b"!")
                assert await receive_exactly(client, 1) == b"!"

        for number in range(500):
            nursery.start_soon(hold, number)
        with trio.fail_after(60):
            await all_there.wait()
        forward = host.forward(port)
        assert forward is not None
        assert forward.traffic.connections == 500
        release.set()
    await tiny.server.close(port)
    await host.gone(port)


async def test_connections_live_on_when_their_listener_is_closed(tiny: SharedGuest, host: HostSide) -> None:
    port = await serve(tiny, host, "echo")
    async with tcp_client(port) as client:
        await client.send(b"before")
        assert await receive_exactly(client, 6) == b"before"
        await tiny.server.close(port)
        await host.gone(port)
        await client.send(b"after")
        assert await receive_exactly(client, 5) == b"after"
        client.shutdown(trio.socket.SHUT_WR)
        assert await client.recv(1) == b""


async def test_a_guest_that_never_accepts_does_not_hold_up_the_end(tiny: SharedGuest, host: HostSide) -> None:
    port = await serve(tiny, host, "deaf")
    async with tcp_client(port) as client:
        await client.send(b"into the kernel's queue")
        await tiny.server.close(port)  # the kernel resets what nobody accepted
        with trio.fail_after(PATIENCE), pytest.raises(ConnectionResetError):
            await client.recv(1)


async def test_a_client_that_leaves_at_once_costs_nothing(tiny: SharedGuest, host: HostSide) -> None:
    port = await serve(tiny, host, "banner")
    for number in range(50):
        async with tcp_client(port) as client:
            if number % 2:
                abort(client)
    forward = host.forward(port)
    assert forward is not None
    traffic = forward.traffic

    async def over() -> bool:
        return traffic.connections_total == 50 and not traffic.connections

    await eventually(over, PATIENCE)
    began = time.monotonic()
    async with tcp_client(port) as client:
        assert await receive_to_end(client) == b"hello\n"
    assert time.monotonic() - began < 1.0
    await tiny.server.close(port)


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
