"""The forwarder of this repository: its channel and forwarder in a process of their own, as in a host agent."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import trio

from protocol.ports import Port
from tests.conformance.forwarder import Ability, Counters
from tests.e2e.server_control import ControlLine, GuestServer


@dataclass(frozen=True, slots=True)
class HostProcess:
    """A running `tests.conformance.host_process`."""

    control_socket: Path
    pid: int


@contextmanager
def host_process(channel_socket: Path) -> Iterator[HostProcess]:
    """A process that serves `channel_socket`, ready for requests; ended with the block."""
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        control = Path(folder) / "control.sock"
        command = [sys.executable, "-m", "tests.conformance.host_process", str(channel_socket), str(control)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                if process.stdout.readline() != b"ready\n":
                    raise RuntimeError(f"the host's side ended with status {process.wait()}")
                yield HostProcess(control, process.pid)
            finally:
                process.terminate()


def _row(port: Port) -> tuple[str, str, int]:
    return port.protocol, port.address, port.number


class OurForwarder:
    """Implements `forwarder.Forwarder`."""

    name = "hostagent"
    abilities = frozenset(Ability)

    def __init__(self, line: ControlLine, pid: int, server: GuestServer) -> None:
        self._line = line
        self._pid = pid
        self._server = server

    async def expose(self, *ports: Port) -> None:
        """Wait until the forwards listen."""
        await self._line.request("listening", ports=[_row(port) for port in ports])

    async def withdraw(self, *ports: Port) -> None:
        """Wait until the forwards are gone."""
        await self._line.request("gone", ports=[_row(port) for port in ports])

    @asynccontextmanager
    async def pretended(self, port: Port) -> AsyncIterator[None]:
        """Tell the forwarder of a port that the guest never named."""
        await self._line.request("pretend", port=_row(port), present=True)
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await self._line.request("pretend", port=_row(port), present=False)

    async def counters(self, port: Port) -> Counters:
        """The forward's own."""
        return Counters(**await self._line.request("counters", port=_row(port)))

    async def resident(self) -> dict[str, int]:
        """Both agents."""
        host = psutil.Process(self._pid).memory_info().rss
        return {"guest agent": await self._server.agent_memory() << 10, "host agent": host}

    async def wakeups(self) -> dict[str, Any]:
        """What `Requests.wakeups` of the other process says."""
        return await self._line.request("wakeups")

    @asynccontextmanager
    async def flow_idle(self, seconds: float) -> AsyncIterator[None]:
        """Shorten the idle time in the other process."""
        before = (await self._line.request("flow_idle", idle=seconds))["before"]
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await self._line.request("flow_idle", idle=before)


@asynccontextmanager
async def our_forwarder(process: HostProcess, server: GuestServer) -> AsyncIterator[OurForwarder]:
    """The forwarder in `process`, for one event loop."""
    async with await trio.open_unix_socket(str(process.control_socket)) as stream:
        yield OurForwarder(ControlLine(stream), process.pid, server)
