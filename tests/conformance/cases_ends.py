"""How connections begin and end: every byte, the end of each direction, every abort, every refusal."""

from __future__ import annotations

import socket
from itertools import cycle

import trio

from tests.conformance.bench import PATIENCE, SEED, SIZES, Bench, digest_of, digest_received, reset_comes, send_blocks
from tests.conformance.case import case
from tests.conformance.forwarder import Ability
from tests.conformance.guest_side import seeded_blocks
from tests.e2e.clients import abort, receive_exactly, receive_to_end

GROUP = "Ends"


@case(GROUP, "half-close by the client: the answer still comes")
async def half_close_by_the_client(bench: Bench) -> None:
    port = await bench.tcp("digest")
    for size in SIZES:
        async with bench.client(port) as client:
            assert await send_blocks(client, seeded_blocks(size, SEED)) == size
            client.shutdown(socket.SHUT_WR)
            assert (await receive_to_end(client)).strip().decode() == digest_of(size), size


@case(GROUP, "half-close by the server: the client may go on")
async def half_close_by_the_server(bench: Bench) -> None:
    port = await bench.tcp("half_digest")
    for size in SIZES:
        async with bench.client(port) as client:
            assert await client.recv(1) == b""
            assert await send_blocks(client, seeded_blocks(size, SEED)) == size
            client.shutdown(socket.SHUT_WR)
            digests: list[str] = []
            with trio.fail_after(PATIENCE):
                while not digests:
                    digests = (await bench.server.request("digests"))["digests"]
            assert digests == [digest_of(size)], size


@case(GROUP, "the server writes after the client's FIN")
async def server_writes_after_the_clients_end(bench: Bench) -> None:
    port = await bench.tcp("reply")
    for size in SIZES:
        async with bench.client(port) as client:
            assert await send_blocks(client, seeded_blocks(size, SEED)) == size
            client.shutdown(socket.SHUT_WR)
            assert await digest_received(client) == (size, digest_of(size)), size


@case(GROUP, "the server sends and ends")
async def server_sends_and_ends(bench: Bench) -> None:
    port = await bench.tcp("seeded")
    for size in SIZES:
        async with bench.client(port) as client:
            await client.send(b"%d %d\n" % (size, SEED))
            assert await digest_received(client) == (size, digest_of(size)), size


@case(GROUP, "both ends finish at the same moment")
async def both_finish_at_once(bench: Bench) -> None:
    port = await bench.tcp("slam")
    for _ in range(50):
        async with bench.client(port) as client:
            client.shutdown(socket.SHUT_WR)
            assert await client.recv(1) == b""


@case(GROUP, "RST by the client is RST in the guest")
async def abort_by_the_client(bench: Bench) -> None:
    port = await bench.tcp("echo")
    resets = await bench.in_guest("reset")
    for _ in range(20):
        async with bench.client(port) as client:
            await client.send(b"abc")
            assert await receive_exactly(client, 3) == b"abc"  # else the guest may never hear of this connection
            abort(client)
    await bench.in_guest_reaches("reset", resets + 20)


@case(GROUP, "RST by the client while the server sends")
async def abort_while_the_server_sends(bench: Bench) -> None:
    port = await bench.tcp("seeded")
    resets = await bench.in_guest("reset")
    for _ in range(5):
        async with bench.client(port) as client:
            await client.send(b"%d %d\n" % (SIZES[-1] * 10, SEED))
            await receive_exactly(client, 100_000)
            abort(client)
    await bench.in_guest_reaches("reset", resets + 5)


@case(GROUP, "RST by the server is RST for the client")
async def abort_by_the_server(bench: Bench) -> None:
    port = await bench.tcp("reset")
    for _ in range(20):
        async with bench.client(port) as client:
            await client.send(b"abc")
            await reset_comes(client)


@case(GROUP, "the server closes without reading: RST")
async def server_closes_without_reading(bench: Bench) -> None:
    port = await bench.tcp("rude")
    for _ in range(20):
        async with bench.client(port) as client:
            await client.send(b"never read")
            await reset_comes(client)


@case(GROUP, "the server closes at once: an end, and RST for what is sent later")
async def server_closes_at_once(bench: Bench) -> None:
    port = await bench.tcp("slam")
    for _ in range(5):
        async with bench.client(port) as client:
            assert await client.recv(1) == b""
            with trio.fail_after(PATIENCE):
                try:
                    await send_blocks(client, cycle([b"to nobody"]))
                except ConnectionError:
                    continue


@case(GROUP, "refused in the guest: RST, never an empty answer")
async def refused_in_the_guest(bench: Bench) -> None:
    async with bench.pretended() as port:
        for _ in range(20):
            try:
                async with bench.client(port) as client:
                    await reset_comes(client)
            except ConnectionError:  # by connect(2) itself, which is as good
                continue
        if Ability.COUNTERS in bench.forwarder.abilities:
            counters = await bench.counters(port)
            assert (counters.connections, counters.connections_refused) == (0, 20)


@case(GROUP, "a closed port is refused by the host itself", Ability.FOLLOWS)
async def closed_port(bench: Bench) -> None:
    port = await bench.tcp("echo")
    await bench.echoes(port)
    await bench.close(port)
    assert await bench.refused(port)


@case(GROUP, "clients that leave at once cost nothing", Ability.CROWDS)
async def clients_that_leave_at_once(bench: Bench) -> None:
    port = await bench.tcp("echo")
    for number in range(50):
        async with bench.client(port) as client:
            if number % 2:
                abort(client)
    await bench.echoes(port)
    if Ability.COUNTERS in bench.forwarder.abilities:
        await bench.has_had(port, alive=0, total=51)
