"""Commands through the channel, run by the real guest agent's code on this machine."""

from __future__ import annotations

import hashlib
import os
import pwd
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import psutil
import pytest
import trio
import trio.testing

from hostagent import execution as execution_module
from hostagent.channel import Channel
from hostagent.errors import UserError
from hostagent.execution import GuestExecution
from protocol.limits import MAX_ARGUMENTS, MAX_PAYLOAD, STREAM_WINDOW
from protocol.stream_messages import CommandTarget, TerminalSize
from tests.fakes.connected_channel import (
    BOUND,
    connected_channel,
    eventually,
    nothing_left_open,
)

USER = pwd.getpwuid(os.geteuid()).pw_name


def command(*arguments: str, terminal: TerminalSize | None = None) -> CommandTarget:
    return CommandTarget(arguments, (), USER, "/", terminal)


def shell(script: str) -> CommandTarget:
    return command("sh", "-c", script)


@asynccontextmanager
async def started(channel: Channel, target: CommandTarget) -> AsyncIterator[GuestExecution]:
    execution = GuestExecution(channel)
    try:
        with trio.fail_after(BOUND):
            await execution.start(target)
            yield execution
    finally:
        execution.close()


async def everything(execution: GuestExecution) -> dict[str, bytes]:
    """All output, by its name."""
    found = {"stdout": b"", "stderr": b""}
    async for name, payload in execution.output():
        found[name] += payload
    return found


async def test_output_errors_and_status_arrive_apart(tmp_path: Path) -> None:
    async with connected_channel(tmp_path) as (channel, _, guest):
        async with started(channel, shell("echo out; echo err >&2; exit 7")) as execution:
            execution.end_input()
            assert await everything(execution) == {"stdout": b"out\n", "stderr": b"err\n"}
            assert execution.status == 7
        await guest.streams_over()


@pytest.mark.parametrize(
    ("arguments", "user", "directory", "hint"),
    [
        (
            ("/no/such",),
            USER,
            "",
            "check the command's name; what a shell is to read goes to one: `hostagent shell -- sh -c '...'`",
        ),
        (("/etc/passwd",), USER, "", "see that it may be executed"),
        (("true",), USER, "/no/such", "check the folder and the user"),
        (("true",), "no-such-user", "", "check the user"),
    ],
)
async def test_what_cannot_be_started_says_where_to_look(
    tmp_path: Path, arguments: tuple[str, ...], user: str, directory: str, hint: str
) -> None:
    async with connected_channel(tmp_path) as (channel, *_):
        with pytest.raises(UserError, match="the guest cannot run it") as caught:
            async with started(channel, CommandTarget(arguments, (), user, directory, None)):
                pytest.fail("it runs")
    assert caught.value.hint == hint


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGRTMIN, signal.SIGRTMIN + 3])
async def test_a_signal_is_shown_as_a_shell_shows_it(tmp_path: Path, number: int) -> None:
    async with connected_channel(tmp_path) as (channel, *_):
        async with started(channel, shell(f"kill -{int(number)} $$")) as execution:
            await everything(execution)
            assert execution.status == 128 + number


@pytest.mark.parametrize("name", ["", "NOSUCH", "99999", "-1"])
async def test_a_signal_that_no_guest_means(tmp_path: Path, name: str) -> None:
    async with connected_channel(tmp_path) as (channel, _, guest):
        async with started(channel, command("cat")) as execution:
            assert guest.life is not None
            (stream,) = guest.life.connection.streams
            guest.life.connection.send_exit(stream, None, name)
            guest.life.connection.send_end(stream)
            guest.life.link.flush()
            await everything(execution)
            assert execution.status == 128


async def test_input_comes_back_as_it_was(tmp_path: Path) -> None:
    data = os.urandom(5_000_000)
    async with connected_channel(tmp_path) as (channel, *_):
        async with started(channel, command("cat")) as execution, trio.open_nursery() as nursery:

            async def feed() -> None:
                await execution.send_input(data)
                execution.end_input()

            nursery.start_soon(feed)
            found = await everything(execution)
            assert hashlib.sha256(found["stdout"]).digest() == hashlib.sha256(data).digest()
            assert execution.status == 0


async def test_a_command_that_does_not_read_stops_its_feeder(tmp_path: Path) -> None:
    async with connected_channel(tmp_path) as (channel, _, guest):
        async with started(channel, shell("read line; cat > /dev/null; echo all read")) as execution:
            sent = 0
            with trio.move_on_after(0.1):
                while True:
                    await execution.send_input(bytes(65_536))
                    sent += 65_536
            assert guest.payload_received <= sent < 1_000_000
            await execution.send_input(b"\n")
            execution.end_input()
            assert (await everything(execution))["stdout"] == b"all read\n"


async def test_output_that_nobody_takes_stops_the_command(tmp_path: Path) -> None:
    async with connected_channel(tmp_path) as (channel, *_):
        async with started(channel, shell("head -c 3000000 /dev/zero; echo done >&2")) as execution:
            await eventually(lambda: sum(len(payload) for _, payload in execution._output) == STREAM_WINDOW)
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert sum(len(payload) for _, payload in execution._output) == STREAM_WINDOW
            found = await everything(execution)
            assert len(found["stdout"]) == 3_000_000
            assert found["stderr"] == b"done\n"


async def test_single_bytes_of_output_cost_no_more_than_whole_pieces(tmp_path: Path) -> None:
    async with connected_channel(tmp_path) as (channel, *_):
        execution = GuestExecution(channel)
        for number in range(STREAM_WINDOW):
            execution.receive_data(bytes([number % 256]))
        execution.receive_error_output(b"e")
        execution.receive_data(b"o")
        assert len(execution._output) <= STREAM_WINDOW // MAX_PAYLOAD + 2
        assert [name for name, _ in execution._output][-3:] == ["stdout", "stderr", "stdout"]
        assert sum(len(payload) for _, payload in execution._output) == STREAM_WINDOW + 2


async def test_a_command_that_ends_without_reading_lets_its_feeder_go(tmp_path: Path) -> None:
    async with connected_channel(tmp_path) as (channel, *_):
        async with started(channel, shell("exit 3")) as execution:
            await execution.send_input(bytes(2_000_000))
            await everything(execution)
            assert execution.status == 3


async def test_signals_and_sizes_reach_the_command(tmp_path: Path) -> None:
    script = "trap 'stty size; exit 5' USR1; stty size; while :; do sleep 0.01; done"
    async with connected_channel(tmp_path) as (channel, *_):
        target = command("sh", "-c", script, terminal=TerminalSize(24, 80))
        async with started(channel, target) as execution:
            output = execution.output()
            assert await anext(output) == ("stdout", b"24 80\r\n")
            execution.resize(TerminalSize(50, 132))
            execution.send_signal("USR1")
            assert b"50 132\r\n" in b"".join([payload async for _, payload in output])
            assert execution.status == 5


@pytest.mark.parametrize(
    ("target", "word", "status"),
    [
        (command("/no/such/program"), "ENOENT", 127),
        (command("/etc/passwd"), "EACCES", 126),
        (command("/etc/passwd/within"), "ENOTDIR", 126),
        (CommandTarget(("true",), (), "nobody-of-that-name", "", None), "nobody-of-that-name", 1),
        (CommandTarget(("true",), (), USER, "/no/such/folder", None), "/no/such/folder", 1),
    ],
)
async def test_what_the_guest_cannot_run_is_told(tmp_path: Path, target: CommandTarget, word: str, status: int) -> None:
    async with connected_channel(tmp_path) as (channel, *_):
        with pytest.raises(UserError, match=word) as caught:
            async with started(channel, target):
                raise AssertionError("it started")
        assert caught.value.status == status


@pytest.mark.parametrize(
    "target", [command(*["x"] * (MAX_ARGUMENTS + 1)), command("x" * 70_000), command("\udc80 is no UTF-8")]
)
async def test_what_cannot_be_said_to_the_guest_is_told(tmp_path: Path, target: CommandTarget) -> None:
    async with connected_channel(tmp_path) as (channel, observer, _):
        with pytest.raises(UserError, match="cannot be sent") as caught:
            async with started(channel, target):
                raise AssertionError("it started")
        assert "arguments" in caught.value.hint
        assert observer.ends == []


async def test_without_a_guest_agent_there_is_no_command(tmp_path: Path) -> None:
    async with connected_channel(tmp_path) as (channel, observer, guest):
        guest.kill()
        guest.cut()
        await observer.end(1)
        with pytest.raises(UserError, match="not there"):
            async with started(channel, command("true")):
                raise AssertionError("it started")


async def test_a_guest_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution_module, "START_BOUND", 0.05)
    async with connected_channel(tmp_path) as (channel, _, guest):
        guest.answers = False
        with pytest.raises(UserError, match="did not start"):
            async with started(channel, command("true")):
                raise AssertionError("it started")
        await guest.streams_over()


@pytest.mark.parametrize("when", ["starting", "running"])
async def test_a_lost_channel_is_told(tmp_path: Path, when: str) -> None:
    async with connected_channel(tmp_path) as (channel, _, guest):
        guest.answers = when == "running"
        if when == "starting":
            async with trio.open_nursery() as nursery:

                async def start() -> None:
                    with pytest.raises(UserError, match="socket was closed"):
                        async with started(channel, command("cat")):
                            raise AssertionError("it started")

                nursery.start_soon(start)
                await guest.opens(1)
                guest.cut()
            return
        async with started(channel, shell("echo begun; cat")) as execution:
            output = execution.output()
            assert await anext(output) == ("stdout", b"begun\n")
            guest.cut()
            assert [payload async for _, payload in output] == []
            await execution.send_input(b"nobody reads this")
            execution.end_input()
            with pytest.raises(UserError, match="cut off: the channel's socket was closed"):
                _ = execution.status


async def test_a_feeder_is_let_go_when_the_channel_is_lost(tmp_path: Path) -> None:
    async with connected_channel(tmp_path) as (channel, _, guest):
        async with started(channel, command("sleep", "60")) as execution, trio.open_nursery() as nursery:
            nursery.start_soon(execution.send_input, bytes(2_000_000))
            await trio.testing.wait_all_tasks_blocked(0.01)
            guest.cut()


async def test_a_lost_command_cannot_disturb_the_next_one(tmp_path: Path) -> None:
    """They have the same number, each in its generation."""
    async with connected_channel(tmp_path) as (channel, observer, guest):
        async with started(channel, command("cat")) as lost:
            guest.cut()
            await observer.generation(2)
            await guest.generation(2)
            async with started(channel, shell("echo begun; read line; echo $line")) as execution:
                output = execution.output()
                assert await anext(output) == ("stdout", b"begun\n")
                lost.send_signal("KILL")
                lost.resize(TerminalSize(1, 1))
                lost.end_input()
                lost.close()
                await execution.send_input(b"unharmed\n")
                assert [payload async for _, payload in output] == [b"unharmed\n"]
                assert execution.status == 0


async def test_a_command_whose_client_left_is_ended(tmp_path: Path) -> None:
    async with connected_channel(tmp_path) as (channel, *_):
        async with started(channel, shell("echo $$; exec sleep 60")) as execution:
            async with aclosing(execution.output()) as output:
                _, payload = await anext(output)
            process = psutil.Process(int(payload))
        await eventually(lambda: not process.is_running())


def test_nothing_is_left_when_it_is_cancelled(tmp_path: Path) -> None:
    async def use() -> None:
        async with connected_channel(tmp_path) as (channel, *_):
            async with started(channel, command("sleep", "60")):
                await trio.testing.wait_all_tasks_blocked()

    trio.run(use)
    with nothing_left_open():
        trio.run(use)
