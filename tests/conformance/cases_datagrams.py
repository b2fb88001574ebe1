"""UDP: one datagram is one datagram, a client is a peer, what is lost is counted, and TCP does not notice a flood."""

from __future__ import annotations

import random

import trio

from protocol.ports import Port, Protocol
from tests.conformance.bench import PATIENCE, SEED, Bench, served_meanwhile
from tests.conformance.case import case
from tests.conformance.forwarder import Ability
from tests.e2e.clients import eventually, exchange

GROUP = "UDP"
DATAGRAM_SIZES: tuple[int, ...] = (0, 1, 512, 1472, 1473, 4096, 16_384, 32_768, 32_769, 65_000, 65_507)
FLOW_CAP = 1_024


@case(GROUP, "every size from 0 to 65,507 comes back whole", Ability.UDP)
async def every_size(bench: Bench) -> None:
    port = await bench.udp("echo")
    source = random.Random(SEED)
    sizes = DATAGRAM_SIZES
    if bench.long:
        sizes += tuple(source.randrange(65_508) for _ in range(200))
    async with bench.udp_client(port) as client:
        for size in sizes:
            datagram = source.randbytes(size)
            assert await exchange(client, datagram) == datagram, size


@case(GROUP, "whatever address the server is bound to, the client's loopback answers", Ability.UDP, Ability.FOLLOWS)
async def any_address(bench: Bench) -> None:
    for address in ("127.0.0.1", "::1", "0.0.0.0", "::"):
        port = await bench.udp("echo", address)
        async with bench.udp_client(port) as client:
            assert await exchange(client, b"there?") == b"there?"
        await bench.close(port)


@case(GROUP, "the order within a flow is kept", Ability.UDP)
async def order_within_a_flow(bench: Bench) -> None:
    port = await bench.udp("echo")
    back: list[int] = []
    async with bench.udp_client(port) as client:
        for first in range(0, 400, 16):  # few enough at once for any queue
            for number in range(first, first + 16):
                await client.send(number.to_bytes(8, "big") + bytes(number))
            with trio.fail_after(PATIENCE):
                while len(back) < first + 16:
                    datagram = await client.recv(1 << 16)
                    back.append(int.from_bytes(datagram[:8], "big"))
                    assert len(datagram) == 8 + back[-1]
    assert back == list(range(400))


@case(GROUP, "two clients on one server are two peers, each with its own answers", Ability.UDP)
async def two_clients(bench: Bench) -> None:
    port = await bench.udp("peer")
    async with bench.udp_client(port) as one, bench.udp_client(port) as other:
        first, second = await exchange(one, b"who?"), await exchange(other, b"who?")
        assert first != second
        for _ in range(10):
            assert await exchange(one, b"who?") == first
            assert await exchange(other, b"who?") == second


@case(GROUP, "200 clients at once", Ability.UDP)
async def many_clients(bench: Bench) -> None:
    port = await bench.udp("peer")
    peers: set[bytes] = set()
    asked, count = trio.Event(), 200

    async def ask() -> None:
        async with bench.udp_client(port) as client:
            peers.add(await exchange(client, b"who?", seconds=PATIENCE))
            if len(peers) == count:
                asked.set()
            await asked.wait()  # a client that leaves may hand its address, and so its flow, to the next

    with trio.fail_after(2 * PATIENCE):
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(ask)
                await trio.sleep(0.001)


@case(GROUP, "a server that connects to its client goes on answering it", Ability.UDP)
async def connected_server(bench: Bench) -> None:
    port = await bench.udp("connected")
    async with bench.udp_client(port) as client:
        for number in range(20):
            assert await exchange(client, b"%d" % number) == b"%d" % number
            await trio.sleep(0.02)  # so that a look at the guest's sockets finds this one connected


@case(GROUP, "a connected server is not there for others: unreachable", Ability.UDP, Ability.COUNTERS)
async def connected_to_another(bench: Bench) -> None:
    port = await bench.udp("connected")
    async with bench.udp_client(port) as first, bench.udp_client(port) as second:
        assert await exchange(first, b"mine") == b"mine"
        await second.send(b"mine too?")
        await bench.has_had(port, alive=1, total=2)
        assert await exchange(first, b"still mine") == b"still mine"


@case(GROUP, "an answer from another port is dropped, and counted", Ability.UDP, Ability.FOLLOWS)
async def answer_from_elsewhere(bench: Bench) -> None:
    """As a connected client without a forwarder would drop it. The guest's kernel does, and counts it (NoPorts)."""
    port = await bench.udp("elsewhere")
    before = await _no_ports(bench)
    async with bench.udp_client(port) as client:
        for _ in range(5):
            await client.send(b"answer me")

        async def all_dropped() -> bool:
            return await _no_ports(bench) >= before + 5

        await eventually(all_dropped, PATIENCE)
        with trio.move_on_after(0.5) as scope:
            await client.recv(1)
        assert scope.cancelled_caught, "the client got an answer from somebody it never asked"


async def _no_ports(bench: Bench) -> int:
    """Datagrams for which the guest's kernel found no socket, of this family (snmp_counter in the kernel's docs)."""
    name, path = ("Udp:", "snmp") if bench.family.loopback == "127.0.0.1" else ("Udp6NoPorts", "snmp6")
    lines = [line.split() for line in (await bench.server.run(f"cat /proc/net/{path}")).output.splitlines()]
    rows = [line for line in lines if line[0] == name]
    return int(rows[0][1]) if path == "snmp6" else int(rows[1][rows[0].index("NoPorts")])


@case(GROUP, "port unreachable ends that flow, and the next datagram begins another", Ability.UDP, Ability.COUNTERS)
async def port_unreachable(bench: Bench) -> None:
    async with bench.pretended(Protocol.UDP) as port, bench.udp_client(port) as client:
        for flows in range(1, 4):
            await client.send(b"anybody?")
            await bench.has_had(port, alive=0, total=flows)
        await bench.server.udp("echo", port.address, port.number)
        assert await exchange(client, b"now?") == b"now?"
        await bench.server.close(port.number)


@case(GROUP, "a closed port is free on the host, and says so", Ability.UDP, Ability.FOLLOWS)
async def closed_port(bench: Bench) -> None:
    port = await bench.udp("echo")
    async with bench.udp_client(port) as client:
        assert await exchange(client, b"x") == b"x"
        await bench.close(port)
        await client.send(b"x")
        with trio.fail_after(PATIENCE):
            try:
                await client.recv(1)
            except ConnectionRefusedError:
                return
        raise AssertionError("an answer from nobody")


@case(GROUP, "a pair with SO_REUSEPORT: a flow stays with one, and either may go", Ability.UDP, Ability.FOLLOWS)
async def shared_port(bench: Bench) -> None:
    port = bench.port(Protocol.UDP)
    shared = {"do": "shared", "kind": "who", "host": port.address, "port": port.number, "protocol": "udp"}
    await bench.batch(shared, shared)
    await bench.expose(port)
    seen = set()
    for _ in range(40):
        async with bench.udp_client(port) as client:
            who = await exchange(client, b"who?")
            assert await exchange(client, b"who?") == who
            seen.add(who)
    assert len(seen) == 2
    await bench.server.request("unshare", port=port.number, index=0)
    await bench.expose(port)
    async with bench.udp_client(port) as client:
        assert await exchange(client, b"who?") in seen


@case(GROUP, "a flow that is idle for long ends, and its client gets a new one", Ability.UDP, Ability.FLOW_BOUNDS)
async def flow_expiry(bench: Bench) -> None:
    async with bench.forwarder.flow_idle(1.0):
        port = await bench.udp("peer")
        async with bench.udp_client(port) as client:
            first = await exchange(client, b"who?")
            await bench.has_had(port, alive=0, total=1)
            assert await exchange(client, b"who?") != first
            await bench.has_had(port, alive=0, total=2)


@case(GROUP, "more flows than the cap: the longest idle one leaves, nobody is turned away", Ability.FLOW_BOUNDS)
async def flow_cap(bench: Bench) -> None:
    port = await bench.udp("peer")
    count, at_once = FLOW_CAP + 20, trio.Semaphore(16)
    answered, release = trio.Event(), trio.Event()
    peers: set[bytes] = set()

    async def ask() -> None:
        async with bench.udp_client(port) as client:
            async with at_once:
                peers.add(await exchange(client, b"who?", seconds=PATIENCE))
            if len(peers) == count:
                answered.set()
            await release.wait()

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(ask)
        await answered.wait()
        bench.note(f"{(trio.current_time() - began) / count * 1000:.1f} ms for each new flow")
        counters = await bench.counters(port)
        release.set()
    assert (counters.connections, counters.connections_total) == (FLOW_CAP, count)


@case(GROUP, "a flood at ten times what fits: drops are counted, TCP is unharmed", Ability.UDP)
async def flood(bench: Bench) -> None:
    count, port, other = (200_000 if bench.long else 30_000), await bench.udp("numbered"), await bench.tcp("echo")
    numbered, disordered = await bench.in_guest("numbered"), await bench.in_guest("disordered")
    began = trio.current_time()
    async with bench.udp_client(port) as client, served_meanwhile(bench, other) as taken:
        for number in range(count):
            await client.send(number.to_bytes(8, "big") + bytes(1192))
            if number % 64 == 0:
                await trio.lowlevel.checkpoint()  # for the round trips
        flooded = trio.current_time() - began
        await bench.echoes(other)
        if Ability.COUNTERS in bench.forwarder.abilities:
            await _all_accounted_for(bench, port, count, numbered)
    arrived = await bench.in_guest("numbered") - numbered
    bench.note(
        f"{count / flooded:.0f}/s sent, {arrived / count:.0%} arrived, round trip of others at most"
        f" {max(taken) * 1000:.0f} ms"
    )
    assert 0 < arrived <= count
    assert await bench.in_guest("disordered") == disordered


async def _all_accounted_for(bench: Bench, port: Port, count: int, before: int) -> None:
    """Each datagram was handed on or counted as dropped; and what was handed on arrived or was dropped in the guest."""

    async def accounted_for() -> bool:
        counters = await bench.counters(port)
        return counters.datagrams_to_guest + counters.datagrams_dropped == count

    await eventually(accounted_for, PATIENCE)

    async def arrived() -> bool:
        drops: int = (await bench.server.request("drops", port=port.number))["drops"]
        handed_on = (await bench.counters(port)).datagrams_to_guest
        return await bench.in_guest("numbered") - before + drops == handed_on

    await eventually(arrived, PATIENCE)
