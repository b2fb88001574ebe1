"""Unix sockets at either end, and reverse forwards, through a real guest: exact, and healing like all others."""

from __future__ import annotations

import hashlib
import random
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from hostagent.forward_rules import ForwardRule
from hostagent.forwards import Forward, ForwardState
from protocol.ports import Protocol
from tests.e2e.clients import receive_to_end, send_all
from tests.e2e.host_side import PATIENCE, HostSide, breakable_host_side, host_side
from tests.e2e.server_control import GuestServerError
from tests.e2e.shared_guest import SharedGuest
from tests.e2e.test_relay_faults import SUPERVISOR_BACK, kill_agent

pytestmark = pytest.mark.tiny_guest

INSIDE, PORT_INSIDE = "/tmp/inside.sock", 7_001
DATA = random.Random(4).randbytes(300_000)
DIGEST = hashlib.sha256(DATA).hexdigest() + "\n"
LISTENING = ForwardState.LISTENING


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: sockets have little room for it."""
    with tempfile.TemporaryDirectory(prefix="sockets-") as name:
        yield Path(name)


def rule(
    *, guest: str | int, on_host: Path | int, reverse: bool = False, protocol: Protocol = Protocol.TCP
) -> ForwardRule:
    """From a path or port to a path or port."""
    return ForwardRule(
        "a rule",
        protocol=protocol,
        guest_socket=guest if isinstance(guest, str) else "",
        guest_ports=(guest, guest) if isinstance(guest, int) else (1, 65_535),
        host_socket=str(on_host) if isinstance(on_host, Path) else "",
        host_ports=(on_host, on_host) if isinstance(on_host, int) else None,
        reverse=reverse,
    )


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def connect(where: Path | int) -> trio.socket.SocketType:
    """A client on the host."""
    client = trio.socket.socket(socket.AF_UNIX if isinstance(where, Path) else socket.AF_INET)
    await client.connect(str(where) if isinstance(where, Path) else ("127.0.0.1", where))
    return client


async def digest(where: Path | int) -> str:
    """What a `digest` in the guest says about `DATA`: needs half-close, and every byte."""
    with trio.fail_after(PATIENCE), await connect(where) as client:
        await send_all(client, DATA)
        client.shutdown(socket.SHUT_WR)
        return (await receive_to_end(client)).decode()


async def is_refused(where: Path | int) -> bool:
    """Whether a client is cut off without a byte. A unix socket knows no reset while nothing was sent."""
    with trio.fail_after(PATIENCE), await connect(where) as client:
        try:
            return await client.recv(1) == b""
        except ConnectionResetError:
            return True


async def the_reverse(host: HostSide) -> Forward:
    """The reverse forward, once it listens."""
    await host.wait_until(lambda: host.reverse.forwards[0].state is LISTENING, SUPERVISOR_BACK)
    return host.reverse.forwards[0]


# ---------------------------------------------------------------------- the guest's sockets on the host


@pytest.mark.parametrize("kind", ["path", "port"])
async def test_a_socket_of_the_guest_on_the_host(tiny: SharedGuest, folder: Path, kind: str) -> None:
    where: Path | int = folder / "outside.sock" if kind == "path" else free_port()
    async with host_side(tiny.channel_socket, rule(guest=INSIDE, on_host=where)):
        assert await is_refused(where)
        await tiny.server.unix("digest", INSIDE)
        assert await digest(where) == DIGEST
        await tiny.server.close_path(INSIDE)
        await tiny.server.run(f"rm {INSIDE}")
    assert not isinstance(where, Path) or not where.exists()


async def test_a_port_of_the_guest_at_a_path_of_the_host(tiny: SharedGuest, folder: Path) -> None:
    port = await tiny.server.tcp("digest", "127.0.0.1")
    async with host_side(tiny.channel_socket, rule(guest=port, on_host=folder / "outside.sock")) as host:
        await host.listening(port)
        assert await digest(folder / "outside.sock") == DIGEST
        await tiny.server.close(port)
        await host.gone(port)
        assert not (folder / "outside.sock").exists()


# ---------------------------------------------------------------------- the host's services in the guest


async def serve_digests(listener: trio.SocketListener) -> None:
    """Answer each connection with what it sent, as a digest, for as long as it needs."""

    async def serve(stream: trio.SocketStream) -> None:
        seen = hashlib.sha256()
        async for part in stream:
            seen.update(part)
        await stream.send_all(seen.hexdigest().encode() + b"\n")
        await stream.send_eof()

    await trio.serve_listeners(serve, [listener])


@asynccontextmanager
async def service(kind: str, folder: Path) -> AsyncIterator[Path | int]:
    """A service of the host that answers with digests, and where it is."""
    sock = trio.socket.socket(socket.AF_UNIX if kind == "path" else socket.AF_INET)
    await sock.bind(str(folder / "service.sock") if kind == "path" else ("127.0.0.1", 0))
    sock.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_digests, trio.SocketListener(sock))
        yield folder / "service.sock" if kind == "path" else int(sock.getsockname()[1])
        nursery.cancel_scope.cancel()


TEXT = "what a client in the guest sends, " * 3_000
TEXT_DIGEST = hashlib.sha256(TEXT.encode()).hexdigest() + "\n"


@pytest.mark.parametrize("on_host", ["path", "port"])
@pytest.mark.parametrize("inside", [INSIDE, PORT_INSIDE])
async def test_a_service_of_the_host_in_the_guest(
    tiny: SharedGuest, folder: Path, inside: str | int, on_host: str
) -> None:
    async with service(on_host, folder) as where:
        async with host_side(tiny.channel_socket, rule(guest=inside, on_host=where, reverse=True)) as host:
            await the_reverse(host)
            if isinstance(inside, str):
                listing = (await tiny.server.run(f"stat -c '%F %a %U' {inside}")).output
                assert listing == "socket 600 root\n"
                assert await tiny.server.ask(inside, TEXT) == TEXT_DIGEST
            else:
                for address in ("127.0.0.1", "::1"):
                    assert await tiny.server.ask((address, inside), TEXT) == TEXT_DIGEST
            assert host.forward(PORT_INSIDE) is None, "the agent's own listeners are not the guest's ports"
    await until_refused(tiny, inside)


async def until_refused(tiny: SharedGuest, inside: str | int) -> None:
    """The listener goes with the host."""
    with trio.fail_after(PATIENCE):
        while True:
            try:
                await tiny.server.ask(inside if isinstance(inside, str) else ("127.0.0.1", inside), "")
            except GuestServerError as exc:
                if exc.error in ("ECONNREFUSED", "ENOENT"):
                    return
            await trio.sleep(0.05)


async def test_a_service_that_is_not_there_resets_the_guests_client(tiny: SharedGuest, folder: Path) -> None:
    async with host_side(tiny.channel_socket, rule(guest=PORT_INSIDE, on_host=free_port(), reverse=True)) as host:
        forward = await the_reverse(host)
        with pytest.raises(GuestServerError, match="reset"):
            await tiny.server.ask(("127.0.0.1", PORT_INSIDE), "x")
        assert forward.traffic.connections_refused == 1


async def test_what_is_in_the_way_in_the_guest(tiny: SharedGuest, folder: Path) -> None:
    async with service("port", folder) as where:
        await tiny.server.run(f"echo precious > {INSIDE}")
        async with host_side(tiny.channel_socket, rule(guest=INSIDE, on_host=where, reverse=True)) as host:
            await host.wait_until(lambda: host.reverse.forwards[0].state is ForwardState.CONFLICT)
            assert "no socket" in host.reverse.forwards[0].reason
            assert (await tiny.server.run(f"cat {INSIDE}; rm {INSIDE}")).output == "precious\n"
            await tiny.server.unix("banner", INSIDE)
            await host.wait_until(lambda: "another program" in host.reverse.forwards[0].reason)
            await tiny.server.close_path(INSIDE)  # its file stays, as that of a dead process
            await the_reverse(host)
            assert await tiny.server.ask(INSIDE, TEXT) == TEXT_DIGEST


async def serve_echo(server: trio.socket.SocketType) -> None:
    while True:
        payload, sender = await server.recvfrom(1 << 16)
        await server.sendto(payload, sender)


async def test_a_udp_service_of_the_host_in_the_guest(tiny: SharedGuest) -> None:
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        await server.bind(("127.0.0.1", 0))
        reverse = rule(guest=PORT_INSIDE, on_host=server.getsockname()[1], reverse=True, protocol=Protocol.UDP)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_echo, server)
            async with host_side(tiny.channel_socket, reverse) as host:
                forward = await the_reverse(host)
                sizes = [0, 1, 1_200, 9_000, 65_507]
                for address in ("127.0.0.1", "::1"):
                    assert await tiny.server.ask_udp(address, PORT_INSIDE, *sizes) == sizes
                assert forward.traffic.connections_total == 2
                assert forward.traffic.datagrams_to_guest == forward.traffic.datagrams_to_host == 10
            nursery.cancel_scope.cancel()


# ---------------------------------------------------------------------- healing


@pytest.mark.parametrize("fault", ["channel cut", "guest agent killed"])
async def test_they_heal_like_the_others(tiny: SharedGuest, folder: Path, fault: str) -> None:
    outside = folder / "outside.sock"
    await tiny.server.unix("digest", "/tmp/program.sock")
    async with service("path", folder) as where:
        rules = [
            rule(guest="/tmp/program.sock", on_host=outside),
            rule(guest=INSIDE, on_host=where, reverse=True),
            rule(guest=PORT_INSIDE, on_host=where, reverse=True),
        ]
        async with breakable_host_side(tiny.channel_socket, *rules) as (host, wire):

            async def cut() -> None:
                wire.cut()

            harm: Callable[[], Awaitable[None]] = cut if fault == "channel cut" else partial(kill_agent, tiny)
            await all_work(tiny, host, outside)
            for _ in range(3):
                generations = host.generations
                began = time.monotonic()
                await harm()
                await host.ready(after=generations, seconds=SUPERVISOR_BACK)
                await all_work(tiny, host, outside)
                print(f"{fault}: all work again after {time.monotonic() - began:.2f} s")
    await tiny.server.close_path("/tmp/program.sock")
    await tiny.server.run("rm /tmp/program.sock")


async def all_work(tiny: SharedGuest, host: HostSide, outside: Path) -> None:
    await host.wait_until(lambda: all(forward.state is LISTENING for forward in host.reverse.forwards), SUPERVISOR_BACK)
    assert await digest(outside) == DIGEST
    assert await tiny.server.ask(INSIDE, TEXT) == TEXT_DIGEST
    assert await tiny.server.ask(("127.0.0.1", PORT_INSIDE), TEXT) == TEXT_DIGEST
