from __future__ import annotations

import os

import pytest

from guestagent.stream_table import StreamTable
from protocol.connection import Connection, Role
from protocol.limits import PROTOCOL_VERSIONS
from protocol.messages import Hello
from protocol.stream_messages import Data, EndOfData, Reset, SocketTarget, StreamKind
from protocol.streams import Stream


class Handler:
    """Remembers what it was told; told to, it has a bug."""

    def __init__(self, number: int, *, bug: bool = False) -> None:
        self.stream = Stream(number, StreamKind.TCP, SocketTarget("::1", 1), ours=False, window=0, credit=0)
        self.heard: list[object] = []
        self._bug = bug

    def _hear(self, said: object) -> None:
        self.heard.append(said)
        if self._bug:
            raise ZeroDivisionError

    def receive_data(self, payload: bytes) -> None:
        self._hear(payload)

    def receive_end(self) -> None:
        self._hear("end")

    def receive_reset(self) -> None:
        self._hear("reset")

    def unpaused(self) -> None:
        self._hear("unpaused")


@pytest.fixture
def table() -> StreamTable:
    hello = Hello(*PROTOCOL_VERSIONS, frozenset(), "", "", "")
    return StreamTable(Connection(Role.GUEST, hello, random=os.urandom))


def test_each_stream_has_its_handler(table: StreamTable) -> None:
    one, three = Handler(1), Handler(3)
    table.add(one)
    table.add(three)
    table.data(Data(1, b"x"))
    table.end(EndOfData(3))
    table.unpaused(1)
    table.reset(Reset(3, ""))
    assert (one.heard, three.heard) == ([b"x", "unpaused"], ["end", "reset"])
    assert (len(table), table.get(1), table.get(3)) == (1, one, None)


def test_what_is_about_no_stream_is_dropped(table: StreamTable) -> None:
    table.data(Data(1, b"x"))
    table.end(EndOfData(1))
    table.reset(Reset(1, ""))
    table.unpaused(1)
    assert len(table) == 0


def test_a_handler_removes_itself_and_not_its_successor(table: StreamTable) -> None:
    first, second = Handler(1), Handler(1)
    table.add(first)
    table.add(second)
    table.remove(first)
    assert table.get(1) is second
    table.remove(second)
    assert len(table) == 0


def test_the_end_of_the_generation_resets_all(table: StreamTable) -> None:
    handlers = [Handler(1), Handler(3, bug=True), Handler(5)]
    for handler in handlers:
        table.add(handler)
    table.end_generation()
    assert [handler.heard for handler in handlers] == [["reset"]] * 3
    assert len(table) == 0


@pytest.mark.parametrize(
    "say",
    [lambda t: t.data(Data(1, b"x")), lambda t: t.end(EndOfData(1)), lambda t: t.unpaused(1)],
    ids=["data", "end", "unpaused"],
)
def test_a_bug_ends_its_stream_and_is_shown(table: StreamTable, caplog: pytest.LogCaptureFixture, say) -> None:  # type: ignore[no-untyped-def]
    bad, good = Handler(1, bug=True), Handler(3)
    table.add(bad)
    table.add(good)
    say(table)
    assert bad.heard[-1] == "reset"
    assert table.get(1) is None
    assert table.get(3) is good
    assert "ZeroDivisionError" in caplog.text
