"""The full guest: a real image, booted and used through the real `hostagent` command, as a user would.

`Installation` is one user's hostagent: a home of its own in a short folder (sockets have short paths), and a cache that
is shared with the whole machine, so that the image is built once. Everything goes through the command line; nothing
here imports hostagent.

Promises: when `installation` ends, its instances are deleted and none of its processes is left. What had to be killed
by hand is told as a failure.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

COMMAND = str(Path(sys.executable).with_name("hostagent"))
BOOT_SECONDS = 300.0
"""Bound on `up` when the image is there; 30 s on an idle machine under emulation."""

IMAGE_SECONDS = 1200.0
"""Bound on the first `up`, which may build the image."""

CONFIGURATION = "cpus: 2\nmemory: 2GiB\nimages:\n- build: debian-12\n"
PORT_SECONDS = 30.0
"""Bound on what a port does. The figures are in tests/perf."""

living: list[Installation] = []
"""The installations that there are now: what is told of them when a test fails (`diagnosis`)."""


@dataclass(frozen=True, slots=True)
class Installation:
    """One user's hostagent."""

    home: Path
    environment: Mapping[str, str]
    prefix: tuple[str, ...] = ()
    """What stands before the command, such as `setpriv` to be somebody else."""

    def command(self, *arguments: str) -> list[str]:
        """The whole command line of `hostagent ARGUMENTS`."""
        return [*self.prefix, COMMAND, *arguments]

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """A running `hostagent ARGUMENTS` with pipes."""
        defaults: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(self.command(*arguments), env=dict(self.environment), **defaults | options)

    def try_run(
        self, *arguments: str, stdin: bytes = b"", seconds: float = BOOT_SECONDS
    ) -> subprocess.CompletedProcess[bytes]:
        """`hostagent ARGUMENTS`, however it ends."""
        return subprocess.run(
            self.command(*arguments),
            input=stdin,
            capture_output=True,
            env=dict(self.environment),
            timeout=seconds,
            check=False,
        )

    def run(self, *arguments: str, stdin: bytes = b"", seconds: float = BOOT_SECONDS) -> str:
        """What `hostagent ARGUMENTS` prints; `AssertionError` with all its words when it fails."""
        done = self.try_run(*arguments, stdin=stdin, seconds=seconds)
        words = f"{' '.join(arguments)}: {done.returncode}\n{done.stdout.decode()}\n{done.stderr.decode()}"
        assert done.returncode == 0, words
        return done.stdout.decode()

    def documents(self, *arguments: str, seconds: float = BOOT_SECONDS) -> list[dict[str, Any]]:
        """The JSON lines that `hostagent ARGUMENTS --json` prints."""
        return [json.loads(line) for line in self.run(*arguments, "--json", seconds=seconds).splitlines()]

    def document(self, *arguments: str) -> dict[str, Any]:
        """The JSON document that `hostagent ARGUMENTS --json` prints."""
        document: dict[str, Any] = json.loads(self.run(*arguments, "--json"))
        return document

    def processes(self) -> list[psutil.Process]:
        """Every process that belongs to this installation: its QEMUs, host agents, and commands that run."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("HOSTAGENT_HOME") == str(self.home) and process.pid != os.getpid():
                    found.append(process)
            except psutil.Error:
                continue
        return found


@dataclass(frozen=True, slots=True)
class Vm:
    """One instance of an installation."""

    at: Installation
    name: str
    configuration: Path
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds of each phase of the last `up`."""
    first_phases: dict[str, float] = field(default_factory=dict)
    """Those of the first one."""

    def up(self, seconds: float = BOOT_SECONDS) -> list[dict[str, Any]]:
        """Bring it up; the events of that."""
        events = self.at.documents("up", str(self.configuration), "--name", self.name, seconds=seconds)
        done = [event for event in events if event["event"] == "phase" and event["state"] == "done"]
        self.phases.clear()
        self.phases.update({event["phase"]: event["seconds"] for event in done})
        if not self.first_phases:
            self.first_phases.update(self.phases)
        return events

    def status(self) -> dict[str, Any]:
        """`hostagent status`."""
        return self.at.document("status", self.name)

    def ports(self) -> list[dict[str, Any]]:
        """`hostagent ports`."""
        ports: list[dict[str, Any]] = self.at.document("ports", self.name)["ports"]
        return ports

    def port(self, number: int, protocol: str = "tcp") -> dict[str, Any] | None:
        """The forward of one guest port."""
        found = [port for port in self.ports() if (port["guest"]["port"], port["protocol"]) == (number, protocol)]
        return found[0] if found else None

    def shell(self, script: str, *, stdin: bytes = b"", seconds: float = 120.0) -> str:
        """What a script of /bin/sh prints in the guest, as root."""
        return self.at.run("shell", self.name, "--user", "root", "--", "sh", "-c", script, stdin=stdin, seconds=seconds)

    def put(self, content: bytes, path: str) -> None:
        """Write a file in the guest."""
        self.shell(f'cat > "{path}"', stdin=content)

    @contextmanager
    def running(self, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """A command that runs in the guest for as long as the block does."""
        process = self.at.start("shell", self.name, "--user", "root", "--", *command)
        with process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                try:
                    process.communicate(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise

    def boot_id(self) -> str:
        """Differs for each boot of the guest."""
        return self.shell("cat /proc/sys/kernel/random/boot_id").strip()

    def agent_pids(self) -> list[int]:
        """Host agents of this installation: one where all is well."""
        agents = [process for process in self.at.processes() if "hostagent.agent_main" in process.cmdline()]
        return [process.pid for process in without_children(agents)]

    def is_up(self) -> bool:
        """Whether it has a host agent, without asking the command: that costs a second under load."""
        return bool(self.agent_pids())

    def qemu_pid(self) -> int:
        """QEMU's process."""
        return int(self.status()["qemu_pid"])


def without_children(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those of `processes` that are no child of another: one that was forked and is about to be QEMU looks the same."""
    pids = {process.pid for process in processes}
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.ppid() not in pids:
                found.append(process)
    return found


def wait_until(condition: Callable[[], object], seconds: float = PORT_SECONDS, pause: float = 0.02) -> float:
    """Look until `condition` is true; the seconds that took. For what is seen from outside only, without an event."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(pause)
    return time.monotonic() - began


def leftovers(at: Installation) -> Sequence[str]:
    """End, by their ids, processes of an installation that should have none; their command lines."""
    found = []
    for process in at.processes():
        try:
            found.append(f"{process.pid}: {' '.join(process.cmdline())}")
            process.kill()
        except psutil.NoSuchProcess:
            continue
    return found


@contextmanager
def installation(*, cache: Path | None = None, prefix: tuple[str, ...] = (), owner: int = 0) -> Iterator[Installation]:
    """A hostagent with an empty home; gone, with all its instances, when the block ends."""
    # Short: the path of a socket in it must fit sun_path.
    folder = Path(tempfile.mkdtemp(prefix="vm-", dir="/tmp"))
    home = folder / "h"
    os.chown(folder, owner, owner)
    environment = {**os.environ, "HOSTAGENT_HOME": str(home), "NO_COLOR": "1"}
    if cache is not None:
        environment["HOSTAGENT_CACHE"] = str(cache)
    at = Installation(home, environment, prefix)
    living.append(at)
    try:
        yield at
        errors = [path.read_text() for path in home.glob("*/agent.err") if path.stat().st_size]
        for instance in at.document("list")["instances"] if home.exists() else ():
            at.run("delete", "--force", instance["name"])
    finally:
        living.remove(at)
        left = leftovers(at)
        shutil.rmtree(folder)
    assert not left, f"these processes were left: {left}"
    assert not errors, "a host agent complained:\n" + "\n".join(errors)


@contextmanager
def full_guest(text: str = CONFIGURATION) -> Iterator[Vm]:
    """A booted instance `vm` of the configuration `text`."""
    with installation() as at:
        configuration = at.home.with_name("vm.yaml")
        configuration.write_text(text, encoding="utf-8")
        guest = Vm(at, "vm", configuration)
        guest.up(IMAGE_SECONDS)
        yield guest
