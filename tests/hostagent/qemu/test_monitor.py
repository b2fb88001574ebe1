"""The monitor's connection: replies, events, and every way in which it ends."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from hostagent.qemu import monitor as monitor_module
from hostagent.qemu.monitor import CommandRefusedError, Monitor, MonitorClosedError, open_monitor
from tests.fakes.qmp_server import QmpServer, qmp_server


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[tuple[QmpServer, Monitor]]:
    async with qmp_server(path) as server, open_monitor(path) as monitor:
        yield server, monitor


def event(name: str) -> dict[str, object]:
    return {"event": name, "timestamp": {"seconds": 1, "microseconds": 0}}


async def test_replies_find_their_command_in_any_order(tmp_path: Path) -> None:
    results: dict[str, object] = {}

    async def ask(monitor: Monitor, command: str) -> None:
        results[command] = await monitor.execute(command, {"device": "disk"})

    async with connected(tmp_path / "s") as (server, monitor):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, monitor, "first")
            nursery.start_soon(ask, monitor, "second")
            await server.next_command(1)
            for command in reversed(server.received):
                assert command["arguments"] == {"device": "disk"}
                await server.answer(command, command["execute"])
    assert results == {"first": "first", "second": "second"}


async def test_events_do_not_need_a_reader_and_the_oldest_go_first(tmp_path: Path) -> None:
    async with connected(tmp_path / "s") as (server, monitor), trio.open_nursery() as nursery:
        count = monitor_module.EVENT_BACKLOG + 3
        await server.say(*[event(str(number)) for number in range(count)])
        nursery.start_soon(monitor.execute, "query-status")
        await server.answer(await server.next_command(0), {})
        await trio.testing.wait_all_tasks_blocked()
        assert monitor.events_dropped == 3
        await server.hang_up()
        assert [each.name async for each in monitor.events()] == [str(number) for number in range(3, count)]


async def test_every_reader_of_events_wakes_up(tmp_path: Path) -> None:
    seen: list[str] = []

    async def read(monitor: Monitor) -> None:
        seen.extend([each.name async for each in monitor.events()])

    async with connected(tmp_path / "s") as (server, monitor):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, monitor)
            nursery.start_soon(read, monitor)
            await trio.testing.wait_all_tasks_blocked()
            await server.say(event("A"), event("B"))
            await server.hang_up()
    assert sorted(seen) == ["A", "B"]


async def test_a_refusal_has_qemus_words(tmp_path: Path) -> None:
    async with connected(tmp_path / "s") as (server, monitor), trio.open_nursery() as nursery:

        async def refuse() -> None:
            command = await server.next_command(0)
            await server.say({"error": {"class": "CommandNotFound", "desc": "what?"}, "id": command["id"]})

        nursery.start_soon(refuse)
        with pytest.raises(CommandRefusedError, match=r"^dance: what\?$") as caught:
            await monitor.execute("dance")
        assert caught.value.error_class == "CommandNotFound"


@pytest.mark.parametrize("last", [b"", b"garbage\n", b'{"return": {}, "id": 77}\n'])
async def test_every_wait_ends_with_the_connection(tmp_path: Path, last: bytes) -> None:
    ended = 0

    async def ask(monitor: Monitor) -> None:
        nonlocal ended
        with pytest.raises(MonitorClosedError):
            await monitor.execute("query-status")
        ended += 1

    with trio.fail_after(5):
        async with connected(tmp_path / "s") as (server, monitor):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, monitor)
                nursery.start_soon(ask, monitor)
                await server.next_command(1)
                await server.say_bytes(last)
                if not last:
                    await server.hang_up()
            assert [each async for each in monitor.events()] == []
            await ask(monitor)
    assert ended == 3


async def test_a_cancelled_command_costs_only_its_answer(tmp_path: Path) -> None:
    async with connected(tmp_path / "s") as (server, monitor), trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(server.next_command, 0)

            async def cancel() -> None:
                await server.next_command(0)
                scope.cancel()

            nursery.start_soon(cancel)
            await monitor.execute("slow")
        await server.answer(server.received[0], "too late")
        nursery.start_soon(monitor.execute, "quick")
        await server.answer(await server.next_command(1), {})


async def test_errors_of_the_block_come_out_as_themselves(tmp_path: Path) -> None:
    cause = KeyError("cause")
    async with qmp_server(tmp_path / "s"):
        with pytest.raises(ValueError, match=r"^mine$") as caught:
            async with open_monitor(tmp_path / "s"):
                raise ValueError("mine") from cause
    assert caught.value.__cause__ is cause


async def test_cancellation_passes_through(tmp_path: Path) -> None:
    with trio.move_on_after(5) as scope:
        async with connected(tmp_path / "s"):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(MonitorClosedError, match="no QEMU listens"):
        async with open_monitor(tmp_path / "missing"):
            raise AssertionError("must not get here")


async def test_a_monitor_that_talks_to_someone_else(tmp_path: Path) -> None:
    async with qmp_server(tmp_path / "s") as server:
        server.greets = False
        with pytest.raises(MonitorClosedError, match=r"did not greet within 0\.01 s"):
            async with open_monitor(tmp_path / "s", greeting_bound=0.01):
                raise AssertionError("must not get here")


async def test_the_fake_behaves_like_the_real_qemu(tmp_path: Path) -> None:
    """The same exchange with both: handshake, refusal, silence towards a second client, end."""

    async def exchange(path: Path) -> str:
        async with open_monitor(path) as monitor:
            with pytest.raises(MonitorClosedError, match="did not greet"):
                async with open_monitor(path, greeting_bound=0.05):
                    raise AssertionError("must not get here")
            with pytest.raises(CommandRefusedError) as caught:
                await monitor.execute("dance")
            return caught.value.error_class

    real = tmp_path / "real"
    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(str(real))
        listener.listen()
        chardev = f"socket,id=m,fd={listener.fileno()},server=on,wait=off"
        command = ["qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none"]
        command += ["-chardev", chardev, "-mon", "chardev=m,mode=control"]
        process = await trio.lowlevel.open_process(command, stdin=subprocess.DEVNULL, pass_fds=[listener.fileno()])
    try:
        async with trio.open_nursery() as nursery, qmp_server(tmp_path / "fake") as server:

            async def refuse() -> None:
                number = (await server.next_command(0))["id"]
                await server.say({"error": {"class": "CommandNotFound", "desc": "no dance"}, "id": number})

            nursery.start_soon(refuse)
            assert await exchange(tmp_path / "fake") == await exchange(real)
        async with open_monitor(real) as monitor:
            await monitor.execute("quit")
            assert [each.name async for each in monitor.events()] == ["SHUTDOWN"]
        assert await process.wait() == 0
    finally:
        process.kill()
        await process.wait()
