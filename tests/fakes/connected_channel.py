"""The host's channel, connected to a fake guest, and an observer that remembers what it was told."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import trio

from hostagent.channel import Channel
from protocol.limits import PROTOCOL_VERSIONS
from protocol.messages import Hello, Message
from tests.fakes.guest import FakeGuest, fake_guest

HELLO = Hello(*PROTOCOL_VERSIONS, frozenset({"tcp", "udp", "exec"}), "1.0", "", "")
BOUND = 30.0
"""Seconds that a test waits for what must happen. Nothing here takes a tenth of it on a busy machine."""


class RecordingObserver:
    """A `ChannelObserver`. Assign `on_started` and `on_ended` to act like a host agent."""

    def __init__(self) -> None:
        self.peers: list[Hello] = []
        self.ends: list[tuple[str, bool]] = []
        """Reason and fault of each generation's end."""
        self.incompatible_peers: list[Hello] = []
        self.distrust: list[str] = []
        self.messages: list[Message] = []
        self.on_started: Callable[[], None] = lambda: None
        self.on_ended: Callable[[], None] = lambda: None
        self.on_message: Callable[[Message], None] = lambda _message: None
        self._change = trio.Event()

    def generation_started(self, peer: Hello) -> None:
        self.peers.append(peer)
        self.on_started()
        self._changed()

    def generation_ended(self, reason: str, *, fault: bool) -> None:
        self.ends.append((reason, fault))
        self.on_ended()
        self._changed()

    def distrusted(self, reason: str) -> None:
        self.distrust.append(reason)
        self._changed()

    def incompatible(self, peer: Hello) -> None:
        self.incompatible_peers.append(peer)
        self._changed()

    def message(self, message: Message) -> None:
        self.messages.append(message)
        self.on_message(message)
        self._changed()

    def _changed(self) -> None:
        self._change.set()
        self._change = trio.Event()

    async def until(self, condition: Callable[[RecordingObserver], bool]) -> None:
        """Return once the channel has told so much that `condition` holds."""
        with trio.fail_after(BOUND):
            while not condition(self):
                await self._change.wait()

    async def generation(self, number: int) -> None:
        """Return when so many generations have begun."""
        await self.until(lambda seen: len(seen.peers) >= number)

    async def end(self, number: int) -> tuple[str, bool]:
        """Why the generation with this number (from 1) ended, when it has."""
        await self.until(lambda seen: len(seen.ends) >= number)
        return self.ends[number - 1]


@contextlib.asynccontextmanager
async def running_channel(path: Path) -> AsyncIterator[tuple[Channel, RecordingObserver]]:
    """A channel that connects to `path` until the end of the block."""
    observer = RecordingObserver()
    channel = Channel(path, HELLO, observer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.run)
        try:
            yield channel, observer
        finally:
            nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def connected_channel(folder: Path) -> AsyncIterator[tuple[Channel, RecordingObserver, FakeGuest]]:
    """A channel in its first generation with a fake guest."""
    path = folder / "channel.sock"
    async with fake_guest(path) as guest, running_channel(path) as (channel, observer):
        await observer.generation(1)
        await guest.generation(1)
        yield channel, observer, guest


def open_descriptors() -> dict[int, str]:
    """The descriptors of this process and what they are."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that listed the folder
            found[int(entry.name)] = str(entry.readlink())
    return found


def opened_since(before: Mapping[int, str]) -> dict[int, str]:
    """Descriptors that are new. What earlier tests left to the garbage collector may go at any time."""
    return {number: what for number, what in open_descriptors().items() if before.get(number) != what}


@contextlib.contextmanager
def nothing_left_open() -> Iterator[None]:
    """Fail when the block leaves descriptors open."""
    before = open_descriptors()
    yield
    assert not opened_since(before)


async def eventually(condition: Callable[[], bool]) -> None:
    """Return once `condition` holds, which nothing tells: the kernel closes and counts in its own time."""
    with trio.fail_after(BOUND):
        while not condition():  # noqa: ASYNC110 - there is no event for it
            await trio.sleep(0.002)
