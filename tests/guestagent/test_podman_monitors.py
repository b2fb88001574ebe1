"""Podman's monitors: in a /proc that is made up, and tied to real processes by real pipes and namespaces."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from guestagent import podman_monitors
from guestagent.podman_monitors import Monitor, MonitorSearch
from tests.fakes.made_up_proc import MadeUpProc

ID, OTHER_ID = "0123456789ab" + "f" * 52, "ba9876543210" + "f" * 52


@pytest.fixture
def proc(tmp_path: Path) -> MadeUpProc:
    return MadeUpProc(tmp_path)


def test_the_fake_command_line_is_the_real_ones() -> None:
    """As libpod's oci_conmon_common.go writes it."""
    assert MadeUpProc.conmon(ID, "web").split("\0")[:5] == ["/usr/bin/conmon", "--api-version", "1", "-c", ID]


async def test_monitors_are_found_by_their_command_line(proc: MadeUpProc) -> None:
    proc.add(90, comm="conmon", command_line=MadeUpProc.conmon(ID, "web"))
    proc.add(800, comm="conmon", command_line=MadeUpProc.conmon(OTHER_ID, "\x1b[2J"))
    proc.add(70, comm="conmon", command_line="conmon\0-c\x00123\0-n\0short\0")
    proc.add(71, comm="conmon", command_line=f"conmon\0-c\0{ID}\0")
    proc.add(72, comm="conmon", command_line="")
    proc.add(73, comm="python3", command_line=MadeUpProc.conmon(ID, "no"))
    (proc.root / "74").mkdir()
    uid = os.geteuid()
    assert await MonitorSearch(proc.root).find() == [
        Monitor(90, uid, ID, "web"),
        Monitor(800, uid, OTHER_ID, "\x1b[2J"),
    ]


WEB, DATABASE = Monitor(100, 0, ID, "web"), Monitor(200, 0, OTHER_ID, "db")


async def test_a_forwarder_is_tied_by_a_pipe_or_by_the_namespace_of_the_container(proc: MadeUpProc) -> None:
    proc.add(100, children=(101, 102))
    proc.add(200, children=(201,))
    proc.add(101, namespace=41)
    proc.add(102, namespace=40)
    proc.add(201, namespace=42)
    proc.add_self(namespace=40)
    proc.open(100, 2, "pipe:[5]", write=True)
    proc.open(100, 3, "pipe:[9]")
    proc.open(100, 7, "pipe:[6]", write=True)
    proc.open(200, 2, "pipe:[5]", write=True)
    proc.open(200, 7, "pipe:[8]", write=True)
    proc.open(200, 8, "socket:[9]")
    search = MonitorSearch(proc.root)
    ties = await search.ties([WEB, DATABASE])
    assert ties == {"pipe:[6]": WEB, "net:[41]": WEB, "pipe:[8]": DATABASE, "net:[42]": DATABASE}

    proc.add(300, command_line="rootlessport\0")
    proc.open(300, 3, "pipe:[8]")
    assert await search.tied_to(300, ties) == DATABASE

    path = "/run/user/1000/netns/netns-1"
    proc.add(301, command_line=f"pasta\0--config-net\0--netns\0{path}\0")
    proc.open(301, 5, "/run/user/1000/other", inode=42)
    proc.open(301, 6, path, inode=41)
    assert await search.tied_to(301, ties) == WEB

    proc.add(302, command_line="pasta\0--netns\0/proc/5/ns/net\0")
    proc.open(302, 6, "net:[42]")
    assert await search.tied_to(302, ties) == DATABASE

    proc.add(303, command_line=f"pasta\0--netns\0{path}\0")
    proc.open(303, 0, "pipe:[5]")  # read by it, written by all monitors
    proc.open(303, 2, "pipe:[6]", write=True)  # the same end
    proc.open(303, 3, "pipe:[8]")  # both ends, as make gives to all that it starts
    proc.open(303, 4, "pipe:[8]", write=True)
    proc.open(303, 5, "pipe:[99]")
    proc.open(303, 6, path)  # an old kernel's fdinfo has no inode
    for pid in (303, 999):
        assert await search.tied_to(pid, ties) is None


async def test_in_a_pod_the_first_monitor_counts(proc: MadeUpProc) -> None:
    proc.add(100, children=(101,))
    proc.add(200, children=(201,))
    proc.add(101, namespace=41)
    proc.add(201, namespace=41)
    assert await MonitorSearch(proc.root).ties([WEB, DATABASE]) == {"net:[41]": WEB}


async def test_the_walk_lets_others_run(proc: MadeUpProc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(podman_monitors, "SLICE", 0.0)
    for pid in range(100, 150):
        proc.add(pid)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        assert await MonitorSearch(proc.root).find() == []
        nursery.cancel_scope.cancel()
    assert turns > 25


MONITOR = """
import subprocess, sys
open("/proc/self/comm", "w").write("conmon")
container = ["unshare", "--net", "sh", "-c", "echo; exec cat"]
child = subprocess.Popen(container, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.read()
"""
FORWARDER = """
import sys
kept = [open(path) for path in sys.argv[1:] if path.startswith("/")]
print(flush=True)
sys.stdin.read()
"""
MOUNTED = 'mount --bind "$1" "$2" && exec "$3" "$4" --netns "$2"'


@asynccontextmanager
async def running(*command: str, pass_fds: tuple[int, ...] = ()) -> AsyncIterator[tuple[int, str]]:
    """A process for as long as the block runs, with its first line."""
    async with trio.open_nursery() as nursery:
        run = functools.partial(
            trio.run_process, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=pass_fds, check=False
        )
        process: trio.Process = await nursery.start(run, command)
        assert process.stdout
        line = b""
        while not line.endswith(b"\n"):
            chunk = await process.stdout.receive_some()
            assert chunk, f"{command} has ended"
            line += chunk
        yield process.pid, line.decode()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("tie", ["pipe", "namespace", "mounted namespace", "none"])
async def test_real_processes_are_tied_by_what_the_kernel_shows_of_them(tie: str, tmp_path: Path) -> None:
    """rootlessport's pipe and pasta's namespace, on the real /proc. To make a namespace needs root."""
    (tmp_path / "monitor.py").write_text(MONITOR)
    (tmp_path / "forwarder.py").write_text(FORWARDER)
    (tmp_path / "netns").touch()
    forwarder = (sys.executable, str(tmp_path / "forwarder.py"))
    reading, writing = os.pipe()
    inherited = os.pipe()
    try:
        monitor = (sys.executable, str(tmp_path / "monitor.py"), "-c", ID, "-n", "web")
        async with running(*monitor, pass_fds=(writing, *inherited)) as (monitor_pid, child):
            found = [one for one in await MonitorSearch().find() if one.pid == monitor_pid]
            assert [(one.identifier, one.name) for one in found] == [(ID, "web")]
            ties = await MonitorSearch().ties(found)
            namespace = f"/proc/{child.strip()}/ns/net"
            mounted = ("unshare", "--mount", "sh", "-c", MOUNTED, "sh", namespace, str(tmp_path / "netns"), *forwarder)
            command, kept = {
                "pipe": (forwarder, (reading,)),
                "namespace": ((*forwarder, "--netns", namespace), ()),
                "mounted namespace": (mounted, ()),
                "none": (forwarder, ()),
            }[tie]
            async with running(*command, pass_fds=(*kept, *inherited)) as (pid, _):
                assert await MonitorSearch().tied_to(pid, ties) == (None if tie == "none" else found[0])
    finally:
        for descriptor in (reading, writing, *inherited):
            os.close(descriptor)
