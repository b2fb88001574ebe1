from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from hostagent.errors import UserError
from hostagent.standard_streams import is_foreground, raw_terminal, read_some, terminal_size, write_all
from hostagent.terminal_output import OutputClosedError
from protocol.stream_messages import TerminalSize


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ends = pty.openpty()
    yield ends
    for end in ends:
        os.close(end)


async def test_reading_waits_without_blocking_the_loop(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    got: list[bytes] = []

    async def read() -> None:
        got.append(await read_some(reading, 100))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        assert got == []
        os.write(writing, b"hello")
    assert got == [b"hello"]
    assert os.get_blocking(reading)


async def test_writing_waits_for_a_slow_reader_without_blocking_the_loop(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    data = os.urandom(300_000)
    got = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_all, writing, data)
        await trio.testing.wait_all_tasks_blocked()
        while len(got) < len(data):
            got += await read_some(reading, 65_536)
    assert bytes(got) == data
    assert os.get_blocking(writing)


async def test_regular_files_can_be_read_and_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        await write_all(descriptor, b"x" * 100_000)
        os.lseek(descriptor, 0, os.SEEK_SET)
        assert await read_some(descriptor, 100_000) == b"x" * 100_000
        assert await read_some(descriptor, 1) == b""
    finally:
        os.close(descriptor)


async def test_a_closed_input_is_empty(pipe: tuple[int, int]) -> None:
    closed = os.dup(pipe[0])
    os.close(closed)
    assert await read_some(closed, 1) == b""


async def test_a_reader_that_left(pipe: tuple[int, int]) -> None:
    writing = os.dup(pipe[1])
    reading = os.open(os.devnull, os.O_RDONLY)
    os.dup2(reading, pipe[0])
    os.close(reading)
    try:
        with pytest.raises(OutputClosedError):
            await write_all(writing, b"x")
    finally:
        os.close(writing)


async def test_a_full_disk_is_an_error() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(UserError, match="No space left"):
            await write_all(descriptor, b"x")
    finally:
        os.close(descriptor)


def test_raw_mode_ends_with_the_context(terminal: tuple[int, int]) -> None:
    _, far = terminal
    before = termios.tcgetattr(far)
    with raw_terminal(far) as make_raw:
        raw = termios.tcgetattr(far)
        assert not raw[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
        termios.tcsetattr(far, termios.TCSANOW, before)
        make_raw()
        assert termios.tcgetattr(far) == raw
    assert termios.tcgetattr(far) == before


def test_size_of_a_terminal(terminal: tuple[int, int], pipe: tuple[int, int]) -> None:
    near, far = terminal
    assert terminal_size(far) == TerminalSize(24, 80), "a new one does not know its size"
    fcntl.ioctl(near, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 132, 0, 0))
    assert terminal_size(far) == TerminalSize(50, 132)
    assert terminal_size(pipe[0]) == TerminalSize(24, 80)


def test_what_is_no_terminal_is_in_nobodys_foreground(terminal: tuple[int, int], pipe: tuple[int, int]) -> None:
    assert not is_foreground(pipe[0])
    assert is_foreground(terminal[1]), "a terminal that does not control us never stops us"
