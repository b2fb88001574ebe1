"""A QEMU that an earlier host agent started, without an emulator: its pid file, its monitor and its guest.

The process behind the pid file is real and does nothing; the monitor and the guest are in the test's process, so that
a test can make the guest open ports, reboot or fall silent.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import trio

from hostagent.paths import InstancePaths
from hostagent.qemu.pid_file import ProcessIdentity, hold_pid_file
from protocol.messages import PowerOff
from tests.fakes.guest import FakeGuest, fake_guest
from tests.fakes.qmp_server import QmpServer, qmp_server


class LivingQemu:
    """What `hostagent.qemu.machine.attach` finds."""

    def __init__(self, process: trio.Process, guest: FakeGuest, monitor: QmpServer) -> None:
        self.process = process
        self.guest = guest
        self.monitor = monitor
        self.obeys = {"power off", "system_powerdown", "quit"}
        """What ends it."""
        self.status = "running"
        """What it answers to `query-status`, and to all else, where nobody looks at it."""

    @property
    def commands(self) -> list[str]:
        """What the monitor was told."""
        return [str(command["execute"]) for command in self.monitor.received]

    async def _obey_monitor(self) -> None:
        number = 0
        while True:
            command = await self.monitor.next_command(number)
            number += 1
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self.monitor.answer(command, {"status": self.status})
            if command["execute"] in self.obeys:
                self.process.kill()

    async def _obey_guest_agent(self) -> None:
        while True:
            await self.guest.changed()
            if "power off" in self.obeys and any(isinstance(message, PowerOff) for message in self.guest.received):
                self.process.kill()


@contextlib.asynccontextmanager
async def living_qemu(paths: InstancePaths) -> AsyncIterator[LivingQemu]:
    """A QEMU of the instance that lives until the end of the block, unless it is told to end."""
    paths.monitor_socket.unlink(missing_ok=True)
    with hold_pid_file(paths.qemu_pid) as pid_file:
        process = await trio.lowlevel.open_process(["sleep", "600"], pass_fds=[pid_file.fd], start_new_session=True)
        pid_file.record(ProcessIdentity(process.pid, 0.0))
    try:
        async with (
            fake_guest(paths.channel_socket) as guest,
            qmp_server(paths.monitor_socket) as monitor,
            trio.open_nursery() as nursery,
        ):
            qemu = LivingQemu(process, guest, monitor)
            nursery.start_soon(qemu._obey_monitor)
            nursery.start_soon(qemu._obey_guest_agent)
            yield qemu
            nursery.cancel_scope.cancel()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
