"""The life of listeners: late, brief, replaced, shared, many at once. What has been accepted lives on."""

from __future__ import annotations

import socket

import trio

from protocol.ports import Port, Protocol
from tests.conformance.bench import PATIENCE, Bench, served_meanwhile
from tests.conformance.case import case
from tests.conformance.forwarder import Ability
from tests.e2e.clients import receive_exactly, receive_to_end

GROUP = "Listeners"
BOUND_TO = ("127.0.0.1", "::1", "0.0.0.0", "::")


@case(GROUP, "whatever address the server is bound to, the client's loopback answers", Ability.FOLLOWS)
async def any_address(bench: Bench) -> None:
    for address in BOUND_TO:
        port = await bench.tcp("echo", address)
        await bench.echoes(port)
        await bench.close(port)


@case(GROUP, "connections live on when their listener is closed")
async def connections_outlive_their_listener(bench: Bench) -> None:
    port = await bench.tcp("echo")
    async with bench.client(port) as client:
        await client.send(b"before")
        assert await receive_exactly(client, 6) == b"before"
        await bench.close(port)
        await client.send(b"after")
        assert await receive_exactly(client, 5) == b"after"
        client.shutdown(socket.SHUT_WR)
        assert await client.recv(1) == b""


@case(GROUP, "a listener replaced at once by another process", Ability.FOLLOWS)
async def replaced_listener(bench: Bench) -> None:
    port = await bench.tcp("echo")
    request = {"do": "tcp", "kind": "banner", "host": port.address, "port": port.number}
    await bench.server.request("child", request={"do": "hello"}, seconds=60)  # started before it is needed
    async with bench.client(port) as old:
        await old.send(b"old")
        assert await receive_exactly(old, 3) == b"old"
        close = {"do": "close", "port": port.number}
        try:
            await bench.batch(close, {"do": "child", "request": request})
            await bench.expose(port)
            with trio.fail_after(PATIENCE):
                async with bench.client(port) as new:
                    assert await receive_to_end(new) == b"hello\n"
            await old.send(b"goes on")
            assert await receive_exactly(old, 7) == b"goes on"
        finally:
            await bench.server.request("child", request=close)
    await bench.withdraw(port)
    assert await bench.refused(port)


async def _answers(bench: Bench, port: Port) -> bytes:
    """Who answers on `port`."""
    with trio.fail_after(PATIENCE):
        async with bench.client(port) as client:
            return await receive_to_end(client)


@case(GROUP, "a pair with SO_REUSEPORT: both are reached, and either may go", Ability.FOLLOWS)
async def shared_port(bench: Bench) -> None:
    port = bench.port()
    shared = {"do": "shared", "kind": "who", "host": port.address, "port": port.number, "protocol": "tcp"}
    await bench.batch(shared, shared)
    await bench.expose(port)
    assert {await _answers(bench, port) for _ in range(40)} == {b"server 1", b"server 2"}
    await bench.server.request("unshare", port=port.number, index=0)
    await bench.expose(port)
    assert {await _answers(bench, port) for _ in range(10)} == {b"server 2"}
    await bench.close(port)
    assert await bench.refused(port)


@case(GROUP, "listeners that live for 50 ms: the whole answer or none, and nothing stays", Ability.FOLLOWS)
async def short_lived_listeners(bench: Bench) -> None:
    ports = [bench.port() for _ in range(20)]
    seen: list[bytes] = []

    async def try_all() -> None:
        while True:
            for port in ports:
                try:
                    async with bench.client(port) as client:
                        seen.append(await receive_to_end(client))
                except ConnectionError:
                    pass
            await trio.sleep(0.002)

    requests = []
    for port in ports:
        requests += [
            {"do": "tcp", "kind": "banner", "host": port.address, "port": port.number},
            {"do": "pause", "seconds": 0.05},
            {"do": "close", "port": port.number},
        ]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(try_all)
        await bench.batch(*requests)
        last = await bench.tcp("echo")  # what is told later than they were
        nursery.cancel_scope.cancel()
    bench.note(f"{len(seen)} answers from {len(ports)}")
    assert set(seen) <= {b"hello\n"}
    await bench.echoes(last)
    await bench.withdraw(*ports)
    for port in ports:
        assert await bench.refused(port)


@case(GROUP, "500 listeners opened in one go, and closed in one go", Ability.FOLLOWS)
async def many_listeners(bench: Bench) -> None:
    ports = [bench.port() for _ in range(500)]
    opening = [{"do": "tcp", "kind": "banner", "host": port.address, "port": port.number} for port in ports]
    closing = [{"do": "close", "port": port.number} for port in ports]
    began = trio.current_time()
    await bench.batch(*opening)
    opened = trio.current_time()
    await bench.expose(*ports)
    shown = trio.current_time()
    for port in ports[::10]:
        assert await _answers(bench, port) == b"hello\n"
    await bench.batch(*closing)
    closed = trio.current_time()
    await bench.withdraw(*ports)
    bench.note(
        f"{opened - began:.1f} s for the guest to open them, shown {shown - opened:.1f} s later;"
        f" gone {trio.current_time() - closed:.1f} s after the last"
    )
    assert all([await bench.refused(port) for port in ports])


@case(GROUP, "bind storms hold up neither connections nor news of other ports", Ability.FOLLOWS)
async def bind_storms(bench: Bench) -> None:
    port = await bench.tcp("echo")
    count = 5_000 if bench.long else 1_000
    stormy = [bench.port() for _ in range(16)]
    for protocol in ("tcp", "udp"):
        storm = {"protocol": protocol, "host": bench.family.wildcard, "port": stormy[0].number, "count": count}
        async with served_meanwhile(bench, port) as taken:
            answer = await bench.server.request("storm", seconds=60, **storm)
        bench.note(f"{protocol}: {count} in {answer['seconds']:.1f} s, round trip at most {max(taken) * 1000:.0f} ms")
        later = await bench.tcp("echo")
        await bench.echoes(later)
    await bench.withdraw(*stormy, *(Port(Protocol.UDP, one.address, one.number) for one in stormy))


@case(GROUP, "bound now, listening a second later", Ability.FOLLOWS)
async def bound_now_listening_later(bench: Bench) -> None:
    port = bench.port()
    await bench.server.bind(port.address, port.number)
    other = await bench.tcp("echo")
    await trio.sleep(1.0)
    await bench.echoes(other)
    assert await bench.refused(port)
    await bench.server.listen("echo", port.number)
    with trio.fail_after(PATIENCE):
        await bench.expose(port)
    await bench.echoes(port)


@case(GROUP, "closed and opened again, over and over: never the old answer", Ability.FOLLOWS)
async def reopened(bench: Bench) -> None:
    port = await bench.tcp("echo")
    for _ in range(10):
        await bench.batch(
            {"do": "close", "port": port.number},
            {"do": "tcp", "kind": "banner", "host": port.address, "port": port.number},
        )
        await bench.expose(port)
        assert await _answers(bench, port) == b"hello\n"
        await bench.batch(
            {"do": "close", "port": port.number},
            {"do": "tcp", "kind": "echo", "host": port.address, "port": port.number},
        )
        await bench.expose(port)
        await bench.echoes(port)


@case(GROUP, "one address of two goes, the other stays", Ability.FOLLOWS)
async def one_address_of_two(bench: Bench) -> None:
    first = await bench.tcp("echo", "127.0.0.1")
    second = Port(Protocol.TCP, "::1", first.number)
    await bench.server.tcp("echo", second.address, second.number)
    await bench.expose(first, second)
    await bench.echoes(first)
    await bench.server.close(first.number, second.address)
    await bench.withdraw(second)
    await bench.echoes(first)
