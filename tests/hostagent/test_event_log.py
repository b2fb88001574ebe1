from __future__ import annotations

import errno
import json
import logging
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from hostagent.event_log import MAX_TEXT, AgentLogFile, Event, EventLog, last_event_id


def filled(count: int, capacity: int = 5) -> EventLog:
    log = EventLog(capacity=capacity, clock=lambda: 1.5)
    for number in range(1, count + 1):
        log.append("guest", number=number)
    return log


def test_an_event_is_one_flat_document() -> None:
    event = filled(1).recorded(0)[0]
    assert event.document() == {"id": 1, "time": 1.5, "kind": "guest", "number": 1}


def test_a_line_cannot_steer_a_terminal() -> None:
    line = EventLog().append("guest", text="\x1b[2J\u202e\n").line()
    assert line.isascii()
    assert line.isprintable()


def test_fields_cannot_replace_the_events_own() -> None:
    with pytest.raises(ValueError, match="id, time"):
        EventLog().append("guest", id=7, time=0)


@given(st.integers(0, 30), st.integers(0, 40), st.integers(1, 8))
def test_nothing_is_missing_that_is_not_counted_as_lost(count: int, after: int, capacity: int) -> None:
    log = filled(count, capacity)
    events = log.recorded(after)
    lost = [event for event in events if event.kind == "lost"]
    kept = [event.id for event in events if event.kind != "lost"]
    assert kept == [number for number in range(log.before_kept + 1, count + 1) if number > after or after > count]
    if after > count:
        assert [event.fields for event in lost] == [{"missed": None}]
    elif after < log.before_kept:
        assert [event.fields for event in lost] == [{"missed": log.before_kept - after}]
        assert events[0].kind == "lost"
    else:
        assert not lost


async def test_a_subscriber_resumes_after_an_id_and_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    log, seen = filled(3), []

    async def watch() -> None:
        async for event in log.subscribe(1):
            seen.append(event.id)  # noqa: PERF401  (looked at while it grows)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await trio.testing.wait_all_tasks_blocked()
        assert seen == [2, 3]
        log.append("guest")
        await trio.testing.wait_all_tasks_blocked()
        log.close()
    assert seen == [2, 3, 4]


async def test_a_new_subscriber_sees_only_what_is_new() -> None:
    log = filled(3)
    subscription = log.subscribe()
    log.append("state")
    assert (await anext(subscription)).kind == "state"


async def test_a_slow_subscriber_is_told_what_it_missed_and_holds_little() -> None:
    log = filled(1, capacity=100)
    subscription = log.subscribe(0)
    assert (await anext(subscription)).id == 1
    for number in range(1_000):
        log.append("guest", number=number)
    lost = await anext(subscription)
    assert (lost.kind, lost.fields) == ("lost", {"missed": 900})
    assert (await anext(subscription)).id == 902


async def test_a_closed_log_ends_subscriptions_after_the_last_event() -> None:
    log = filled(2)
    log.close()
    assert [event.id async for event in log.subscribe(0)] == [1, 2]


async def test_events_and_log_records_are_lines_of_the_file(tmp_path: Path) -> None:
    log, path = EventLog(), tmp_path / "agent.log"
    with log.written_to(path):
        log.append("phase", phase="hello", seconds=1.25)
        logging.getLogger("somewhere").warning("%s is slow", "the disk")
        await trio.to_thread.run_sync(logging.getLogger("elsewhere").error, "from a thread")
        await trio.testing.wait_all_tasks_blocked()
    logging.getLogger("somewhere").warning("after the end")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["id"], line["kind"]) for line in lines] == [(1, "phase"), (2, "log"), (3, "log")]
    assert lines[1]["message"] == "the disk is slow"
    assert lines[1]["logger"] == "somewhere"
    assert lines[2]["message"] == "from a thread"


async def test_a_traceback_is_kept_and_bounded(tmp_path: Path) -> None:
    log = EventLog()
    with log.written_to(tmp_path / "agent.log"):
        try:
            dict[str, int]()["x" * 3 * MAX_TEXT]
        except KeyError:
            logging.getLogger("somewhere").exception("y" * 3 * MAX_TEXT)
    fields = log.recorded(0)[0].fields
    assert len(str(fields["message"])) == len(str(fields["traceback"])) == MAX_TEXT


def test_the_file_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "agent.log"
    file = AgentLogFile(path, limit=10_000)
    for number in range(1, 501):
        file.write(Event(number, 0.0, "guest", {"text": "x" * 100}))
    file.close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["agent.log", "agent.log.1"]
    assert all(entry.stat().st_size <= 10_000 for entry in tmp_path.iterdir())
    assert last_event_id(path) == 500


def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    file = AgentLogFile(Path("/dev/full"))
    for number in range(1, 1_001):
        file.write(Event(number, 0.0, "guest", {"text": "x" * 100}))
    file.close()
    assert file.lost == 1_000


def test_writing_goes_on_when_there_is_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "agent.log"
    file = AgentLogFile(path)
    file.write(Event(1, 0.0, "guest", {}))
    with monkeypatch.context() as patch:

        def refuse(record: object) -> bool:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(file, "shouldRollover", refuse)
        file.write(Event(2, 0.0, "guest", {}))
    file.write(Event(3, 0.0, "guest", {}))
    file.close()
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == [1, 3]


def test_ids_go_on_after_a_restart_also_behind_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "agent.log"
    assert last_event_id(path) == 0
    path.write_bytes(b'{"id":41,"time":1,"kind":"guest"}\n{"id":42,"time":1,"kind":"gu')
    assert last_event_id(path) == 41
    path.rename(tmp_path / "agent.log.1")
    path.write_bytes(b"\0\xff[1]\nnull\n")
    assert last_event_id(path) == 41
