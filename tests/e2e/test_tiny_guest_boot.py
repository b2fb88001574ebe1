"""The tiny guest itself: what every other test in it takes for granted."""

from __future__ import annotations

import hashlib
import os
import signal

import pytest
import trio
import trio.testing

from tests.e2e.server_control import GuestServerError
from tests.e2e.tiny_guest import GuestDiedError, SerialLog, TinyGuest, tiny_guest

pytestmark = [pytest.mark.tiny_guest, pytest.mark.timeout(300)]  # the first run fetches a kernel and freezes


async def test_offers_all_that_the_agent_may_use() -> None:
    async with tiny_guest(agent_command="guestagent --self-test && guestagent --version && sleep 3600") as guest:
        await guest.serial.wait_for_line(r"^self-test passed$")
        version = await guest.serial.wait_for_line(r"^\d+\.\d+\.\d+\+[0-9a-f]{12}$")
        assert "cannot load" not in guest.serial.text
        looks = {
            "cat /sys/kernel/tracing/events/sock/inet_sock_set_state/format": "newstate",
            "ls /sys/kernel/tracing/kprobe_events": "kprobe_events",
            "readlink -f /dev/virtio-ports/hostagent.0": "/dev/vport",
            "cat /proc/modules": "tcp_diag",
            "ip addr show lo": "inet6 ::1/128",
            "ip addr show eth0": "10.0.2.15",
            "guestagent --version": version[0],
            "ls /dev/pts/ptmx": "ptmx",
        }
        for command, expected in looks.items():
            ran = await guest.server.run(command)
            assert ran.status == 0, command
            assert expected in ran.output
        await _serves(guest)


async def _serves(guest: TinyGuest) -> None:
    """The test server answers on both address families, reports failures, and closes what it opened."""
    for host in ("127.0.0.1", "::1"):
        port = await guest.server.tcp("echo", host)
        assert (await guest.server.run(f"echo over and out | nc {host} {port}")).output == "over and out\n"
        with pytest.raises(GuestServerError, match="EADDRINUSE"):
            await guest.server.tcp("echo", host, port)
        await guest.server.close(port)
        assert (await guest.server.run(f"nc {host} {port} </dev/null")).status == 1
    port = await guest.server.udp("echo", "127.0.0.1")
    assert f":{port:04X} " in (await guest.server.run("cat /proc/net/udp")).output
    await guest.server.close(port)
    assert f":{port:04X} " not in (await guest.server.run("cat /proc/net/udp")).output
    assert (await guest.server.counters())["accepted"] == 2


async def test_the_channel_carries_bytes_and_the_agent_is_started_again() -> None:
    data = os.urandom(100_000)
    async with tiny_guest(agent_command=f"head -c {len(data)} /dev/virtio-ports/hostagent.0 | sha256sum") as guest:
        async with await trio.open_unix_socket(str(guest.channel_socket)) as channel:
            for round_number in range(1, 3):
                await channel.send_all(data)
                await guest.serial.wait_for_line(
                    rf"(?:{hashlib.sha256(data).hexdigest()}[^\0]*?agent ended with status 0[^\0]*?){{{round_number}}}"
                )


async def test_a_dead_guest_ends_the_test_with_the_reason_and_leaves_no_process() -> None:
    pids: list[int] = []

    async def kill_and_wait() -> None:
        async with tiny_guest(agent_command="sleep 3600") as guest:
            pids.append(guest.pid)
            await guest.serial.wait_for_line("^tiny guest: ready$")
            os.kill(guest.pid, signal.SIGKILL)
            await trio.sleep_forever()

    with pytest.raises(GuestDiedError, match="tiny guest: ready"):
        await kill_and_wait()
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


async def test_a_console_line_is_found_however_it_was_cut() -> None:
    serial = SerialLog()
    near, far = trio.testing.memory_stream_one_way_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serial.follow, far)
        for byte in "tiny guest: bére\r\nready\r\n".encode():
            await near.send_all(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        await serial.wait_for_line("^ready$", seconds=1)
        await near.aclose()
    assert serial.text == "tiny guest: bére\nready\n"


async def test_a_failure_comes_out_as_it_is_with_the_console_as_a_note() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        async with tiny_guest(agent_command="sleep 3600"):
            raise ZeroDivisionError
    console, cpus = caught.value.__notes__
    assert "serial console" in console
    assert "CPU#1\nRIP=" in cpus
