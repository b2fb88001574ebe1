"""What happened in one instance, for those who ask later and those who watch.

Promises: ids grow by one with every event, also across restarts of the host agent, so a watcher that was cut off asks
for what came after the last id it saw. The last `CAPACITY` events are kept in memory; a subscriber is little more than
a position in them, so a slow one costs nothing and is told how many events it missed instead of being waited for. All
events are also lines of JSON in agent.log, of which at most `FILE_LIMIT` twice over is kept. A disk that is full costs
lines of that file (visible as a gap in the ids) and nothing else.

Ordinary `logging` records of the process become events of kind `log`. Records of worker threads are handed over to
trio's thread, because everything else here belongs to it.

Rejected: a queue for each subscriber (the memory of the slowest one is everybody's), and logging straight to the file
with the event log beside it (two orders of the same events).
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

import trio

CAPACITY: Final = 1_000
"""Events kept in memory: an hour of an ordinary instance, below 1 MiB."""

FILE_LIMIT: Final = 4 * 1024 * 1024
"""Bytes of agent.log before it becomes agent.log.1."""

MAX_TEXT: Final = 8_192
"""Characters kept of one log message or traceback, so that the ring is bounded in bytes too."""

_RESERVED: Final = frozenset({"id", "time", "kind"})
_BATCH: Final = 64
_TAIL: Final = 65_536
"""Bytes at the end of agent.log that surely hold a whole line: two texts of `MAX_TEXT`, escaped."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened."""

    id: int
    time: float
    """Unix time."""
    kind: str
    """"phase", "state", "forward", "guest", "rules", "log", or "lost" (some events before this one are gone)."""
    fields: Mapping[str, object]

    def document(self) -> dict[str, object]:
        """The event as one flat JSON object."""
        return {"id": self.id, "time": self.time, "kind": self.kind, **self.fields}

    def line(self) -> str:
        """The event as one line of JSON, in ASCII: nothing in it can steer a terminal."""
        return json.dumps(self.document(), default=str, separators=(",", ":"))


class EventLog:
    """The events of one instance. Belongs to the thread that runs trio."""

    def __init__(self, *, first_id: int = 1, capacity: int = CAPACITY, clock: Callable[[], float] = time.time) -> None:
        self._kept: deque[Event] = deque(maxlen=capacity)
        self._next_id = first_id
        self._clock = clock
        self._changed = trio.Event()
        self._closed = False
        self._file: AgentLogFile | None = None

    @property
    def last_id(self) -> int:
        """Id of the newest event; one less than the first id while there is none."""
        return self._next_id - 1

    @property
    def before_kept(self) -> int:
        """Where to begin to get everything that is kept: the id before the oldest kept event's."""
        return self.last_id - len(self._kept)

    @property
    def closed(self) -> bool:
        """Whether no event will follow."""
        return self._closed

    def append(self, kind: str, /, **fields: object) -> Event:
        """Record that something happened, and wake who watches. The fields must be JSON values, or have a `str`."""
        if clash := _RESERVED & fields.keys():
            raise ValueError(f"an event's own fields cannot be called {', '.join(sorted(clash))}")
        event = Event(self._next_id, self._clock(), kind, fields)
        self._next_id += 1
        self._kept.append(event)
        if self._file is not None:
            self._file.write(event)
        self._wake()
        return event

    def recorded(self, after: int) -> list[Event]:
        """The kept events with ids above `after`, the oldest first, led by a "lost" event when some are gone."""
        before = self.before_kept
        if after > self.last_id:  # an id of another life of this instance, whose log could not be read
            return [self._lost(before, None), *self._kept]
        if after < before:
            return [self._lost(before, before - after), *self._kept]
        return list(islice(self._kept, after - before, None))

    def subscribe(self, after: int | None = None) -> Subscription:
        """Iterate over events as they happen: those after the id `after` first, or only new ones when it is None.

        Ends when the log is closed.
        """
        return Subscription(self, self.last_id if after is None else after)

    def close(self) -> None:
        """End every subscription once it has seen what there is."""
        self._closed = True
        self._wake()

    @contextlib.contextmanager
    def written_to(self, path: Path, limit: int = FILE_LIMIT) -> Iterator[None]:
        """Write events to `path` as well, and make `logging`'s records events, for as long as the context lasts.

        Must be entered in trio's thread. Raises OSError when the file cannot be opened.
        """
        self._file = AgentLogFile(path, limit)
        handler = _LogHandler(self, trio.lowlevel.current_trio_token())
        root = logging.getLogger()
        level = root.level
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        try:
            yield
        finally:
            root.removeHandler(handler)
            root.setLevel(level)
            self._file.close()
            self._file = None

    async def changed(self) -> None:
        """Wait until an event is appended or the log is closed."""
        await self._changed.wait()

    def _lost(self, up_to: int, missed: int | None) -> Event:
        return Event(up_to, self._clock(), "lost", {"missed": missed})

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class Subscription:
    """Events from a position on, in order. Holds that position and at most `_BATCH` events."""

    def __init__(self, log: EventLog, after: int) -> None:
        self._log = log
        self._after = after
        self._batch: deque[Event] = deque()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        await trio.lowlevel.checkpoint()
        while not self._batch:
            self._batch.extend(self._log.recorded(self._after)[:_BATCH])
            if self._batch:
                self._after = self._batch[-1].id
            elif self._log.closed:
                raise StopAsyncIteration
            else:
                await self._log.changed()
        return self._batch.popleft()


class AgentLogFile(RotatingFileHandler):
    """agent.log, and agent.log.1 before it. Bounded, and indifferent to a full disk."""

    def __init__(self, path: Path, limit: int = FILE_LIMIT) -> None:
        super().__init__(path, maxBytes=limit, backupCount=1, encoding="utf-8")
        self.lost = 0
        """Lines that could not be written."""

    def write(self, event: Event) -> None:
        """Append the event's line; a failure of the disk is counted."""
        self.handle(logging.makeLogRecord({"msg": event.line()}))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        """Count what the disk refused, and begin with a freshly opened file; anything else is a bug and raised."""
        if not isinstance(sys.exc_info()[1], OSError):
            raise  # logging calls this while it handles the exception
        self.lost += 1
        self._drop_stream()

    def close(self) -> None:
        """Close the file, whether or not the last lines could be written."""
        self._drop_stream()
        super().close()

    def _drop_stream(self) -> None:
        stream, self.stream = self.stream, None  # logging opens a missing stream anew
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


class _LogHandler(logging.Handler):
    """Turns log records into events, from whatever thread they come."""

    def __init__(self, log: EventLog, token: trio.lowlevel.TrioToken) -> None:
        super().__init__()
        self._log = log
        self._token = token
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields = {
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": record.getMessage()[:MAX_TEXT],
            }
            if record.exc_info:
                fields["traceback"] = logging.Formatter().formatException(record.exc_info)[-MAX_TEXT:]
        except Exception:
            self.handleError(record)
            return
        if threading.get_ident() == self._thread:
            self._log.append("log", **fields)
            return
        with contextlib.suppress(trio.RunFinishedError):  # nobody is left to tell
            self._token.run_sync_soon(partial(self._log.append, "log", **fields))


def last_event_id(path: Path) -> int:
    """Id of the last event in the log file `path`, so that a new `EventLog` goes on from there; 0 without one."""
    for file in (path, path.with_name(path.name + ".1")):
        try:
            with file.open("rb") as stream:
                stream.seek(max(0, stream.seek(0, 2) - _TAIL))
                lines = stream.read().splitlines()
        except OSError:
            continue
        for line in reversed(lines):
            if found := _event_id(line):
                return found
    return 0


def _event_id(line: bytes) -> int:
    """The id in a line of the log; 0 when the line is torn, which a crash or a full disk can do."""
    try:
        document = json.loads(line)
    except ValueError:
        return 0
    found = document.get("id") if isinstance(document, dict) else None
    return found if type(found) is int else 0
