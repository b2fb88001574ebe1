from __future__ import annotations

import hashlib
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from guestagent import execution
from guestagent.agent import GuestAgent
from protocol.limits import STREAM_WINDOW
from protocol.stream_messages import EndOfData, ErrorOutput, Exit, Resize, Signal, TerminalSize
from tests.guestagent.host_end import BOUND, HostEnd, HostStream, guest_and_host, open_descriptors

SIZE = TerminalSize(24, 80)


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[tuple[GuestAgent, HostEnd]]:
    async with guest_and_host(tmp_path) as both:
        yield both


@pytest.fixture
def host(both: tuple[GuestAgent, HostEnd]) -> HostEnd:
    return both[1]


def shell(host: HostEnd, script: str, *, terminal: TerminalSize | None = None, reads: bool = True) -> HostStream:
    return host.command("sh", "-c", script, directory="/", terminal=terminal, reads=reads)


def how(said: Exit) -> int | str | None:
    return said.status if said.signal is None else said.signal


async def test_output_errors_and_status_come_apart(host: HostEnd) -> None:
    output, errors, said = await shell(host, "echo out; echo err >&2; exit 7").ended()
    assert (output, errors, how(said)) == (b"out\n", b"err\n", 7)


async def test_arguments_pass_through_no_shell(host: HostEnd) -> None:
    arguments = ("a b", "$HOME", "*", "", ";exit 1", "ü")
    output, _errors, said = await host.command("printf", "[%s]", *arguments, directory="/").ended()
    assert output.decode() == "".join(f"[{argument}]" for argument in arguments)
    assert how(said) == 0


async def test_directory_and_environment(host: HostEnd, tmp_path: Path) -> None:
    stream = host.command(
        "sh", "-c", "pwd; echo $FLAVOUR; echo ${LD_LIBRARY_PATH-unset}",
        directory=str(tmp_path), environment=(("FLAVOUR", "sour"),),
    )  # fmt: skip
    assert (await stream.ended())[0].decode().split() == [str(tmp_path), "sour", "unset"]


async def test_input_reaches_the_command_and_ends(host: HostEnd) -> None:
    data = random.Random(1).randbytes(3_000_000)
    stream = host.command("sha256sum", directory="/")
    await stream.send_all(data)
    stream.send_end()
    assert (await stream.ended())[0].split()[0].decode() == hashlib.sha256(data).hexdigest()


async def test_a_command_that_does_not_read_its_input_stops_the_host(host: HostEnd) -> None:
    stream = await shell(host, "read line; echo $line; exec 0<&-; read line").opened()
    stream.send(b"first\n")
    with trio.move_on_after(BOUND):
        await stream.send_all(bytes(4 * STREAM_WINDOW))
    assert (await stream.ended())[0] == b"first\n"


async def test_the_reading_of_an_ended_command_does_not_block_the_host(host: HostEnd) -> None:
    stream = await shell(host, "exit 0").opened()
    await stream.wait(Exit)
    await stream.send_all(bytes(3 * STREAM_WINDOW))
    stream.send_end()
    await stream.wait(EndOfData)


async def test_large_output_waits_for_a_host_that_does_not_read(host: HostEnd) -> None:
    stream = await shell(host, "head -c 3000000 /dev/zero; echo done", reads=False).opened()
    await host.until(lambda: True if len(stream.output()) == STREAM_WINDOW else None)
    assert not any(isinstance(said, Exit) for said in stream.heard)
    stream.read_on()
    output, _errors, _said = await stream.ended()
    assert output == bytes(3_000_000) + b"done\n"


async def test_output_written_just_before_the_end_is_not_lost_on_a_slow_host(
    host: HostEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command is long gone, and its last 64 KiB are in the pipe until the host reads."""
    monkeypatch.setattr(execution, "GRACE", 0.01)
    size = STREAM_WINDOW + 131_072 + 60_000
    stream = await shell(host, f"head -c {size} /dev/zero", reads=False).opened()
    await host.until(lambda: True if len(stream.output()) == STREAM_WINDOW else None)
    await trio.sleep(0.1)
    stream.read_on()
    assert len((await stream.ended())[0]) == size


@pytest.mark.parametrize("terminal", [None, SIZE])
async def test_death_by_a_signal_has_its_name(host: HostEnd, terminal: TerminalSize | None) -> None:
    _output, _errors, said = await shell(host, "kill -TERM $$", terminal=terminal).ended()
    assert how(said) == "TERM"


async def test_signals_reach_the_whole_process_group(host: HostEnd) -> None:
    stream = await shell(host, "trap 'echo caught; exit 3' USR1; echo ready; sleep 100 & wait").opened()
    await stream.until_output(b"ready")
    host.say(Signal(stream.stream.number, "NONSENSE"))
    host.say(Signal(stream.stream.number, "USR1"))
    output, _errors, said = await stream.ended()
    assert (output, how(said)) == (b"ready\ncaught\n", 3)


async def test_unknown_programs_users_and_directories_are_refused(host: HostEnd) -> None:
    assert await host.command("no-such-program", directory="/").refusal() == "ENOENT"
    assert await host.command("/etc/passwd", directory="/").refusal() == "EACCES"
    assert await host.command("true", directory="/no/such").refusal() == "EINVAL"
    assert await host.command("true", user="no-such-user").refusal() == "EINVAL"
    assert await host.command("true", environment=(("A=B", "c"),)).refusal() == "EINVAL"


async def test_a_terminal_is_the_commands_own(host: HostEnd) -> None:
    stream = shell(host, "tty; stty size; test -t 0 -a -t 1 -a -t 2 && echo terminal; ps -o tty= $$", terminal=SIZE)
    output, errors, said = await stream.ended()
    name, size, terminal, controlling = output.decode().split("\r\n")[:4]
    assert name.startswith("/dev/pts/")
    assert (size, terminal, controlling.strip()) == ("24 80", "terminal", name.removeprefix("/dev/"))
    assert (errors, how(said)) == (b"", 0)


async def test_a_new_size_reaches_the_terminals_programs(host: HostEnd) -> None:
    stream = await shell(
        host, "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.01; done", terminal=SIZE
    ).opened()
    await stream.until_output(b"ready")
    host.say(Resize(stream.stream.number, TerminalSize(50, 132)))
    await stream.until_output(b"50 132")
    await stream.ended()


async def test_control_c_interrupts_what_runs_on_the_terminal(host: HostEnd) -> None:
    stream = await shell(host, "echo ready; sleep 100", terminal=SIZE).opened()
    await stream.until_output(b"ready")
    stream.send(b"\x03")
    _output, _errors, said = await stream.ended()
    assert how(said) in ("INT", 130)


async def test_the_end_of_input_ends_a_program_that_reads_its_terminal(host: HostEnd) -> None:
    stream = await host.command("cat", directory="/", terminal=SIZE).opened()
    stream.send(b"line\n")
    await stream.until_output(b"line\r\nline\r\n")
    stream.send_end()
    assert how((await stream.ended())[2]) == 0


async def test_no_arguments_give_a_login_shell(host: HostEnd) -> None:
    stream = await host.command().opened()
    stream.send(b"echo $0; pwd; exit 5\n")
    output, _errors, said = await stream.ended()
    assert output.startswith(b"-")
    assert how(said) == 5


async def test_a_child_in_the_background_does_not_hold_up_the_end_and_may_go_on_writing(
    both: tuple[GuestAgent, HostEnd], tmp_path: Path
) -> None:
    _agent, host = both
    done = tmp_path / "done"
    os.mkfifo(done)
    script = f"(trap '' HUP; sleep 0.5; echo late && echo later && echo done >{done}) & echo started"
    stream = shell(host, script)
    output, _errors, said = await stream.ended()
    assert (output, how(said)) == (b"started\n", 0)
    with trio.fail_after(BOUND), await trio.to_thread.run_sync(done.open) as finished:
        assert await trio.to_thread.run_sync(finished.read) == "done\n"


async def test_a_child_that_never_stops_writing_does_not_hold_up_the_end(host: HostEnd, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    stream = shell(host, f"yes & echo $! > {pid}; exit 4")
    _output, _errors, said = await stream.ended()
    assert how(said) == 4
    os.kill(int(pid.read_text()), signal.SIGKILL)


async def test_late_output_of_a_pipeline_is_still_carried(host: HostEnd) -> None:
    output, _errors, _said = await shell(host, "(sleep 0.05; echo late) & exit 0").ended()
    assert output == b"late\n"


@pytest.mark.parametrize("terminal", [None, SIZE])
@pytest.mark.parametrize("ending", ["reset", "cut"])
async def test_a_command_nobody_waits_for_is_hung_up(
    both: tuple[GuestAgent, HostEnd], tmp_path: Path, ending: str, terminal: TerminalSize | None
) -> None:
    agent, host = both
    pid = tmp_path / "pid"
    stream = await shell(host, f"sleep 100 & echo $! > {pid}; echo ready; wait", terminal=terminal).opened()
    await stream.until_output(b"ready")
    stream.reset() if ending == "reset" else host.cut()
    await gone(int(pid.read_text()))
    assert len(agent._table) == 0


async def test_a_command_that_ignores_the_hangup_is_killed(
    both: tuple[GuestAgent, HostEnd], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "HANGUP_SECONDS", 0.05)
    _agent, host = both
    pid = tmp_path / "pid"
    stream = await shell(host, f"trap '' HUP; echo $$ > {pid}; echo ready; while :; do sleep 1; done").opened()
    await stream.until_output(b"ready")
    stream.reset()
    await gone(int(pid.read_text()))


async def gone(pid: int) -> None:
    """Wait until the process has ended (pidfd_open(2)); whether anybody collects it does not matter."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with trio.fail_after(BOUND):
            await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)


async def test_commands_leave_nothing_behind(both: tuple[GuestAgent, HostEnd]) -> None:
    agent, host = both
    before = open_descriptors()
    for terminal in (None, SIZE):
        streams = [shell(host, "echo x", terminal=terminal) for _ in range(10)]
        for stream in streams:
            await stream.ended()
            stream.send_end()
    await host.until(lambda: None if host.connection.stream(streams[-1].stream.number) else True)
    await trio.testing.wait_all_tasks_blocked()
    assert len(agent._table) == 0
    assert open_descriptors() <= before


async def test_error_output_waits_too(host: HostEnd) -> None:
    stream = shell(host, "head -c 1000000 /dev/zero >&2; echo out")
    output, errors, _said = await stream.ended()
    assert (output, len(errors)) == (b"out\n", 1_000_000)
    assert any(isinstance(said, ErrorOutput) for said in stream.heard)
