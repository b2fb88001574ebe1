from __future__ import annotations

import os
import pwd
import resource
import socket
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from guestagent.command_process import CommandDescriptors, start_command
from protocol.stream_messages import CommandTarget, TerminalSize
from tests.guestagent.host_end import BOUND, USER, open_descriptors

SIZE = TerminalSize(10, 20)


def target(*arguments: str, user: str = USER, terminal: TerminalSize | None = None) -> CommandTarget:
    return CommandTarget(arguments, (), user, "/", terminal)


@asynccontextmanager
async def running(target: CommandTarget) -> AsyncIterator[tuple[trio.Process, CommandDescriptors]]:
    process, ours = await start_command(target)
    try:
        yield process, ours
    finally:
        process.kill()
        await process.wait()
        for descriptor in {ours.input, ours.output, ours.errors} - {None}:
            assert descriptor is not None
            os.close(descriptor)


async def read(descriptor: int) -> bytes:
    """All that a pipe gives."""
    data = b""
    with trio.fail_after(BOUND):
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            if not (chunk := os.read(descriptor, 65_536)):
                return data
            data += chunk


async def test_the_command_leads_a_session_of_its_own() -> None:
    async with running(target("sleep", "100")) as (process, ours):
        assert os.getsid(process.pid) == process.pid
        assert not ours.terminal
        assert ours.errors is not None


async def test_the_command_inherits_no_other_descriptor() -> None:
    with socket.socket() as ours_alone:
        assert ours_alone.fileno() > 3
        async with running(target("ls", "/proc/self/fd")) as (_process, ours):
            assert (await read(ours.output)).split() == [b"0", b"1", b"2", b"3"]  # 3 is the listing itself


async def test_the_command_is_the_user_in_everything() -> None:
    nobody = pwd.getpwnam("nobody" if os.geteuid() == 0 else USER)
    script = "id -u; id -g; id -G; echo $HOME"
    async with running(target("sh", "-c", script, user=nobody.pw_name)) as (_process, ours):
        uid, gid, groups, home = (await read(ours.output)).decode().split("\n")[:4]
    assert (int(uid), int(gid), home) == (nobody.pw_uid, nobody.pw_gid, nobody.pw_dir)
    assert set(map(int, groups.split())) == set(os.getgrouplist(nobody.pw_name, nobody.pw_gid))


async def test_another_user_is_refused_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12_345)
    with pytest.raises(PermissionError, match="not root"):
        await start_command(target("true", user="root"))


async def test_a_terminal_has_its_size_and_one_descriptor() -> None:
    async with running(target("sleep", "100", terminal=SIZE)) as (process, ours):
        assert (ours.terminal, ours.input, ours.errors) == (True, ours.output, None)
        assert termios.tcgetwinsize(ours.output) == (10, 20)
        assert os.tcgetpgrp(ours.output) == process.pid


async def test_limits_are_a_logins() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4_096), hard))
    score = Path("/proc/self/oom_score_adj")
    before = score.read_text()
    score.write_text("7")
    try:
        async with running(target("sleep", "100")) as (process, _ours):
            assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (1_024, hard)
            assert Path(f"/proc/{process.pid}/oom_score_adj").read_text() == "0\n"
    finally:
        score.write_text(before)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_failed_start_leaves_no_descriptor() -> None:
    before = open_descriptors()
    for terminal in (None, SIZE):
        with pytest.raises(FileNotFoundError) as caught:
            await start_command(target("no-such-program", terminal=terminal))
        assert caught.value.filename == "no-such-program"
    assert open_descriptors() <= before
