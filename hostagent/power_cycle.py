"""The QEMUs of one host agent, one after the other: started or taken over, watched, started again after a reset.

Theory of operation. A guest that reboots does not reset its QEMU: QEMU ends (`-no-reboot`), says on its monitor why,
and the next one is started from the same plan. Under emulation a reset QEMU needs 60 s and more for a boot that takes
10 s from power-on, and with the process everything goes that belonged to the old boot: nothing of it can linger in
the channel. Whether to start again is `lifecycle.after_end`'s decision.

A QEMU whose accelerator gave up (KVM's "internal error") neither ends nor goes on: it waits for somebody to debug the
guest. It is ended here, and if the guest had not come as far as its agent, the next start does without the accelerator.

`beside` (the channel) runs for as long as one QEMU does. `stop` may be called at any time: while QEMU is only being
started, that start is cancelled, which leaves none behind.

What this costs: a guest that reboots while no host agent lives stays off, and `hostagent up` boots it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from hostagent.errors import UserError
from hostagent.lifecycle import AfterEnd, after_end
from hostagent.paths import InstancePaths
from hostagent.qemu.accelerator import remember_failure
from hostagent.qemu.command_line import MachineSpec
from hostagent.qemu.machine import Machine, StopBounds, attach, start
from hostagent.qemu.monitor import Monitor, MonitorClosedError, MonitorError, open_monitor
from hostagent.qemu.qmp import Event

LAST_WORDS_BOUND = 1.0
"""Seconds that the monitor may take to come to its end behind QEMU's: the reason stands there."""

STATUS_BOUND = 5.0
"""Seconds that QEMU may take to say in which state it is."""

INTERRUPTED = "interrupted start"
"""What `PowerCycle.stop` answers when there was no QEMU yet."""


async def _cannot_go_on(monitor: Monitor) -> bool:
    """Whether the guest stands still because its accelerator gave up, and not because somebody paused it."""
    try:
        with trio.move_on_after(STATUS_BOUND):
            return bool((await monitor.execute("query-status"))["status"] == "internal-error")
    except (MonitorError, LookupError, TypeError):  # it ends, or is no QEMU: its end is noticed by others
        pass
    return False


class PowerObserver(Protocol):
    """Who is told what happens to QEMU."""

    def qemu_starting(self) -> None:
        """QEMU is looked for, and started if there is none."""

    def qemu_started(self, detail: str) -> None:
        """QEMU runs, and the guest boots or goes on."""

    def qemu_said(self, event: Event) -> None:
        """An event of the monitor."""

    def monitor_lost(self, reason: str) -> None:
        """There is no monitor any more; QEMU may go on."""

    def guest_reset(self) -> None:
        """The guest is off for a moment, and boots again."""


class PowerCycle:
    """Keeps the machine `spec` powered until it shall be off."""

    def __init__(
        self,
        paths: InstancePaths,
        spec: MachineSpec,
        observer: PowerObserver,
        beside: Callable[[], Awaitable[None]],
    ) -> None:
        self._paths = paths
        self._spec = spec
        self._observer = observer
        self._beside = beside
        self._machine: Machine | None = None
        self._monitor: Monitor | None = None
        self._starting = trio.CancelScope()
        self._settled = trio.Event()
        """Whether there is a machine whose monitor is connected, if it can be; or will be none any more."""
        self._reason = ""
        self._resets = 0
        self._greeted = False
        """Whether the guest agent spoke since this QEMU was started."""
        self._gave_up = False
        """Whether the accelerator did."""
        self.stopping = False
        """Whether the next end is the last."""

    @property
    def pid(self) -> int | None:
        """QEMU's process, while there is one."""
        return self._machine.identity.pid if self._machine else None

    def guest_said_hello(self) -> None:
        """The boot came as far as the guest agent."""
        self._resets = 0
        self._greeted = True

    async def run(self) -> int | None:
        """Return when the machine is off to stay: QEMU's exit status, None if it is not known or none was started.

        Raises `UserError` when QEMU cannot be started, resets again and again, or has an accelerator that gives up.
        """
        try:
            return await self._run()
        finally:
            self._settled.set()

    async def _run(self) -> int | None:
        self._observer.qemu_starting()
        machine = attach(self._paths)
        if machine is None:
            # What an earlier boot said would be mistaken for this one's last words.
            self._paths.serial_log.unlink(missing_ok=True)
            machine = await self._start()
        else:
            self._observer.qemu_started(f"attached to the running one, pid {machine.identity.pid}")
        status = None
        while machine is not None:
            status = await self._serve(machine)
            if self._gave_up:
                raise self._accelerator_error(machine)
            self._resets += 1
            match after_end(self._reason, stopping=self.stopping, resets=self._resets):
                case AfterEnd.OFF:
                    break
                case AfterEnd.GIVE_UP:
                    message = f"the guest was reset {self._resets} times in a row before its agent said hello"
                    raise UserError(message, f"its console is in {self._paths.serial_log}")
                case AfterEnd.BOOT_AGAIN:
                    self._observer.guest_reset()
                    self._observer.qemu_starting()
                    machine = await self._start()
        return status

    async def _start(self) -> Machine | None:
        """A new QEMU; None when `stop` came first."""
        machine = None
        with trio.CancelScope() as self._starting:
            if not self.stopping:
                machine = await start(self._spec, self._paths)
        if machine is not None:
            self._observer.qemu_started(f"{self._spec.accelerator}, pid {machine.identity.pid}")
        return machine

    async def _serve(self, machine: Machine) -> int | None:
        """Watch one QEMU to its end; returns its exit status."""
        self._machine, self._reason, self._greeted = machine, "", False
        monitor_over = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._beside)
                await nursery.start(self._follow_monitor, machine, monitor_over)
                self._settled.set()
                status = await machine.wait_exit()
                with trio.move_on_after(LAST_WORDS_BOUND):
                    await monitor_over.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._machine = None
            self._settled = trio.Event()
        return status

    async def _follow_monitor(
        self, machine: Machine, over: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        reason, connected = "the connection to QEMU's monitor ended", False
        try:
            async with open_monitor(machine.monitor_socket) as self._monitor:
                connected = True
                task_status.started()
                async for event in self._monitor.events():
                    if event.name == "SHUTDOWN":
                        self._reason = str(event.data.get("reason", ""))
                    self._observer.qemu_said(event)
                    if event.name == "STOP" and await _cannot_go_on(self._monitor):
                        self._gave_up = True
                        await machine.stop(self._monitor, StopBounds(power_button=0))
        except MonitorClosedError as exc:  # a QEMU that hangs, or has just ended
            reason = str(exc)
        finally:
            self._monitor = None  # whoever stops QEMU connects anew
            over.set()
        self._observer.monitor_lost(reason)
        if not connected:
            task_status.started()

    def _accelerator_error(self, machine: Machine) -> UserError:
        accelerator, words = self._spec.accelerator, machine.internal_error() or "it says no more about it"
        hint = f"what it said is in {self._paths.qemu_log}"
        if not self._greeted:
            remember_failure(self._spec.architecture, accelerator, words)
            hint = f"start it again: the next start emulates the processor instead, which is slower; {hint}"
        return UserError(f"{accelerator} cannot execute this guest: {words}", hint)

    async def stop(self, bounds: StopBounds) -> str:
        """End QEMU; returns what was needed. Raises `UserError` when nothing helps."""
        self.stopping = True
        self._starting.cancel()
        await self._settled.wait()
        if self._machine is None:
            return INTERRUPTED
        return str(await self._machine.stop(self._monitor, bounds))
