"""QEMU's own port forward (`hostfwd` of its user network, written in C), as the reference beside ours.

Its guest ports are reached at the guest's address on that network, and over IPv4 only, so servers must be bound to all
addresses. A forward exists because the monitor was told so, whether anybody listens in the guest or not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import trio

from hostagent.qemu.monitor import Monitor, open_monitor
from protocol.ports import Port
from tests.conformance.forwarder import Ability, Counters

NETWORK = "net0"

_END = "the client sees an orderly end where the guest's kernel sent RST"

DEVIATIONS: dict[str, str] = {
    "RST by the server is RST for the client": _END,
    "the server closes without reading: RST": _END,
    "refused in the guest: RST, never an empty answer": _END,
    "never accepted, and the listener goes: RST": _END,
}
"""What QEMU 7.2 does otherwise, by the case's name. Recorded, not judged: it is somebody else's code."""


class HostForward:
    """Implements `forwarder.Forwarder`."""

    name = "QEMU hostfwd"
    abilities = frozenset({Ability.UDP})
    deviations = DEVIATIONS

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    async def _command(self, line: str) -> None:
        answer = await self._monitor.execute("human-monitor-command", {"command-line": line})
        if answer.strip() and "removed" not in answer:
            raise OSError(f"{line}: {answer.strip()}")

    async def expose(self, *ports: Port) -> None:
        """Tell the monitor."""
        for port in ports:
            await self._command(f"hostfwd_add {NETWORK} {port.protocol}:127.0.0.1:{port.number}-:{port.number}")

    async def withdraw(self, *ports: Port) -> None:
        """Tell the monitor."""
        for port in ports:
            await self._command(f"hostfwd_remove {NETWORK} {port.protocol}:127.0.0.1:{port.number}")

    @asynccontextmanager
    async def pretended(self, port: Port) -> AsyncIterator[None]:
        """The same as `expose`: it never knows whether anybody listens."""
        await self.expose(port)
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await self.withdraw(port)

    async def counters(self, port: Port) -> Counters:
        """It has none that could be asked for by port."""
        raise NotImplementedError(Ability.COUNTERS)

    async def resident(self) -> dict[str, int]:
        """Its memory is that of the whole guest."""
        raise NotImplementedError(Ability.MEMORY)

    def flow_idle(self, seconds: float) -> AbstractAsyncContextManager[None]:
        """It has a fixed one."""
        raise NotImplementedError(Ability.FLOW_BOUNDS)


@asynccontextmanager
async def host_forward(monitor_socket: Path) -> AsyncIterator[HostForward]:
    """The reference on the guest whose monitor is at `monitor_socket`."""
    async with open_monitor(monitor_socket) as monitor:
        yield HostForward(monitor)
