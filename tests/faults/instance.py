"""A real instance, with a real host agent and the real command, whose guest is the tiny one: booted in seconds.

What `up` would prepare from an image is written here instead; from then on nothing differs from a user's instance. The
guest's test server is asked through QEMU's own port forward, so that neither agent has a part in it.

Nothing in here belongs to an event loop, so that several tests can have one instance, and so that all of it can die.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import trio

from hostagent.api_client import ApiClient
from hostagent.forward_rules import ForwardRule, RuleSet
from hostagent.instance_lock import is_locked
from hostagent.launch_plan import LaunchPlan, write_plan
from hostagent.paths import InstancePaths
from hostagent.qemu.command_line import HostForward
from hostagent.qemu.pid_file import living_process
from protocol.ports import Protocol
from tests.e2e.server_control import GuestServer
from tests.e2e.tiny_guest import REPOSITORY, boot_files
from tests.e2e.vm import Installation, installation, wait_until, without_children

CONTROL_PORT = 19_001
"""Where the guest's test server listens for requests; not forwarded by us."""

FORWARDING = RuleSet(
    (
        ForwardRule(
            "the tests' control line",
            protocol=Protocol.TCP,
            any_address=True,
            guest_ports=(CONTROL_PORT, CONTROL_PORT),
            ignore=True,
        ),
    )
)
KERNEL_COMMAND_LINE = f"console=ttyS0 quiet panic=-1 server_port={CONTROL_PORT}"
MEMORY = 512 << 20
END_SECONDS = 30.0
"""Bound on what ends by itself."""

SERVER_SECONDS = 120.0
"""Bound on power-on to the test server's first answer."""


@dataclass(slots=True)
class Instance:
    """One instance, running or not."""

    at: Installation
    paths: InstancePaths
    control_port: int
    """Of the host."""
    started: list[subprocess.Popen[bytes]]
    """Host agents that are, or were, children of this process."""
    starter: tuple[str, ...] = ("-m", "hostagent.agent_main")
    """What Python runs as the host agent."""
    environment: dict[str, str] = field(default_factory=dict)
    """Its environment besides that of the installation."""

    def start(self) -> None:
        """Start a host agent as `up` does it, without the preparation; returns when it is ready."""
        with self.paths.agent_errors.open("wb") as errors:
            agent = subprocess.Popen(
                [sys.executable, *self.starter, self.paths.name],
                env={**self.at.environment, **self.environment},
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        self.started.append(agent)
        assert agent.stdout is not None
        with agent.stdout as lines:
            for line in lines:
                event = json.loads(line)
                if event["event"] == "ready":
                    return
        raise RuntimeError(f"the host agent ended: {agent.wait()}, {event}\n{self.paths.agent_errors.read_text()}")

    def up(self) -> list[dict[str, Any]]:
        """`hostagent up`, which takes over what is there; its events."""
        return self.at.documents("up", self.paths.name)

    @property
    def api(self) -> ApiClient:
        """The host agent's API."""
        return ApiClient(self.paths)

    def host_agent(self) -> psutil.Process:
        """The living host agent."""
        agents = [one for one in self.at.processes() if self.paths.name in one.cmdline() and _is_agent(one)]
        return without_children(agents)[0]

    def qemu_pid(self) -> int:
        """The living QEMU; 0 when there is none."""
        identity = living_process(self.paths.qemu_pid)
        return identity.pid if identity else 0

    def kill_host_agent(self) -> None:
        """kill -9; returns when it is gone."""
        self.host_agent().send_signal(signal.SIGKILL)
        self.wait_without_agent()

    def kill_qemu(self) -> None:
        """kill -9; returns when the host agent has drawn its conclusions."""
        os.kill(self.qemu_pid(), signal.SIGKILL)
        self.wait_without_agent()

    def wait_without_agent(self, seconds: float = END_SECONDS) -> None:
        """Return when no host agent has the instance."""
        wait_until(lambda: not is_locked(self.paths.lock), seconds)
        for agent in self.started:
            agent.poll()  # collect what has ended

    def recover(self) -> None:
        """Make it run again, whatever a test that failed has left: with the ordinary host agent, or from the start."""
        if self.is_running():
            return  # and starts a QEMU this moment, if there is none
        if self.qemu_pid():
            self.up()
        else:
            self.start()

    def is_running(self) -> bool:
        """Whether there is a host agent."""
        return is_locked(self.paths.lock)

    def forwarded(self) -> dict[tuple[str, int], str]:
        """State of each forward that is not ignored, by protocol and guest port."""
        return {
            (port["protocol"], guest["port"]): port["state"]
            for port in self.api.ports()
            if "port" in (guest := port["guest"]) and port["state"] != "ignored"
        }

    @asynccontextmanager
    async def server(self, seconds: float = SERVER_SECONDS) -> AsyncIterator[GuestServer]:
        """The control line of the guest's test server, once it answers."""
        with trio.fail_after(seconds):
            stream = await self._first_answer()
        async with stream:
            yield GuestServer(stream)

    async def _first_answer(self) -> trio.SocketStream:
        """QEMU accepts in the guest's stead, and resets when nobody listens there yet."""
        while True:
            with contextlib.suppress(OSError, trio.BrokenResourceError, trio.TooSlowError):
                stream = await trio.open_tcp_stream("127.0.0.1", self.control_port)
                try:
                    await GuestServer(stream).request("hello", seconds=5)
                except BaseException:
                    await trio.aclose_forcefully(stream)
                    raise
                return stream
            await trio.sleep(0.1)


def _is_agent(process: psutil.Process) -> bool:
    command = " ".join(process.cmdline())
    return "hostagent.agent_main" in command or "tests.faults." in command


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _write_instance(paths: InstancePaths, kernel: Path, initramfs: Path, control_port: int) -> None:
    paths.directory.mkdir(mode=0o700, parents=True)
    paths.config.write_text("images:\n- build: debian-12\n", encoding="utf-8")  # `up` reads it, and takes over
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", paths.disk, "64M"], check=True)
    paths.seed.write_bytes(bytes(1 << 20))
    write_plan(
        paths.launch_plan,
        LaunchPlan(
            architecture=platform.machine(),
            cpus=2,
            memory=MEMORY,
            disk_size=64 << 20,
            accelerator="tcg",
            accelerator_warning="",
            image="tiny guest",
            agent_version="",
            user="root",
            kernel=str(kernel),
            initrd=str(initramfs),
            kernel_command_line=KERNEL_COMMAND_LINE,
            forwarding=FORWARDING,
            host_forwards=(HostForward(control_port, CONTROL_PORT),),
        ),
    )


@contextmanager
def instance() -> Iterator[Instance]:
    """A running instance; when the block ends it is deleted, and whatever is left of it is told as a failure."""
    started: list[subprocess.Popen[bytes]] = []
    with installation() as at, tempfile.TemporaryDirectory(prefix="faults-") as folder:
        kernel, initramfs = trio.run(boot_files, Path(folder), "guestagent")
        paths = InstancePaths(at.home / "tiny")
        control_port = _free_port()
        _write_instance(paths, kernel, initramfs, control_port)
        made = Instance(at, paths, control_port, started)
        made.start()
        yield made
    for agent in started:
        agent.wait(END_SECONDS)
