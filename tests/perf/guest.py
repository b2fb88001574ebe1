"""The guest that the full suite measures: booted twice, the second time with QEMU's own forwards beside ours."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from tests.e2e.vm import CONFIGURATION, IMAGE_SECONDS, Vm, installation
from tests.perf.clients import Control
from tests.perf.figures import PEER_OFFSET, SERVERS, UDP_PORT

CONTROL_PORT = 19_000
GUEST_SERVER = Path(__file__).parents[1] / "e2e" / "guest_server.py"
BOOT_PHASES = ("qemu", "hello", "ports")
NETWORK_SECONDS = 180.0
"""Bound on the guest's network, which QEMU's forwards need and ours do not."""


@dataclass(frozen=True, slots=True)
class MeasuredGuest:
    """A running guest whose test server listens."""

    vm: Vm
    control: Control
    host_agent: int
    """Process id."""
    first_boot: float
    second_boot: float
    """Seconds from power-on to ready."""


def _boot_seconds(phases: dict[str, float]) -> float:
    return sum(phases[phase] for phase in BOOT_PHASES)


def add_peer_forwards(plan: Path) -> None:
    """Write QEMU's own forwards into the launch plan, which is all that the host agent reads."""
    content = json.loads(plan.read_text(encoding="utf-8"))
    ports = [("tcp", port) for port in (CONTROL_PORT, *SERVERS.values())] + [("udp", UDP_PORT)]
    content["host_forwards"] = [
        {"host_port": port + PEER_OFFSET, "guest_port": port, "protocol": protocol} for protocol, port in ports
    ]
    plan.write_text(json.dumps(content), encoding="utf-8")


def start_host_agent(vm: Vm) -> tuple[subprocess.Popen[bytes], dict[str, float]]:
    """The host agent as `up` starts it, without `up`, which would write the plan anew; ready, with its phases."""
    agent = subprocess.Popen(
        [sys.executable, "-m", "hostagent.agent_main", vm.name],
        env=dict(vm.at.environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert agent.stdout is not None
    phases: dict[str, float] = {}
    for line in agent.stdout:
        event = json.loads(line)
        if event["event"] == "phase" and event["state"] == "done":
            phases[event["phase"]] = event["seconds"]
        if event["event"] == "ready":
            return agent, phases
    raise RuntimeError(f"the host agent ended with status {agent.wait()} before it was ready")


def connect_control(host_port: int) -> tuple[socket.socket, Control]:
    """The control line of the guest's server through QEMU's own forward, so that it costs the agents nothing."""
    deadline = time.monotonic() + NETWORK_SECONDS
    while True:
        try:
            line = socket.create_connection(("127.0.0.1", host_port), 10)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line.settimeout(120)
            control = Control(cast("BinaryIO", line.makefile("wb")), line.makefile("rb"))
            control.ask("hello")
            return line, control
        except (OSError, ValueError):
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


@contextmanager
def measured_guest() -> Iterator[MeasuredGuest]:
    """A guest to measure; deleted afterwards."""
    with installation() as at:
        configuration = at.home.with_name("perf.yaml")
        configuration.write_text(CONFIGURATION, encoding="utf-8")
        vm = Vm(at, "perf", configuration)
        vm.up(IMAGE_SECONDS)
        first = _boot_seconds(vm.phases)
        wait_for_cloud_init(vm)
        at.run("down")
        add_peer_forwards(at.home / vm.name / "launch.json")
        agent, phases = start_host_agent(vm)
        with agent:
            wait_for_cloud_init(vm)
            vm.put(GUEST_SERVER.read_bytes(), "/root/guest_server.py")
            with vm.running("python3", "/root/guest_server.py", "--listen", str(CONTROL_PORT)):
                line, control = connect_control(CONTROL_PORT + PEER_OFFSET)
                with line:
                    yield MeasuredGuest(vm, control, agent.pid, first, _boot_seconds(phases))
            at.run("down", "--force")


def wait_for_cloud_init(vm: Vm) -> None:
    """Let the boot come to rest: it goes on behind the guest agent, and would be measured too."""
    vm.shell("cloud-init status --wait >/dev/null; systemctl is-system-running --wait || true", seconds=300)
