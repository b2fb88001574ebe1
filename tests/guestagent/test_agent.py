from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from guestagent import clock, power
from guestagent.agent import CAPABILITIES, GuestAgent, describe_guest, in_parts, introduce
from guestagent.relay import TcpRelay
from protocol.limits import MAX_PORTS, PORTS_PER_FRAME
from protocol.messages import Clock, PortOwners, PortsChanged, PortsSnapshot, PowerOff, Status, StatusRequest
from protocol.ports import Port, PortChange, PortOwner, Protocol
from protocol.stream_messages import Reset
from tests.guestagent.host_end import HostEnd, guest_and_host


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[tuple[GuestAgent, HostEnd]]:
    async with guest_and_host(tmp_path) as both:
        yield both


async def snapshot(host: HostEnd) -> set[Port]:
    """All ports, when the last part is there."""

    def whole() -> set[Port] | None:
        parts = [said for said in host.messages if isinstance(said, PortsSnapshot)]
        return {port for part in parts for port in part.ports} if parts and parts[-1].last else None

    return await host.until(whole)


async def settled(host: HostEnd) -> None:
    """Forget what the first generation began with, once all of it is there."""
    await snapshot(host)
    await host.message(Status)
    host.messages.clear()


def ports(count: int) -> frozenset[Port]:
    return frozenset(Port(Protocol.TCP, "127.0.0.1", number) for number in range(1, count + 1))


async def test_an_agent_that_is_stopped_withdraws_its_ports(both: tuple[GuestAgent, HostEnd]) -> None:
    agent, host = both
    await settled(host)
    agent.withdraw_ports()
    assert await host.message(PortsSnapshot) == PortsSnapshot((), last=True)
    host.cut()
    agent.withdraw_ports()  # nobody is there to be told


def test_the_guest_is_described_by_system_and_kernel(tmp_path: Path) -> None:
    (tmp_path / "os-release").write_text('NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n')
    assert describe_guest(tmp_path / "os-release") == f"Debian GNU/Linux 12 (bookworm), Linux {os.uname().release}"
    assert describe_guest(tmp_path / "none").startswith("Linux, Linux ")


def test_the_hello_names_the_boot() -> None:
    hello = introduce("1.2.3")
    assert len(hello.boot_id) == 36
    assert (hello.agent_version, hello.capabilities) == ("1.2.3", CAPABILITIES)


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (1, [1]), (4, [2, 2]), (5, [2, 2, 1])])
def test_parts_are_whole_and_bounded(count: int, sizes: list[int]) -> None:
    parts = list(in_parts(range(count), 2))
    assert [len(part) for part in parts] == sizes
    assert [item for part in parts for item in part] == list(range(count))


async def test_a_generation_begins_with_all_ports_and_the_status(both: tuple[GuestAgent, HostEnd]) -> None:
    guest, host = both
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = Port(Protocol.TCP, "127.0.0.1", server.getsockname()[1])
        with trio.fail_after(10):
            while port not in guest._watch.ports:
                await trio.testing.wait_all_tasks_blocked(0.01)
        await settled(host)
        host.cut()
        assert port in await snapshot(host)
        status = await host.message(Status)
    assert host.guest is not None
    assert host.guest.agent_version == "1.2.3"
    assert dict(status.counters)["generations"] == 2
    assert [source.name for source in status.sources][-2:] == ["sock_diag dump", "NAT rules"]


async def test_the_owners_that_are_known_follow_the_ports(both: tuple[GuestAgent, HostEnd]) -> None:
    _guest, host = both
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = Port(Protocol.TCP, "127.0.0.1", server.getsockname()[1])
        await host.until(lambda: next((True for said in host.messages if isinstance(said, PortOwners)
                                       and port in dict(said.owners)), None))  # fmt: skip
        await settled(host)
        host.cut()
        owners = dict((await host.message(PortOwners)).owners)
    assert owners[port].pid == os.getpid()
    assert [type(said) for said in host.messages[:2]] == [PortsSnapshot, PortOwners]


async def test_ports_are_sent_in_parts(both: tuple[GuestAgent, HostEnd]) -> None:
    guest, host = both
    many = ports(2 * PORTS_PER_FRAME + 1)
    await snapshot(host)
    host.messages.clear()
    guest.changed(PortChange(opened=tuple(sorted(many)), closed=()))
    guest.changed(PortChange(opened=(), closed=tuple(sorted(many))))
    await host.until(lambda: True if len(host.messages) == 6 else None)
    changes = [said for said in host.messages if isinstance(said, PortsChanged)]
    assert [len(said.opened) for said in changes] == [256, 256, 1, 0, 0, 0]
    assert [len(said.closed) for said in changes] == [0, 0, 0, 256, 256, 1]


async def test_long_names_of_owners_fit(both: tuple[GuestAgent, HostEnd]) -> None:
    guest, host = both
    await snapshot(host)
    owner = PortOwner("n" * 255, 1, 0, "u" * 255)
    host.messages.clear()
    guest.owned(dict.fromkeys(ports(1_000), owner))

    def told() -> bool | None:
        messages = [said for said in host.messages if isinstance(said, PortOwners)]
        return True if sum(who == owner for said in messages for _port, who in said.owners) == 1_000 else None

    await host.until(told)
    assert host.generations == 1


async def test_more_ports_than_allowed_are_left_out(
    both: tuple[GuestAgent, HostEnd], monkeypatch: pytest.MonkeyPatch
) -> None:
    guest, host = both
    many = frozenset(Port(Protocol.TCP, "127.0.0.1", number) for number in range(1, MAX_PORTS + 10))
    monkeypatch.setattr(type(guest._watch), "ports", many)
    await settled(host)
    host.cut()
    assert len(await snapshot(host)) == MAX_PORTS


async def test_status_is_answered_and_counts(both: tuple[GuestAgent, HostEnd]) -> None:
    _guest, host = both
    with socket.create_server(("127.0.0.1", 0)) as server:
        await settled(host)
        await host.tcp(server.getsockname()[1]).opened()
        host.say(StatusRequest())
        counters = dict((await host.message(Status)).counters)
    assert (counters["streams"], counters["tcp connections"]) == (1, 1)


async def test_a_bug_in_one_stream_leaves_the_others_alone(
    both: tuple[GuestAgent, HostEnd], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _guest, host = both
    give = TcpRelay.receive_data

    def receive_data(self: TcpRelay, payload: bytes) -> None:
        if payload == b"bug":
            raise ZeroDivisionError
        give(self, payload)

    monkeypatch.setattr(TcpRelay, "receive_data", receive_data)
    with trio.socket.from_stdlib_socket(socket.create_server(("127.0.0.1", 0))) as server:
        bad = await host.tcp(server.getsockname()[1]).opened()
        good = await host.tcp(server.getsockname()[1]).opened()
        first, second = [(await server.accept())[0] for _ in range(2)]
        with first, second:
            bad.send(b"bug")
            good.send(b"fine")
            assert "bug" in (await bad.wait(Reset)).reason
            assert await second.recv(10) == b"fine"
    assert "ZeroDivisionError" in caplog.text


async def test_a_bug_while_opening_resets_the_stream(
    both: tuple[GuestAgent, HostEnd], monkeypatch: pytest.MonkeyPatch
) -> None:
    _guest, host = both

    def destination(_target: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("guestagent.relay.destination", destination)
    assert "bug" in (await host.tcp(80).wait(Reset)).reason


async def test_a_bug_in_a_command_resets_its_stream(
    both: tuple[GuestAgent, HostEnd], monkeypatch: pytest.MonkeyPatch
) -> None:
    _guest, host = both

    async def start(_target: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("guestagent.execution.start_command", start)
    assert "bug" in (await host.command("true").wait(Reset)).reason


async def test_clock_and_power_are_handed_on(both: tuple[GuestAgent, HostEnd], monkeypatch: pytest.MonkeyPatch) -> None:
    _guest, host = both
    said: list[object] = []

    async def shut_down(*, reboot: bool) -> None:
        said.append(reboot)
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(clock, "follow_host", said.append)
    monkeypatch.setattr(power, "shut_down", shut_down)
    host.say(Clock(17))
    host.say(PowerOff(reboot=True))
    host.say(StatusRequest())
    await host.until(lambda: True if len(said) == 2 else None)
    assert said == [17, True]
    await host.message(Status)  # it lives on where it may not shut down
