"""Forwards as a user sees them: what is reachable on the host, what is not, and why."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from hostagent import forwarder as forwarder_module
from hostagent import host_listener
from hostagent.channel import Channel
from hostagent.forward_plan import ListenerKey
from hostagent.forward_rules import ForwardRule, RuleSet
from hostagent.forwarder import Forwarder
from hostagent.forwards import Endpoint, Forward, ForwardState
from hostagent.port_reports import PortReports
from hostagent.stream_socket import listen
from protocol.messages import Message, PortOwners, PortsChanged, PortsSnapshot
from protocol.ports import Port, PortOwner, Protocol
from protocol.stream_messages import StreamKind
from tests.fakes.connected_channel import (
    BOUND,
    HELLO,
    RecordingObserver,
    nothing_left_open,
    open_descriptors,
    opened_since,
)
from tests.fakes.guest import FakeGuest, fake_guest
from tests.fakes.port_taker import port_taker
from tests.fakes.privileges import without_root

GUEST = "127.0.0.2"
"""Where programs in the guest listen: their host ports are at 127.0.0.1 and [::1], of the same machine here."""

HOSTS = ["127.0.0.1", "::1"]


class Host(RecordingObserver):
    """A host agent as far as forwards go."""

    def __init__(self, path: Path, rules: Sequence[ForwardRule]) -> None:
        super().__init__()
        self.channel = Channel(path, HELLO, self)
        self.forwarder = Forwarder(self.channel, RuleSet(tuple(rules)), self._forward_changed)
        self.gone: list[str] = []
        self.changes = 0
        self.on_ended = self.forwarder.stall
        self._ports = PortReports(self.forwarder)
        self._news = trio.Event()

    def message(self, message: Message) -> None:
        if isinstance(message, PortsSnapshot | PortsChanged | PortOwners):
            assert self._ports.receive(message)
        super().message(message)

    def _forward_changed(self, forward: Forward, present: bool) -> None:
        self.changes += 1
        if not present:
            self.gone.append(str(forward.guest))
        self._news.set()
        self._news = trio.Event()

    async def sees(self, condition: Callable[[list[Forward]], bool]) -> list[Forward]:
        """The forwards, once they are as `condition` says."""
        with trio.fail_after(BOUND):
            while not condition(self.forwarder.forwards):
                await self._news.wait()
        return self.forwarder.forwards

    async def state(self, *states: ForwardState) -> list[Forward]:
        """The forwards, once their states are these."""
        return await self.sees(lambda forwards: tuple(forward.state for forward in forwards) == states)


@asynccontextmanager
async def host(folder: Path, *rules: ForwardRule) -> AsyncIterator[tuple[Host, FakeGuest]]:
    path = folder / "channel.sock"
    async with fake_guest(path) as guest, trio.open_nursery() as nursery:
        made = Host(path, rules)
        await nursery.start(made.forwarder.run)
        nursery.start_soon(made.channel.run)
        await made.until(lambda seen: bool(seen.messages))
        yield made, guest
        nursery.cancel_scope.cancel()


_numbers = itertools.cycle(range(21_000, 32_000))
next(itertools.islice(_numbers, os.getpid() % 10_000, None))  # another run at the same time begins elsewhere


def free_number(protocol: Protocol = Protocol.TCP) -> int:
    """A port that is free on the host, and forwarded by default (larger UDP ports belong to clients)."""
    return next(number for number in _numbers if is_free(protocol, number))


def is_free(protocol: Protocol, number: int) -> bool:
    try:
        for address in HOSTS:
            listen(ListenerKey(protocol, Endpoint(address, number))).close()
    except OSError:
        return False
    return True


def guest_program(protocol: Protocol = Protocol.TCP, address: str = GUEST, port: int = 0) -> socket.socket:
    """A socket of a program in the guest."""
    return listen(ListenerKey(protocol, Endpoint(address, port or free_number(protocol))))


def port_of(sock: socket.socket) -> Port:
    protocol = Protocol.TCP if sock.type == socket.SOCK_STREAM else Protocol.UDP
    return Port(protocol, sock.getsockname()[0], sock.getsockname()[1])


def refused(address: str, number: int) -> bool:
    """Whether nobody listens there. Does not wait: on the loopback connect(2) knows at once."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as client:
        return client.connect_ex((address, number)) == errno.ECONNREFUSED


async def test_a_port_of_the_guest_is_one_of_the_host_until_it_closes(tmp_path: Path) -> None:
    async with host(tmp_path) as (seen, guest):
        with guest_program() as program:
            port = port_of(program)
            guest.open_ports(port)
            (forward,) = await seen.state(ForwardState.LISTENING)
            assert forward.host == tuple(Endpoint(address, port.number) for address in HOSTS)
            assert (forward.guest, forward.reason) == (Endpoint(GUEST, port.number), "")
            for address in HOSTS:
                with trio.fail_after(BOUND):
                    async with await trio.open_tcp_stream(address, port.number) as client:
                        await trio.lowlevel.wait_readable(program)
                        with program.accept()[0] as accepted:
                            accepted.send(b"hello")
                            assert await client.receive_some() == b"hello"
            guest.close_ports(port)
            await seen.sees(lambda forwards: not forwards)
            assert seen.gone == [f"{GUEST}:{port.number}"]
            assert all(refused(address, port.number) for address in HOSTS)


@pytest.mark.parametrize("address", HOSTS)
async def test_a_udp_port_too(tmp_path: Path, address: str) -> None:
    async with host(tmp_path) as (seen, guest):
        with guest_program(Protocol.UDP) as program:
            port = port_of(program)
            guest.open_ports(port)
            (forward,) = await seen.state(ForwardState.LISTENING)
            assert set(forward.host) == {Endpoint(address, port.number) for address in HOSTS}
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.connect((address, port.number))
                client.send(b"ping")
                with trio.fail_after(BOUND):
                    await trio.lowlevel.wait_readable(program)
                    payload, sender = program.recvfrom(100)
                    program.sendto(payload + b"pong", sender)
                    await trio.lowlevel.wait_readable(client)
                    assert client.recv(100) == b"pingpong"
            assert forward.traffic.connections == 1
            guest.close_ports(port)
            await seen.sees(lambda forwards: not forwards)
            assert is_free(Protocol.UDP, port.number)


@pytest.mark.parametrize("protocol", Protocol)
async def test_a_host_port_that_is_taken_is_had_as_soon_as_it_is_free(tmp_path: Path, protocol: Protocol) -> None:
    async with host(tmp_path) as (seen, guest):
        number = free_number(protocol)
        with port_taker(protocol, port=number) as (process, _), port_taker(protocol, "::1", number) as (other, _):
            guest.open_ports(Port(protocol, GUEST, number))
            (forward,) = await seen.state(ForwardState.CONFLICT)
            await seen.sees(lambda forwards: str(process.pid) in forwards[0].reason)
            assert forward.reason.startswith(f"127.0.0.1:{number} is taken by 'python")
            assert forward.host == tuple(Endpoint(address, number) for address in HOSTS)
            other.communicate()
            await seen.sees(lambda forwards: forwards[0].reason.startswith("only partly: 127.0.0.1"))
            assert forward.state is ForwardState.LISTENING
            process.communicate()
            began = trio.current_time()
            await seen.sees(lambda forwards: not forwards[0].reason)
            assert trio.current_time() - began <= 1.0
        assert not is_free(protocol, number)


async def test_the_next_holder_of_a_taken_port_is_named(tmp_path: Path) -> None:
    async with host(tmp_path) as (seen, guest):
        number = free_number()
        with port_taker(port=number) as (first, _):
            guest.open_ports(Port(Protocol.TCP, GUEST, number))
            await seen.sees(lambda forwards: bool(forwards) and str(first.pid) in forwards[0].reason)
            sock = socket.socket()  # no trio call between the end of one and the beginning of the next
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            first.communicate()
            with sock:
                sock.bind(("127.0.0.1", number))
                sock.listen()
                await seen.sees(lambda forwards: f"(pid {os.getpid()})" in forwards[0].reason)


async def test_a_privileged_port_says_how_it_would_be_allowed(tmp_path: Path) -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    assert lowest > 1, (
        "every user may have every port here; `sysctl net.ipv4.ip_unprivileged_port_start=1024` undoes it"
    )
    number = next(n for n in range(lowest - 1, 0, -1) if n != 22)
    async with host(tmp_path) as (seen, guest):
        with without_root():
            guest.open_ports(Port(Protocol.TCP, GUEST, number))
            (forward,) = await seen.state(ForwardState.DENIED)
            assert f"sudo sysctl net.ipv4.ip_unprivileged_port_start={number}" in forward.reason
        if os.geteuid() == 0:  # the right is there again
            await seen.state(ForwardState.LISTENING)
        guest.close_ports(Port(Protocol.TCP, GUEST, number))
        await seen.sees(lambda forwards: not forwards)


@pytest.mark.parametrize(
    ("port", "word"),
    [
        (Port(Protocol.TCP, "0.0.0.0", 22), "ssh"),
        (Port(Protocol.UDP, "0.0.0.0", 5_353), "mDNS"),
        (Port(Protocol.UDP, "0.0.0.0", 40_000), "clients"),
        (Port(Protocol.TCP, "192.168.5.15", 8_000), "hostagent forward add ADDRESS:PORT"),
    ],
)
async def test_an_ignored_port_says_why(tmp_path: Path, port: Port, word: str) -> None:
    async with host(tmp_path) as (seen, guest):
        guest.open_ports(port)
        (forward,) = await seen.state(ForwardState.IGNORED)
        assert word in forward.reason
        assert forward.host == ()


async def test_listeners_stay_while_the_guest_agent_is_away(tmp_path: Path) -> None:
    async with host(tmp_path) as (seen, guest):
        with guest_program() as program:
            port = port_of(program)
            guest.open_ports(port)
            await seen.state(ForwardState.LISTENING)
            guest.kill()
            guest.cut()
            (forward,) = await seen.state(ForwardState.STALLED)
            assert "comes" in forward.reason or "heals" in forward.reason
            with trio.fail_after(BOUND):
                async with await trio.open_tcp_stream("127.0.0.1", port.number) as client:
                    guest.restart()
                    await seen.state(ForwardState.LISTENING)
                    await trio.lowlevel.wait_readable(program)
                    with program.accept()[0] as accepted:
                        accepted.send(b"after all")
                        assert await client.receive_some() == b"after all"
            assert seen.gone == []


async def test_a_port_that_closed_while_the_guest_agent_was_away_is_gone(tmp_path: Path) -> None:
    async with host(tmp_path) as (seen, guest):
        with guest_program() as program:
            port = port_of(program)
            guest.open_ports(port)
            await seen.state(ForwardState.LISTENING)
            guest.kill()
            guest.cut()
            await seen.state(ForwardState.STALLED)
            guest.close_ports(port)
            guest.restart()
            await seen.sees(lambda forwards: not forwards)
            assert refused("127.0.0.1", port.number)


async def test_an_address_that_the_host_does_not_have_is_told(tmp_path: Path) -> None:
    rule = ForwardRule(text="to the office", guest_address=GUEST, host_address="192.0.2.1")
    async with host(tmp_path, rule) as (seen, guest):
        guest.open_ports(Port(Protocol.TCP, GUEST, 8_000))
        (forward,) = await seen.state(ForwardState.FAILED)
        assert "no address 192.0.2.1" in forward.reason
        assert forward.host == (Endpoint("192.0.2.1", 8_000),)


async def test_a_host_without_ipv6_misses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_ipv6(key: ListenerKey) -> socket.socket:
        if "[" in str(key.host):
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        return listen(key)

    monkeypatch.setattr(host_listener, "listen", without_ipv6)
    async with host(tmp_path) as (seen, guest):
        number = free_number()
        guest.open_ports(Port(Protocol.TCP, GUEST, number))
        (forward,) = await seen.state(ForwardState.LISTENING)
        assert (forward.host, forward.reason) == ((Endpoint("127.0.0.1", number),), "")


async def test_two_guest_ports_that_want_one_host_port(tmp_path: Path) -> None:
    number = free_number()
    rules = [
        ForwardRule(text=f"{guest}", guest_address=GUEST, guest_ports=(guest, guest), host_ports=(number, number))
        for guest in (8_001, 8_002)
    ]
    async with host(tmp_path, *rules) as (seen, guest):
        ports = [Port(Protocol.TCP, GUEST, rule.guest_ports[0]) for rule in rules]
        guest.open_ports(*ports)
        _, second = await seen.state(ForwardState.LISTENING, ForwardState.CONFLICT)
        assert "guest port 8001" in second.reason
        guest.close_ports(ports[0])
        await seen.state(ForwardState.LISTENING)
        assert second.reason == ""


async def test_another_program_takes_over_without_a_moment_of_refusal(tmp_path: Path) -> None:
    """The listener stays, and new connections go to the new program."""
    async with host(tmp_path) as (seen, guest):
        with guest_program() as old:
            port = port_of(old)
            with guest_program(address="127.0.0.3", port=port.number) as new:
                guest.open_ports(port)
                await seen.state(ForwardState.LISTENING)
                with socket.create_connection(("127.0.0.1", port.number)) as waiting:
                    assert guest.life is not None
                    guest.life.connection.send(PortsChanged((port_of(new),), (port,)))
                    guest.life.link.flush()
                    await seen.sees(
                        lambda forwards: [f.guest for f in forwards] == [Endpoint("127.0.0.3", port.number)]
                    )
                    with trio.fail_after(BOUND):
                        async with await trio.open_tcp_stream("127.0.0.1", port.number):
                            await trio.lowlevel.wait_readable(new)
                            new.accept()[0].close()
                    waiting.send(b"x")
                (forward,) = seen.forwarder.forwards
                assert forward.state is ForwardState.LISTENING


async def test_a_port_that_opens_and_closes_in_one_moment(tmp_path: Path) -> None:
    """Whether anybody saw it depends on what else there was to do; nothing of it stays."""
    async with host(tmp_path) as (seen, guest):
        for protocol in Protocol:
            port, later = (Port(protocol, GUEST, free_number(protocol)) for _ in range(2))
            assert guest.life is not None
            for message in (PortsChanged((port,), ()), PortsChanged((), (port,)), PortsChanged((later,), ())):
                guest.life.connection.send(message)
            guest.life.link.flush()
            await seen.sees(lambda forwards, later=later: [one.guest.port for one in forwards] == [later.number])  # type: ignore[misc]
            assert is_free(protocol, port.number)
            guest.close_ports(later)
            await seen.sees(lambda forwards: not forwards)
        await trio.testing.wait_all_tasks_blocked()


async def test_owners_are_named_when_they_are_known(tmp_path: Path) -> None:
    async with host(tmp_path) as (seen, guest):
        port = Port(Protocol.TCP, GUEST, free_number())
        owner = PortOwner("postgres", 812, 70, "docker-4711.scope")
        guest.open_ports(port)
        guest.name_owner(port, owner)
        guest.name_owner(Port(Protocol.TCP, GUEST, 1), PortOwner("nobody", 1, 1))
        (forward,) = await seen.sees(lambda forwards: any(forward.owner for forward in forwards))
        assert forward.owner == owner
        guest.close_ports(port)
        await seen.sees(lambda forwards: not forwards)
        guest.open_ports(port)
        (forward,) = await seen.state(ForwardState.LISTENING)
        assert forward.owner is None, "another process may have it now"


async def test_more_ports_than_a_guest_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarder_module, "MAX_PORTS", 2)
    async with host(tmp_path) as (seen, _):
        first, second, third = (Port(Protocol.TCP, GUEST, free_number()) for _ in range(3))
        assert seen.forwarder.change([first, second], [])
        assert not seen.forwarder.change([third], [])
        await seen.sees(lambda forwards: len(forwards) == 2)
        assert seen.forwarder.change([third], [first])
        wanted = [Endpoint(GUEST, one.number) for one in (second, third)]
        await seen.sees(lambda forwards: [forward.guest for forward in forwards] == wanted)


async def test_five_thousand_ports(tmp_path: Path) -> None:
    rule = ForwardRule(text="apart from all others", guest_address=GUEST, host_address="127.73.0.1")
    ports = [Port(Protocol.TCP, GUEST, number) for number in range(20_000, 25_000)]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    try:
        async with host(tmp_path, rule) as (seen, guest):
            before = open_descriptors()
            began = time.process_time()
            guest.open_ports(*ports)
            await seen.sees(lambda forwards: len(forwards) == len(ports))
            assert len(opened_since(before)) == len(ports)
            assert not any(refused("127.73.0.1", port.number) for port in ports[::100])
            assert guest.life is not None
            guest.restart("second boot")
            guest.ports.clear()
            await seen.sees(lambda forwards: not forwards)
            assert all(refused("127.73.0.1", port.number) for port in ports[::100])
            assert time.process_time() - began < 10.0
            await trio.testing.wait_all_tasks_blocked()
            assert not opened_since(before)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_nothing_is_left_when_it_is_cancelled(tmp_path: Path) -> None:
    async def use() -> None:
        async with host(tmp_path) as (seen, guest):
            ports = [Port(protocol, GUEST, free_number(protocol)) for protocol in Protocol]
            guest.open_ports(*ports)
            await seen.state(ForwardState.LISTENING, ForwardState.LISTENING)
            with socket.create_connection(("127.0.0.1", ports[0].number)):
                assert (await guest.opens(1)).kind is StreamKind.TCP

    trio.run(use)
    with nothing_left_open():
        trio.run(use)
