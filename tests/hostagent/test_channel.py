"""The channel against a guest whose line is cut, garbled, stale or in the middle of a frame."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from hostagent import channel as channel_module
from hostagent import guest_conduct
from hostagent.channel import StreamHandler
from hostagent.guest_conduct import FAULTS
from protocol.messages import PowerOff
from protocol.stream_messages import CommandTarget, SocketTarget, StreamKind
from tests.fakes.connected_channel import (
    BOUND,
    connected_channel,
    eventually,
    nothing_left_open,
    running_channel,
)
from tests.fakes.guest import HALF_A_FRAME, FakeGuest, fake_guest

TARGET = SocketTarget("127.0.0.1", 9)


class RecordingHandler(StreamHandler):
    """Remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.over = trio.Event()

    def opened(self) -> None:
        self.heard.append("opened")

    def refused(self, error: str, reason: str) -> None:
        self.heard.append(f"refused: {error}")
        self.over.set()

    def receive_reset(self, reason: str) -> None:
        self.heard.append(f"reset: {reason}")
        self.over.set()


def cut(guest: FakeGuest) -> None:
    guest.cut()


def garble(guest: FakeGuest) -> None:
    guest.say(os.urandom(40_000))


def lose_bytes(guest: FakeGuest) -> None:
    guest.loses = 7
    assert guest.life is not None
    guest.life.connection.send_reset(guest.life.connection.stream(1), "half lost")  # type: ignore[arg-type]
    guest.life.link.flush()


def restart_in_mid_frame(guest: FakeGuest) -> None:
    guest.say(HALF_A_FRAME)
    guest.restart()


@pytest.mark.parametrize("fault", [cut, garble, lose_bytes, restart_in_mid_frame])
async def test_every_fault_of_the_line_ends_in_a_new_generation(
    tmp_path: Path, fault: Callable[[FakeGuest], None]
) -> None:
    async with connected_channel(tmp_path) as (channel, observer, guest):
        guest.answers = False
        handler = RecordingHandler()
        assert channel.open(StreamKind.TCP, TARGET, handler)
        channel.flush()
        await guest.opens(1)
        fault(guest)
        reason, _ = await observer.end(1)
        assert handler.heard == [f"reset: {reason}"]
        await observer.generation(2)
        assert channel.running
        await guest.generation(2)
        again = RecordingHandler()
        guest.answers = True
        channel.open(StreamKind.TCP, TARGET, again)
        channel.flush()
        with trio.fail_after(BOUND):
            await again.over.wait()
        assert again.heard == ["refused: ECONNREFUSED"]


async def test_what_is_left_of_an_older_connection_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "channel.sock"
    async with fake_guest(path) as guest:
        guest.stale = os.urandom(100_000)
        async with running_channel(path) as (_, observer):
            await observer.generation(1)
            assert observer.ends == []


async def test_it_waits_for_a_qemu_that_is_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "channel.sock"
    async with running_channel(path) as (channel, observer):
        await trio.testing.wait_all_tasks_blocked()
        assert not channel.running
        assert channel.open(StreamKind.TCP, TARGET, RecordingHandler()) is None
        assert not channel.send(PowerOff(reboot=False))
        async with fake_guest(path):
            await observer.generation(1)


async def test_a_qemu_that_is_replaced_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "channel.sock"
    async with running_channel(path) as (_, observer):
        async with fake_guest(path):
            await observer.generation(1)
        assert await observer.end(1) == ("the channel's socket was closed", False)
        async with fake_guest(path, boot_id="second boot"):
            await observer.generation(2)
    assert [peer.boot_id for peer in observer.peers] == ["first boot", "second boot"]


async def test_a_guest_of_another_age_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "channel.sock"
    async with fake_guest(path, versions=(7, 9)), running_channel(path) as (channel, observer):
        await observer.until(lambda seen: bool(seen.incompatible_peers))
        assert observer.incompatible_peers[0].lowest_version == 7
        assert not channel.running


async def test_a_guest_that_keeps_breaking_the_rules_is_left_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "PAUSE", 0.3)
    async with connected_channel(tmp_path) as (_, observer, guest):
        for number in range(1, FAULTS + 1):
            await guest.generation(number)
            await observer.generation(number)
            garble(guest)
            assert (await observer.end(number))[1], "a fault"
        began = trio.current_time()
        await observer.until(lambda seen: bool(seen.distrust))
        await observer.generation(FAULTS + 1)
        assert trio.current_time() - began >= 0.25
        assert guest.connections == 2
        assert "breaks the rules of the channel" in observer.distrust[0]
        garble(guest)
        await observer.until(lambda seen: len(seen.distrust) == 2)


async def test_a_guest_that_begins_anew_without_end_is_left_alone_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "PAUSE", 0.3)
    monkeypatch.setattr(guest_conduct, "RESTARTS", 3)
    async with connected_channel(tmp_path) as (_, observer, guest):
        for number in range(1, 4):
            await observer.generation(number)
            guest.restart()
        await observer.until(lambda seen: bool(seen.distrust))
        assert "begins anew without end" in observer.distrust[0]


async def test_a_cut_line_is_not_the_guests_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_conduct, "RESTARTS", 3)
    async with connected_channel(tmp_path) as (_, observer, guest):
        for number in range(1, 6):
            await guest.generation(number)
            await observer.generation(number)
            guest.cut()
        await observer.generation(6)
        assert observer.distrust == []


async def test_the_user_of_an_old_stream_cannot_silence_a_new_one(tmp_path: Path) -> None:
    async with connected_channel(tmp_path) as (channel, observer, guest):
        guest.answers = False
        old = RecordingHandler()
        old_stream = channel.open(StreamKind.TCP, TARGET, old)
        assert old_stream is not None
        channel.flush()
        await guest.opens(1)
        guest.cut()
        await observer.generation(2)
        await guest.generation(2)
        new = RecordingHandler()
        new_stream = channel.open(StreamKind.TCP, TARGET, new)
        assert new_stream is not None
        assert new_stream.number == old_stream.number
        channel.flush()
        channel.forget(old_stream, old)  # its task comes to its end only now
        await guest.opens(2)
        guest.answer()
        with trio.fail_after(BOUND):
            await new.over.wait()
        assert new.heard == ["refused: ECONNREFUSED"]


async def test_a_forgotten_stream_is_silent(tmp_path: Path) -> None:
    async with connected_channel(tmp_path) as (channel, _, guest):
        handler = RecordingHandler()
        stream = channel.open(StreamKind.TCP, TARGET, handler)
        assert stream is not None
        channel.forget(stream, handler)
        channel.connection.send_reset(stream, "not wanted")
        channel.flush()
        await guest.opens(1)
        await guest.streams_over()
        assert handler.heard == []


async def test_the_guest_gets_nothing_that_it_asks_for(tmp_path: Path) -> None:
    async with connected_channel(tmp_path) as (_, observer, guest):
        assert guest.life is not None
        connection = guest.life.connection
        connection.open_stream(StreamKind.TCP, SocketTarget("127.0.0.1", 22))
        connection.open_stream(StreamKind.EXEC, CommandTarget(("id",), (), "", "", None))
        guest.life.link.flush()
        await guest.streams_over()
        assert observer.ends == []


def test_nothing_is_left_when_it_is_cancelled(tmp_path: Path) -> None:
    async def use() -> None:
        async with connected_channel(tmp_path) as (channel, _, guest):
            guest.answers = False
            channel.open(StreamKind.TCP, TARGET, RecordingHandler())
            channel.flush()
            await guest.opens(1)

    trio.run(use)
    with nothing_left_open():
        trio.run(use)


async def test_what_is_said_after_its_end_harms_nobody(tmp_path: Path) -> None:
    """Other tasks end after the channel's, and reset their streams."""
    path = tmp_path / "channel.sock"
    async with fake_guest(path) as guest:
        async with running_channel(path) as (channel, observer):
            await observer.generation(1)
            stream = channel.open(StreamKind.TCP, TARGET, RecordingHandler())
            assert stream is not None
            channel.flush()
            await guest.opens(1)
        channel.connection.send_reset(stream, "the forwarder stopped")
        channel.flush()
        await eventually(lambda: guest.life is None)


async def test_an_urgent_message_waits_for_one_buffer_of_bulk_and_no_more(tmp_path: Path) -> None:
    async with connected_channel(tmp_path) as (channel, _, guest):
        guest.stop_reading()
        queued = 0
        for _ in range(8):
            stream = channel.open(StreamKind.UDP, TARGET, RecordingHandler())
            assert stream is not None
            while channel.connection.send_data(stream, bytes(60_000)):
                queued += 60_000
        channel.flush()
        assert channel.send(PowerOff(reboot=True))
        guest.read_again()
        with trio.fail_after(BOUND):
            while not guest.received:
                await guest.changed()
        assert guest.received == [PowerOff(reboot=True)]
        # What the socket holds (the kernel doubles SO_SNDBUF, socket(7)), what is being written, a frame beyond.
        assert guest.payload_received <= 3 * channel_module.SEND_BUFFER + 2 * 60_000 < queued / 10
