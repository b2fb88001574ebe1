from __future__ import annotations

import os
import socket
import tty
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from guestagent import channel
from guestagent.channel import AWAY_TICK, Port, find_port, open_port, wait_for_port
from protocol.messages import Status, StatusRequest
from tests.guestagent.host_end import BOUND, HostEnd, guest_and_host


@pytest.fixture
def ends() -> Iterator[tuple[Port, socket.socket]]:
    """A port on a socket, and the other end."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    port = Port(ours.detach())
    with theirs:
        yield port, theirs
    port.close()


@asynccontextmanager
async def terminal_port() -> AsyncIterator[tuple[Port, str]]:
    """A port that goes on when its other end comes back, as a virtio port does: the master of a terminal."""
    master, slave = os.openpty()
    tty.setraw(slave)
    name = os.ttyname(slave)
    os.close(slave)
    os.set_blocking(master, False)
    port = Port(master)
    try:
        yield port, name
    finally:
        port.close()


@pytest.mark.parametrize("size", [1, 4_095, 4_096, 4_097, 8_192, 65_535, 65_536])
def test_a_read_gives_all_that_is_there(ends: tuple[Port, socket.socket], size: int) -> None:
    port, theirs = ends
    data = os.urandom(size)
    theirs.send(data)
    assert port.read() == data
    with pytest.raises(BlockingIOError):
        port.read()


def test_a_read_is_bounded(ends: tuple[Port, socket.socket]) -> None:
    port, theirs = ends
    data = os.urandom(100_000)
    theirs.send(data)
    assert port.read() + port.read() == data


def test_a_host_that_is_away_gives_nothing_and_takes_nothing(ends: tuple[Port, socket.socket]) -> None:
    port, theirs = ends
    theirs.close()
    assert port.read() == b""
    with pytest.raises(BlockingIOError):
        port.write(memoryview(b"x"))


def test_what_was_sent_before_the_host_left_is_read_first(ends: tuple[Port, socket.socket]) -> None:
    port, theirs = ends
    theirs.send(b"x" * 4_096)
    theirs.close()
    assert port.read() == b"x" * 4_096
    assert port.read() == b""


def test_a_full_port_takes_no_more(ends: tuple[Port, socket.socket]) -> None:
    port, theirs = ends
    taken = fill(port)
    assert taken
    while taken:
        taken -= len(theirs.recv(65_536))
    assert port.write(memoryview(b"x")) == 1


def fill(port: Port) -> int:
    """Write until the port takes no more; returns how much it took."""
    taken = 0
    try:
        while True:
            taken += port.write(memoryview(bytes(65_536)))
    except BlockingIOError:
        return taken


async def test_the_hosts_return_is_waited_for_without_spinning(autojump_clock: trio.testing.MockClock) -> None:
    async with terminal_port() as (port, name):
        assert port.read() == b""
        turns = 0

        class Turns(trio.abc.Instrument):
            def before_io_wait(self, timeout: float) -> None:
                nonlocal turns
                turns += 1

        instrument = Turns()
        trio.lowlevel.add_instrument(instrument)
        with trio.move_on_after(20 * AWAY_TICK):
            await port.host_is_there()
        trio.lowlevel.remove_instrument(instrument)
        assert 20 <= turns < 100
        host = os.open(name, os.O_RDWR | os.O_NOCTTY)
        try:
            with trio.fail_after(3 * AWAY_TICK):
                await port.host_is_there()
            os.write(host, b"back")
            await trio.lowlevel.wait_readable(port.fileno())
            assert port.read() == b"back"
        finally:
            os.close(host)


async def test_a_host_that_is_there_is_not_waited_for(ends: tuple[Port, socket.socket]) -> None:
    with trio.fail_after(BOUND):
        await ends[0].host_is_there()


def test_a_port_is_found_by_its_name(tmp_path: Path) -> None:
    for device, name in (("vport1p1", "org.qemu.guest_agent.0"), ("vport1p2", "hostagent.0")):
        (tmp_path / device).mkdir()
        (tmp_path / device / "name").write_text(f"{name}\n")
    (tmp_path / "vport0p1").mkdir()  # it has no name yet
    assert find_port("hostagent.0", tmp_path, Path("/dev")) == Path("/dev/vport1p2")
    assert find_port("other", tmp_path) is None
    assert find_port("hostagent.0", tmp_path / "none") is None
    assert find_port("/dev/ttyS1", tmp_path) == Path("/dev/ttyS1")


def test_a_port_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert open_port(str(tmp_path / "none")) is None
    with socket.socket(socket.AF_UNIX) as nobody_listens:
        nobody_listens.bind(str(tmp_path / "socket"))
    assert open_port(str(tmp_path / "socket")) is None


def test_what_cannot_be_a_port_is_told(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        open_port(str(tmp_path))


@pytest.mark.parametrize("hears_of_devices", [True, False])
async def test_a_port_that_appears_later_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hears_of_devices: bool
) -> None:
    if not hears_of_devices:
        monkeypatch.setattr(channel, "_listen_for_devices", lambda: None)
    path = tmp_path / "port"
    opened: list[Port] = []

    async def wait() -> None:
        opened.append(await wait_for_port(str(path)))

    with socket.socket(socket.AF_UNIX) as listener, trio.fail_after(BOUND):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert not opened
            listener.bind(str(path))
            listener.listen(1)
    opened[0].close()


async def works(host: HostEnd) -> None:
    host.messages.clear()
    host.say(StatusRequest())
    await host.message(Status)


async def test_each_return_of_the_host_is_a_new_generation(tmp_path: Path) -> None:
    async with guest_and_host(tmp_path) as (_agent, host):
        for generation in range(2, 5):
            host.cut()
            await host.generation(generation)
            await works(host)


async def test_the_host_hears_at_once_that_the_agent_ends(tmp_path: Path) -> None:
    """Otherwise it would believe in the generation until it has been silent for long."""
    async with guest_and_host(tmp_path) as (_agent, host):
        await works(host)
        host.agent_scope.cancel()
        assert await host.until(lambda: host.last_end or None) == "the peer gave up this generation"
