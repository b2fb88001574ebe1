"""Much at once: both directions, single bytes, storms of connections, thousands that are idle."""

from __future__ import annotations

import hashlib

import trio

from protocol.ports import Port
from tests.conformance.bench import SEED, Bench, send_blocks
from tests.conformance.case import case
from tests.conformance.forwarder import Ability
from tests.conformance.guest_side import seeded_blocks
from tests.e2e.clients import receive_exactly, receive_to_end

GROUP = "Load"


async def _there_and_back(bench: Bench, port: Port, size: int, seed: int) -> None:
    sent, seen = hashlib.sha256(), hashlib.sha256()
    for block in seeded_blocks(size, seed):
        sent.update(block)
    async with bench.client(port) as client, trio.open_nursery() as nursery:
        nursery.start_soon(send_blocks, client, seeded_blocks(size, seed))
        received = 0
        while received < size:
            data = await client.recv(1 << 18)
            assert data, f"the end came after {received} of {size} bytes"
            seen.update(data)
            received += len(data)
    assert seen.hexdigest() == sent.hexdigest()


@case(GROUP, "bulk both ways on four connections: no deadlock")
async def bulk_both_ways(bench: Bench) -> None:
    port = await bench.tcp("echo")
    size = 20_000_000 if bench.long else 4_000_000
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(_there_and_back, bench, port, size, SEED + number)
    bench.note(f"{4 * size / 1e6 / (trio.current_time() - began):.1f} MB/s each way")


@case(GROUP, "ping-pong of single bytes")
async def ping_pong(bench: Bench) -> None:
    port = await bench.tcp("echo")
    count = 2_000 if bench.long else 500
    async with bench.client(port) as client:
        began = trio.current_time()
        for number in range(count):
            byte = bytes([number % 256])
            await client.send(byte)
            assert await client.recv(2) == byte
        bench.note(f"{(trio.current_time() - began) / count * 1000:.1f} ms each")


@case(GROUP, "storm of connections, begun within 2 s: each is served", Ability.CROWDS)
async def storm_of_connections(bench: Bench) -> None:
    port = await bench.tcp("banner", backlog=4096)
    count = 2_000 if bench.long else 400
    served = 0

    async def connect(_number: int) -> None:
        nonlocal served
        async with bench.client(port) as client:
            assert await receive_to_end(client) == b"hello\n"
            served += 1

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(connect, number)
            if number % 20 == 19:
                await trio.sleep_until(began + 2.0 * number / count)
    assert served == count
    bench.note(f"{count} in {trio.current_time() - began:.1f} s")


@case(GROUP, "idle connections: all answer when asked", Ability.CROWDS)
async def idle_connections(bench: Bench) -> None:
    port = await bench.many()
    count = 2_000 if bench.long else 500
    at_once = trio.CapacityLimiter(50)
    there, all_there, release = 0, trio.Event(), trio.Event()

    async def hold(number: int) -> None:
        nonlocal there
        greeting = b"%06d" % number
        await at_once.acquire_on_behalf_of(number)
        async with bench.client(port) as client:
            await client.send(greeting)
            assert await receive_exactly(client, 6) == greeting
            at_once.release_on_behalf_of(number)
            there += 1
            if there == count:
                all_there.set()
            await release.wait()
            async with at_once:
                await client.send(greeting)
                assert await receive_exactly(client, 6) == greeting

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(hold, number)
        await all_there.wait()
        await trio.sleep(1.0)
        release.set()
    bench.note(f"{count} held")
