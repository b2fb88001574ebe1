"""Who holds a socket: on the real /proc, and on one that is made up."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from guestagent import port_owner
from guestagent.port_owner import MAX_PROCESS_NAME, MAX_UNIT_NAME, OwnerSearch, container_of, unit_of
from protocol.ports import PortOwner
from tests.fakes.made_up_proc import MadeUpProc

CONTAINER = "0123456789abcdef" * 4


def inode(item: socket.socket) -> int:
    return Path(f"/proc/self/fd/{item.fileno()}").stat().st_ino


async def test_our_own_socket_is_ours() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = inode(listener)
        (owner,) = (await OwnerSearch().find({number})).values()
    name = await trio.Path("/proc/self/comm").read_text()
    assert (owner.process, owner.pid, owner.uid) == (name.strip(), os.getpid(), os.geteuid())


async def test_another_processs_socket_is_found_by_the_thread_that_opened_it() -> None:
    program = (
        "import os, socket, threading\n"
        "def serve():\n"
        "    global s; s = socket.create_server(('127.0.0.1', 0))\n"
        "    print(os.fstat(s.fileno()).st_ino, threading.get_native_id(), flush=True)\n"
        "t = threading.Thread(target=serve); t.start(); t.join(); input()\n"
    )
    async with trio.open_nursery() as nursery:
        run = functools.partial(trio.run_process, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        child: trio.Process = await nursery.start(run, [sys.executable, "-c", program])
        assert child.stdout
        line = b""
        while not line.endswith(b"\n"):
            line += await child.stdout.receive_some()
        number, thread = map(int, line.split())
        assert thread != child.pid
        for threads in ([thread], []):
            found = await OwnerSearch().find({number}, threads)
            assert found[number].pid == child.pid
        assert await OwnerSearch().find({number + 10**12}, [thread, 2**31]) == {}
        nursery.cancel_scope.cancel()


@pytest.fixture
def proc(tmp_path: Path) -> MadeUpProc:
    return MadeUpProc(tmp_path)


class LoggingSearch(OwnerSearch):
    """Remembers in which order processes were looked into."""

    def __init__(self, proc: Path) -> None:
        super().__init__(proc)
        self.visited: list[int] = []

    def _sockets_of(self, pid: int):  # type: ignore[no-untyped-def]
        self.visited.append(pid)
        return super()._sockets_of(pid)


async def test_threads_come_first_then_earlier_owners_then_the_newest(proc: MadeUpProc) -> None:
    for pid in (100, 200, 300, 400):
        proc.add(pid, pid * 10)
    search = LoggingSearch(proc.root)
    await search.find({2000})
    assert search.visited == [400, 300, 200]
    search.visited.clear()
    await search.find({9}, [100])
    assert search.visited == [100, 200, 400, 300]


async def test_the_search_ends_with_the_last_inode_it_looks_for(proc: MadeUpProc) -> None:
    for pid in (100, 200, 300):
        proc.add(pid, pid * 10, pid * 10 + 1)
    search = LoggingSearch(proc.root)
    found = await search.find({3000, 2001})
    assert {number: owner.pid for number, owner in found.items()} == {3000: 300, 2001: 200}
    assert search.visited == [300, 200]


async def test_processes_that_vanish_or_may_not_be_seen_are_passed_over(proc: MadeUpProc) -> None:
    proc.add(100, 1000)
    (proc.root / "200").mkdir()
    (proc.root / "300").write_text("")
    (proc.root / "self").symlink_to("100")
    assert (await OwnerSearch(proc.root).find({1000})).keys() == {1000}


async def test_a_long_search_lets_others_run(proc: MadeUpProc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_owner, "SLICE", 0.0)
    proc.add(100, 1000, files=50)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        assert await OwnerSearch(proc.root).find({1000})
        nursery.cancel_scope.cancel()
    assert turns > 25


async def test_names_are_bounded_and_printable(proc: MadeUpProc) -> None:
    proc.add(100, 1000, comm="\x1b[2J" + "x" * 100 + "\n\udcff")
    (owner,) = (await OwnerSearch(proc.root).find({1000})).values()
    assert owner == PortOwner("?[2J" + "x" * (MAX_PROCESS_NAME - 4), 100, owner.uid, "")


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/nginx.service\n", "nginx.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/web.service\n", "web.service"),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", "session-3.scope"),
        (f"0::/system.slice/docker-{CONTAINER}.scope\n", "docker/0123456789ab"),
        (f"0::/docker/{CONTAINER}\n", "docker/0123456789ab"),
        (f"0::/docker-{CONTAINER}.scope/system.slice/nginx.service\n", "docker/0123456789ab"),
        (f"0::/user.slice/libpod-{CONTAINER}.scope/container\n", "libpod/0123456789ab"),
        (f"0::/kubepods.slice/cri-containerd-{CONTAINER}.scope\n", "cri-containerd/0123456789ab"),
        (f"0::/{CONTAINER}\n", "container/0123456789ab"),
        ("12:cpu:/x\n1:name=systemd:/system.slice/ssh.service\n0::/\n", "ssh.service"),
        ("0::/\n", ""),
        ("", ""),
        ("garbage", ""),
    ],
)
def test_the_unit_is_the_container_or_the_innermost_unit(cgroup: str, unit: str) -> None:
    assert unit_of(cgroup) == unit


@given(st.text())
def test_any_cgroup_text_gives_a_bounded_printable_unit(text: str) -> None:
    for cgroup in (text, f"0::/{text}.service"):
        unit = unit_of(cgroup)
        assert len(unit) <= MAX_UNIT_NAME
        assert unit.isprintable()


ENGINES = {
    "conmon": ("conmon\0--api-version\x001\0-c\x000123\0-n\0web\0--exit-dir\0/run\0", "podman/web"),
    "docker-proxy": ("/usr/bin/docker-proxy\0-proto\0tcp\0-container-ip\x00172.17.0.2\0", "docker/172.17.0.2"),
}


@pytest.mark.parametrize("process", ENGINES)
async def test_an_engines_process_names_its_container(process: str, proc: MadeUpProc) -> None:
    command_line, unit = ENGINES[process]
    proc.add(100, 7, comm=process, cgroup="0::/system.slice/engine.service\n", command_line=command_line)
    proc.add(101, 8, comm=process, cgroup="0::/system.slice/engine.service\n")
    proc.add(102, 9, comm="server", cgroup="0::/system.slice/web.service\n", command_line=command_line)
    found = await OwnerSearch(proc.root).find({7, 8, 9})
    assert found[7].unit == unit
    assert found[8].unit == "engine.service"
    assert found[9].unit == "web.service"


@given(st.sampled_from(sorted(ENGINES)), st.text())
def test_any_command_line_gives_a_bounded_printable_container(process: str, text: str) -> None:
    for command_line in (
        text,
        ENGINES[process][0].rpartition("\0")[0] + text,
        f"x\0-n\0{text}",
        f"x\0-container-ip\0{text}",
    ):
        container = container_of(process, command_line)
        assert container.isprintable()
        assert len(container) <= MAX_UNIT_NAME
