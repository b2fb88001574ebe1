"""The kernel's tracer as a source, on the real kernel and on a folder that looks like one."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from guestagent.wakeup_tracefs import TRACEFS, TracefsSource
from guestagent.wakeups import TCP, UDP, SourceUnavailableError
from guestagent.wakeups import TCP_AND_UDP as BOTH
from tests.guestagent.recording_watch import RecordingWatch

NAME = f"hostagent_test{os.getpid()}"  # not the agent's own, which may run on this machine


@asynccontextmanager
async def tracing(watch: RecordingWatch) -> AsyncIterator[TracefsSource]:
    source = TracefsSource(name=NAME)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run, watch)
        await watch.until_woken_for(TCP)  # it went live
        watch.forget()
        yield source
        nursery.cancel_scope.cancel()


async def test_listening_and_closing_wake_and_name_the_thread() -> None:
    watch = RecordingWatch()
    async with tracing(watch) as source:
        assert source.states[0].live
        listener = socket.create_server(("127.0.0.1", 0))
        await watch.until_woken_for(TCP)
        assert os.getpid() in watch.threads
        watch.forget()
        listener.close()
        await watch.until_woken_for(TCP)
        assert source.states[0].wakeups >= 2
    assert not (TRACEFS / "instances" / NAME).exists()


async def test_connections_do_not_wake() -> None:
    watch = RecordingWatch()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with tracing(watch):
            for _ in range(20):
                with socket.create_connection(listener.getsockname()):
                    listener.accept()[0].close()
            last = socket.create_server(("127.0.0.1", 0))
            await watch.until_woken_for(TCP)
            lines = watch.threads.count(os.getpid())
            last.close()
    assert lines == 1  # each wake-up names a thread once; 20 accepted connections gave none


async def test_what_a_killed_predecessor_left_is_cleared() -> None:
    left, _ = await trio.to_thread.run_sync(TracefsSource(name=NAME)._open)
    os.close(left)  # as the kernel does for a killed process
    assert (TRACEFS / "instances" / NAME).exists()
    async with tracing(RecordingWatch()) as source:
        assert source.states[0].live
    assert not (TRACEFS / "instances" / NAME).exists()


async def test_a_living_predecessor_is_left_alone() -> None:
    watch = RecordingWatch()
    async with tracing(watch):
        with pytest.raises(SourceUnavailableError, match="used by another process"):
            await TracefsSource(name=NAME).run(RecordingWatch())
        listener = socket.create_server(("127.0.0.1", 0))
        await watch.until_woken_for(TCP)
        listener.close()


BIND = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).bind(('127.0.0.77', 20_077))"


async def test_a_udp_bind_of_another_process_wakes_or_the_reason_is_said() -> None:
    watch = RecordingWatch()
    async with tracing(watch) as source:
        (_, udp) = source.states
        assert udp.live == (TRACEFS / "kprobe_events").exists()
        if udp.live:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
                server.bind(("127.0.0.1", 0))  # as relays do: nothing to look for
                await trio.run_process([sys.executable, "-c", BIND])
                await watch.until_woken_for(UDP)
            assert os.getpid() not in watch.threads
        else:
            assert "not compiled into this kernel" in udp.reason


async def test_a_kernel_with_neither_event_is_a_reason_for_both(tmp_path: Path) -> None:
    (tmp_path / "instances").mkdir()
    reasons = r"inet_sock_set_state: not compiled.*udp_lib_get_port: not compiled"
    with pytest.raises(SourceUnavailableError, match=reasons):
        await TracefsSource(tmp_path).run(RecordingWatch())
    assert not (tmp_path / "instances" / "hostagent").exists()


async def test_no_place_to_mount_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailableError, match="tracefs: "):
        await TracefsSource(tmp_path / "missing").run(RecordingWatch())


TCP_LINE = (
    b"      nc -l-12 3-4711    [001] .....   96.8: inet_sock_set_state: family=AF_INET protocol=IPPROTO_TCP sport=58223"
    b" dport=0 saddr=127.0.0.1 daddr=0.0.0.0 oldstate=TCP_CLOSE newstate=TCP_LISTEN\n"
)
UDP_LINE = b"           <...>-815     [000] .....   97.1: udp_bind: (udp_lib_get_port+0x0/0x6c0)\n"


async def test_lines_tell_the_protocol_and_the_thread_and_the_end_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's own lines, through a pipe: this machine's kernel may have no kprobes."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    source, watch = TracefsSource(tmp_path), RecordingWatch()
    monkeypatch.setattr(source, "_open", lambda: (reader, {}))
    with trio.fail_after(10), pytest.RaisesGroup(pytest.RaisesExc(SourceUnavailableError, match="turned tracing off")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.run, watch)
            await watch.until_woken_for(UDP)  # both went live
            for line, protocols, pid in ((UDP_LINE, UDP, 815), (TCP_LINE, TCP, 4711), (TCP_LINE + UDP_LINE, BOTH, 815)):
                watch.forget()
                os.write(writer, line)
                await watch.until_woken_for(protocols)
                assert pid in watch.threads
            os.close(writer)
    assert [state.wakeups for state in source.states] == [2, 2]
