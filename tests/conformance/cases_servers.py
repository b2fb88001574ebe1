"""Servers that are late, full, deaf or slow: what waits is bounded, what comes is whole, and others are not held up."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator

import trio

from tests.conformance.bench import PATIENCE, SEED, Bench, digest_of, digest_received, reset_comes, send_blocks
from tests.conformance.case import case
from tests.conformance.forwarder import Ability
from tests.conformance.guest_side import BLOCK, seeded_blocks
from tests.e2e.clients import receive_exactly, receive_to_end

GROUP = "Servers"
GIGABYTE = 1_000_000_000
QUIET = 1.0
"""A sender whose socket took nothing for so many seconds is blocked."""

HELD = 24_000_000
"""Bytes that may be under way to a reader that does not read: socket buffers of two kernels, and one window."""

GROWTH = 16 << 20
"""Bytes by which an agent may grow meanwhile."""


@case(GROUP, "the server accepts late: nothing is lost")
async def accepts_late(bench: Bench) -> None:
    port = await bench.tcp("deaf")
    async with bench.client(port) as client:
        await send_blocks(client, seeded_blocks(70_000, SEED))
        client.shutdown(socket.SHUT_WR)
        await trio.sleep(1.0)
        await bench.server.request("accept", kind="digest", port=port.number)
        with trio.fail_after(PATIENCE):
            assert (await receive_to_end(client)).strip().decode() == digest_of(70_000)


@case(GROUP, "full backlog: others are served, and those that wait when it accepts at last", Ability.CROWDS)
async def full_backlog(bench: Bench) -> None:
    full, other = await bench.tcp("deaf", backlog=1), await bench.tcp("echo")
    served: list[int] = []

    async def wait_for_service(number: int) -> None:
        async with bench.client(full) as client:
            await client.send(b"%d" % number)
            assert await receive_exactly(client, 1) == b"%d" % number
            served.append(number)

    with trio.fail_after(3 * PATIENCE):
        async with trio.open_nursery() as nursery:
            for number in range(6):  # two fit the queue (listen(2) counts from 0), the others' dials must wait
                nursery.start_soon(wait_for_service, number)
            await trio.sleep(1.0)
            assert served == []
            for _ in range(10):
                await bench.echoes(other)
            await bench.server.request("accept", kind="echo", port=full.number)
    assert sorted(served) == list(range(6))


@case(GROUP, "full backlog for ever: RST in the end, never an empty answer", Ability.CROWDS, long_only=True)
async def full_backlog_for_ever(bench: Bench) -> None:
    """A client's own kernel gives up after two minutes (tcp_syn_retries, tcp(7)); a forwarder may do so earlier."""
    full = await bench.tcp("deaf", backlog=1)
    ends: list[str] = []

    async def wait_for_nobody() -> None:
        async with bench.client(full) as client:
            await client.send(b"anybody?")
            try:
                ends.append("an end" if await client.recv(1) == b"" else "data")
            except ConnectionResetError:
                ends.append("RST")

    with trio.move_on_after(13):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(wait_for_nobody)
    assert set(ends) <= {"RST"}
    bench.note(f"{len(ends)} of 5 reset after 13 s, the others wait")


@case(GROUP, "never accepted, and the listener goes: RST")
async def never_accepted(bench: Bench) -> None:
    port = await bench.tcp("deaf")
    async with bench.client(port) as client:
        await client.send(b"into the kernel's queue")
        if Ability.COUNTERS in bench.forwarder.abilities:
            await bench.has_had(port, alive=1, total=1)  # it is on its way to the guest
        await trio.sleep(0.5)
        await bench.server.close(port.number)  # the kernel resets what nobody has accepted
        await reset_comes(client)


@case(GROUP, "a reader that stops: its 1 GB sender is blocked, then goes on", Ability.MEMORY)
async def blocked_sender(bench: Bench) -> None:
    """Both agents stay small, and every byte is there when the reader goes on."""
    await bench.server.request("gate", open=False)
    port, other = await bench.tcp("gated"), await bench.tcp("echo")
    await bench.echoes(other)
    before = await bench.forwarder.resident()
    async with bench.client(port) as client:
        sent = await send_blocks(client, seeded_blocks(GIGABYTE, SEED), QUIET)
        bench.note(f"blocked after {sent / 1e6:.1f} MB")
        assert 0 < sent < HELD
        await _stayed_small(bench, before)
        await bench.echoes(other)
        await bench.server.request("gate", open=True)
        whole = sent + (200_000_000 if bench.long else 20_000_000)
        await send_blocks(client, _skip(seeded_blocks(whole, SEED), sent))
        client.shutdown(socket.SHUT_WR)
        assert (await receive_to_end(client)).decode() == digest_of(whole)
    await _stayed_small(bench, before)


def _skip(blocks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """What follows the first `size` bytes."""
    for _ in range(size // BLOCK):
        next(blocks)
    yield next(blocks)[size % BLOCK :]
    yield from blocks


async def _stayed_small(bench: Bench, before: dict[str, int]) -> None:
    after = await bench.forwarder.resident()
    for name, size in before.items():
        bench.note(f"{name} +{(after[name] - size) / (1 << 20):.1f} MiB")
        assert after[name] - size < GROWTH, f"the {name} grew by {after[name] - size} bytes"


@case(GROUP, "a client that stops reading: the server is blocked, then goes on", Ability.MEMORY)
async def blocked_server(bench: Bench) -> None:
    size = 200_000_000 if bench.long else 30_000_000
    port, other = await bench.tcp("seeded"), await bench.tcp("echo")
    before = await bench.forwarder.resident()
    async with bench.client(port) as client:
        await client.send(b"%d %d\n" % (size, SEED))
        await trio.sleep(2 * QUIET)
        await bench.echoes(other)
        await _stayed_small(bench, before)
        assert await digest_received(client) == (size, digest_of(size))


@case(GROUP, "a reader that is slow gets every byte")
async def slow_reader(bench: Bench) -> None:
    size = 1_000_000
    port = await bench.tcp("seeded")
    async with bench.client(port) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        await client.send(b"%d %d\n" % (size, SEED))
        seen = hashlib.sha256()
        while data := await client.recv(10_000):
            seen.update(data)
            await trio.sleep(0.005)
        assert seen.hexdigest() == digest_of(size)
