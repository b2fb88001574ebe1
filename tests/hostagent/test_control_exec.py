from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from hostagent import exec_frames
from hostagent.exec_frames import (
    INPUT_WINDOW,
    Credit,
    EndOfInput,
    Exited,
    Failed,
    Input,
    Output,
    Resize,
    SendSignal,
    ServerFrame,
    Start,
    Started,
)
from hostagent.websocket_client import WebSocketClient, open_websocket
from protocol.stream_messages import CommandTarget, TerminalSize
from tests.fakes.running_instance import FakeInstance
from tests.fakes.served_instance import served


class Session:
    """A client that sees every frame."""

    def __init__(self, websocket: WebSocketClient) -> None:
        self.websocket = websocket
        self._messages = websocket.messages()

    async def start(self, *arguments: str, terminal: TerminalSize | None = None) -> None:
        await self.send(Start(CommandTarget(arguments, (), "", "", terminal)))
        assert await self.next() == Started(INPUT_WINDOW)

    async def send(self, frame: exec_frames.ClientFrame) -> None:
        await self.websocket.send(exec_frames.encode(frame))

    async def next(self) -> ServerFrame:
        with trio.fail_after(10):
            return exec_frames.server_frame_untrusted(await anext(self._messages))

    async def rest(self) -> list[ServerFrame]:
        with trio.fail_after(10):
            return [exec_frames.server_frame_untrusted(message) async for message in self._messages]


@pytest.fixture
def instance() -> FakeInstance:
    return FakeInstance()


@pytest.fixture
async def session(instance: FakeInstance, tmp_path: Path) -> AsyncIterator[Session]:
    path = tmp_path / "api.sock"
    async with served(instance, path), open_websocket(path, "/v1/exec") as websocket:
        yield Session(websocket)


async def test_the_exit_is_the_last_frame(session: Session) -> None:
    await session.start("sh", "-c", "echo hello; exit 4")
    assert await session.rest() == [Output(b"hello\n"), Exited(4)]


async def test_input_is_paid_for_when_it_was_taken(session: Session) -> None:
    await session.start("cat")
    await session.send(Input(b"12345"))
    await session.send(EndOfInput())
    frames = await session.rest()
    assert Credit(5) in frames
    assert [frame for frame in frames if frame != Credit(5)] == [Output(b"12345"), Exited(0)]


async def test_more_input_than_credit_ends_the_session(session: Session, instance: FakeInstance) -> None:
    await session.start("sleep", "100")
    for _ in range(2 * INPUT_WINDOW // 32_768):
        await session.send(Input(bytes(32_768)))
    frames = [frame for frame in await session.rest() if not isinstance(frame, Credit)]
    assert isinstance(frames[-1], Failed)
    assert "without credit" in frames[-1].message
    assert instance.left == 1


async def test_input_for_a_command_that_closed_its_own_is_dropped(session: Session) -> None:
    await session.start("sh", "-c", "exec <&-; echo closed; sleep 0.2; echo end")
    assert await session.next() == Output(b"closed\n")
    await session.send(Input(b"for nobody"))
    await session.send(Input(b"for nobody"))
    frames = await session.rest()
    assert frames.count(Credit(10)) == 2
    assert frames[-2:] == [Output(b"end\n"), Exited(0)]


async def test_sizes_and_signals_reach_the_command(session: Session, instance: FakeInstance) -> None:
    await session.start("sleep", "100", terminal=TerminalSize(24, 80))
    await session.send(Resize(TerminalSize(50, 132)))
    await session.send(SendSignal("TERM"))
    assert await session.rest() == [Exited(128 + 15)]
    assert instance.executions[0].sizes == [TerminalSize(50, 132)]


async def test_output_that_nobody_reads_stops_the_command(session: Session, instance: FakeInstance) -> None:
    await session.start("sh", "-c", "yes")
    process = instance.executions[0].process
    with trio.fail_after(10):
        while "pipe" not in await trio.Path(f"/proc/{process.pid}/wchan").read_text():
            if await _is_sleeping(process.pid):
                break
    assert process.returncode is None


async def _is_sleeping(pid: int) -> bool:
    """Whether the process waits, which for `yes` means that the pipe is full."""
    fields = (await trio.Path(f"/proc/{pid}/stat").read_text()).rpartition(")")[2].split()
    await trio.sleep(0.01)
    return fields[0] == "S"


async def test_a_command_that_cannot_start_is_told(session: Session) -> None:
    await session.send(Start(CommandTarget(("no-such-command",), (), "", "", None)))
    assert await session.rest() == [
        Failed("'no-such-command' cannot be started: No such file or directory", "check its name", 127)
    ]


@pytest.mark.parametrize(
    "message", [b"\0input first", '{"type": "end-of-input"}', "nonsense", b"\7", '{"type": "start", "user": 1}']
)
async def test_what_is_no_start_is_refused(session: Session, instance: FakeInstance, message: bytes | str) -> None:
    await session.websocket.send(message)
    frames = await session.rest()
    assert len(frames) == 1
    assert isinstance(frames[0], Failed)
    assert not instance.executions


async def test_a_second_start_is_refused(session: Session, instance: FakeInstance) -> None:
    await session.start("sleep", "100")
    await session.send(Start(CommandTarget(("true",), (), "", "", None)))
    assert isinstance((await session.rest())[-1], Failed)
    assert (len(instance.executions), instance.left) == (1, 1)


async def test_a_frame_that_is_too_large_ends_the_session(instance: FakeInstance, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    async with served(instance, path):
        async with open_websocket(path, "/v1/exec") as websocket:
            session = Session(websocket)
            await session.start("sleep", "100")
            await websocket.send(b"\0" + bytes(exec_frames.MAX_FRAME))
            assert await session.rest() == []
        with trio.fail_after(10):
            await instance.first_left.wait()


async def test_the_link_to_the_guest_is_lost(
    session: Session, instance: FakeInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    await session.start("sh", "-c", "echo hello; exec sleep 100")
    assert await session.next() == Output(b"hello\n")
    monkeypatch.setattr(type(instance.executions[0]), "status", property(_cut_off))
    await session.send(SendSignal("KILL"))
    assert await session.rest() == [Failed("the command was cut off", "see `hostagent status`")]


def _cut_off(execution: object) -> int:
    from hostagent.errors import UserError

    raise UserError("the command was cut off", "see `hostagent status`")
