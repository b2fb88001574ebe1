"""The host agent: one process, one instance, one nursery.

It starts QEMU or takes over a living one, keeps the channel, the forwards and the API, and ends when the guest is off.
When it dies, QEMU and the guest go on; `hostagent up` starts the next one, which finds the guest as it is.

`Agent` is the place where the parts meet: it hears what the channel says, passes it on, and answers the API. It
decides nothing about forwards (`forwarder`), processes (`power_cycle`) or bytes (`channel`).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict

import trio

from hostagent.api_shapes import SourceShape, Status
from hostagent.channel import Channel
from hostagent.control_api import serve_api
from hostagent.errors import UserError
from hostagent.event_log import EventLog, last_event_id
from hostagent.execution import GuestExecution
from hostagent.forward_rules import RuleSet
from hostagent.forwarder import Forwarder
from hostagent.forwards import Forward, ForwardKind
from hostagent.guest_conduct import PAUSE
from hostagent.launch_plan import LaunchPlan
from hostagent.lifecycle import InstanceState, Phase, PhaseClock, PhaseReport, instance_state, silent_console
from hostagent.live_rules import LiveRules
from hostagent.paths import InstancePaths
from hostagent.port_reports import PortReports
from hostagent.power_cycle import PowerCycle
from hostagent.qemu.machine import StopBounds, StopStep
from hostagent.qemu.qmp import Event
from hostagent.reverse_forwards import ReverseForwards, most_connections
from hostagent.serial_log import last_lines
from protocol import messages
from protocol.limits import MAX_PORTS, PROTOCOL_VERSIONS
from protocol.listener_messages import ListenFailed, Listening
from protocol.messages import (
    Clock,
    Hello,
    Message,
    PortOwners,
    PortsChanged,
    PortsSnapshot,
    PowerOff,
    StatusRequest,
)
from protocol.ports import WakeupSource
from protocol.stream_messages import CommandTarget

REFRESH_BOUND = 1.0
"""Seconds that `status` waits for the guest's own report; what was known before is shown otherwise."""

ANSWER_BOUND = 5.0
"""Seconds that whoever asked for the stop has to hear that it is done."""

GUEST_STOP_BOUND = 90.0
"""Seconds that a guest which was asked to power off may take."""

CLOCK_INTERVAL = 60.0
"""Seconds between looks at the host's own clock, which jumps when the host was asleep."""

CLOCK_JUMP = 2.0
CONSOLE_LINES = 8

Announce = Callable[[dict[str, object]], None]


class Agent:
    """One running instance. A `RunningInstance`, a `ChannelObserver` and a `PowerObserver`."""

    def __init__(self, paths: InstancePaths, plan: LaunchPlan, version: str, announce: Announce) -> None:
        self._paths = paths
        self._plan = plan
        self._version = version
        self._announce = announce
        self.events = EventLog(first_id=last_event_id(paths.agent_log) + 1)
        hello = Hello(*PROTOCOL_VERSIONS, frozenset({"tcp", "udp", "unix", "listen", "exec"}), version, "", "")
        self._channel = Channel(paths.channel_socket, hello, self)
        self._forwarder = Forwarder(self._channel, plan.forwarding, self._forward_changed)
        self._reverse = ReverseForwards(
            self._channel,
            plan.forwarding.standing(),
            self._forward_changed,
            user=plan.user,
            most_connections=most_connections(),
        )
        self._rules = LiveRules(paths, plan, self._rules_changed)
        self._phases = PhaseClock()
        self._phase_changed = trio.Event()
        self._started = time.time()
        self._power = PowerCycle(paths, plan.machine(paths), self, self._channel.run)
        self._ready = False
        self._exited = trio.Event()
        self._pressing = trio.CancelScope()
        """Of the attempts to end a guest without its agent."""
        self._answered = trio.Event()
        self._answered.set()
        self._peer: Hello | None = None
        self._guest_status: messages.Status | None = None
        self._guest_answered = trio.Event()
        self._trouble = ""
        self._ports = PortReports(self._forwarder)

    @property
    def ready(self) -> bool:
        """Whether the guest's ports have been known once."""
        return self._ready

    # ------------------------------------------------------------------ life

    async def run(self) -> None:
        """Serve until QEMU has ended; raises `UserError` when it cannot be started."""
        with ExitStack() as stack:
            try:
                stack.enter_context(self.events.written_to(self._paths.agent_log))
            except OSError as exc:
                raise UserError(f"{self._paths.agent_log} cannot be written: {exc}", "check its rights") from exc
            if failure := await self._serve():
                raise failure

    async def _serve(self) -> UserError | None:
        """Serve until the machine is off; why it could not be powered, if that is the reason."""
        failure = None
        async with trio.open_nursery() as nursery:
            await nursery.start(self._forwarder.run)
            await nursery.start(self._reverse.run)
            await nursery.start(serve_api, self, self._paths.api_socket)
            nursery.start_soon(self._watch_stalls)
            nursery.start_soon(self._watch_clock)
            try:
                self._end_of_machine(await self._power.run())
            except UserError as exc:
                failure = exc
                self._report(self._phases.fail(trio.current_time(), exc.message))
                self._end("it could not be started")
            with trio.move_on_after(ANSWER_BOUND):
                await self._answered.wait()
            nursery.cancel_scope.cancel()
        return failure

    def _end_of_machine(self, status: int | None) -> None:
        wanted = self._power.stopping or status == 0
        if not self._ready and (phase := self._phases.current) is not None:
            lines = "\n".join(last_lines(self._paths.serial_log, CONSOLE_LINES))
            words = "it was stopped meanwhile" if self._power.stopping else f"QEMU ended during {phase}\n{lines}"
            self._report(self._phases.fail(trio.current_time(), words))
        self._end("" if wanted else f"QEMU ended ({status})")

    def _end(self, reason: str) -> None:
        self.events.append("state", state=InstanceState.STOPPED, reason=reason)
        self._exited.set()
        self.events.close()

    async def stop(self, *, force: bool) -> str:
        """End the guest: ask its agent, then ACPI, then QEMU, then the kernel. Returns what was needed."""
        if self._exited.is_set():
            return StopStep.NOT_RUNNING
        if not self._power.stopping:
            self._power.stopping = True
            self.events.append("state", state=InstanceState.STOPPING, reason="asked to stop")
        self._answered = trio.Event()
        try:
            if force:
                return await self._power.stop(StopBounds(power_button=0))
            # A guest that boots has no agent yet, and most take no notice of the power button: whichever hears first.
            with trio.CancelScope() as self._pressing:
                if not self._channel.send(PowerOff(reboot=False)):
                    return await self._power.stop(StopBounds())
            with trio.move_on_after(GUEST_STOP_BOUND):
                await self._exited.wait()
                return "guest agent"
            return await self._power.stop(StopBounds())
        finally:
            self._answered.set()

    # ------------------------------------------------------------------ what QEMU does (PowerObserver)

    def qemu_starting(self) -> None:
        """QEMU is looked for, and started if there is none."""
        self._begin(Phase.QEMU)

    def qemu_started(self, detail: str) -> None:
        """QEMU runs: the guest boots or goes on."""
        self._report(self._phases.end(trio.current_time(), detail))
        self._begin(Phase.HELLO)

    def qemu_said(self, event: Event) -> None:
        """An event of the monitor."""
        self.events.append("qemu", name=event.name, data=event.data)

    def monitor_lost(self, reason: str) -> None:
        """There is no monitor any more."""
        self.events.append("log", level="info", message=reason)

    def guest_reset(self) -> None:
        """The guest boots again, and has no ports until then."""
        if self._phases.current is not None:
            self._report(self._phases.end(trio.current_time(), "reset: boots again"))
        self._forget_ports()
        self._ready = False
        self._trouble = "the guest was reset, and boots again"
        self.events.append("state", state=InstanceState.STARTING, reason=self._trouble)

    def _forget_ports(self) -> None:
        self._forwarder.replace(())
        self._forwarder.stall()

    # ------------------------------------------------------------------ watching

    async def _watch_stalls(self) -> None:
        """Say once for each phase that it takes too long, with the last lines of the console."""
        while True:
            self._phase_changed = trio.Event()
            with trio.move_on_at(self._phases.stall_due()):
                await self._phase_changed.wait()
                continue
            lines = last_lines(self._paths.serial_log, CONSOLE_LINES)
            detail = "\n".join(lines) or silent_console(self._paths.name, self._plan.accelerator)
            self._report(self._phases.stall(trio.current_time(), detail))

    async def _watch_clock(self) -> None:
        """Tell the guest the time after the host's clock jumped against its steady one."""
        offset = time.time() - trio.current_time()
        while True:
            await trio.sleep(CLOCK_INTERVAL)
            now_offset = time.time() - trio.current_time()
            if abs(now_offset - offset) > CLOCK_JUMP:
                self._channel.send(Clock(time.time_ns()))
            offset = now_offset

    # ------------------------------------------------------------------ what the channel says

    def generation_started(self, peer: Hello) -> None:
        """The guest agent is there."""
        rebooted = self._peer is not None and self._peer.boot_id != peer.boot_id
        self._peer, self._trouble = peer, ""
        self._ports.begin_generation()
        self._power.guest_said_hello()
        if rebooted:
            self._forget_ports()
        self._reverse.start(peer)
        self._channel.send(Clock(time.time_ns()))
        if self._power.stopping and self._channel.send(PowerOff(reboot=False)):
            self._pressing.cancel()
        self.events.append("guest", agent="present", version=peer.agent_version, boot_id=peer.boot_id)
        if self._phases.current is Phase.HELLO:
            self._report(self._phases.end(trio.current_time(), peer.description))
            self._begin(Phase.PORTS)

    def generation_ended(self, reason: str, *, fault: bool) -> None:
        """The guest agent is away."""
        self._trouble = reason
        self.events.append("guest", agent="away", reason=reason, fault=fault)
        self._forwarder.stall()
        self._reverse.stall()

    def distrusted(self, reason: str) -> None:
        """The guest agent is left alone for a while."""
        self._trouble = (
            f"{reason}. It is tried again every {PAUSE:.0f} s; if it goes on, `hostagent down` and `hostagent up` "
            "install a fresh agent"
        )
        self.events.append("guest", agent="failed", reason=self._trouble)
        self._forwarder.stall(self._trouble)

    def incompatible(self, peer: Hello) -> None:
        """The guest agent is of another age."""
        self._trouble = (
            f"guest agent {peer.agent_version} speaks protocol {peer.lowest_version} to {peer.highest_version}, and "
            f"this hostagent {PROTOCOL_VERSIONS[0]} to {PROTOCOL_VERSIONS[1]}: `hostagent down` and `hostagent up` "
            "install the agent that fits"
        )
        self.events.append("guest", agent="incompatible", reason=self._trouble)

    def message(self, message: Message) -> None:
        """Ports, their owners, and how the guest agent is doing."""
        match message:
            case PortsSnapshot() | PortsChanged() | PortOwners():
                if not self._ports.receive(message):
                    self._too_many_ports()
                if isinstance(message, PortsSnapshot) and message.last:
                    self._now_ready()
            case Listening() | ListenFailed():
                self._reverse.answer(message)
            case messages.Status():
                self._guest_status = message
                self._guest_answered.set()
            case _:
                pass  # what only a guest is told

    def _too_many_ports(self) -> None:
        if not self._trouble:
            self._trouble = f"the guest opened more than {MAX_PORTS} ports; the rest is not forwarded"
            self.events.append("log", level="warning", message=self._trouble)

    def _now_ready(self) -> None:
        if self._phases.current is Phase.PORTS and not self._power.stopping:
            count = len(self._forwarder.forwards)
            self._report(self._phases.end(trio.current_time(), f"{count} port{'' if count == 1 else 's'}"))
            self._ready = True
            self.events.append("state", state=InstanceState.RUNNING, reason="")
            self._announce({"event": "ready", "name": self._paths.name})

    # ------------------------------------------------------------------ what is shown

    def _begin(self, phase: Phase) -> None:
        self._report(self._phases.begin(phase, trio.current_time()))

    def _report(self, report: PhaseReport) -> None:
        self.events.append("phase", **asdict(report))
        self._announce({"event": "phase", **asdict(report)})
        self._phase_changed.set()

    def _forward_changed(self, forward: Forward, present: bool) -> None:
        owner = forward.owner
        self.events.append(
            "forward",
            protocol=forward.protocol,
            guest=str(forward.guest),
            host=[str(endpoint) for endpoint in forward.host],
            state=forward.state if present else "gone",
            reason=forward.reason if present else _why_gone(forward),
            process=owner.process if owner else None,
        )

    def _rules_changed(self, rules: RuleSet) -> None:
        self._forwarder.set_rules(rules)
        self._reverse.change(rules.standing())
        self.events.append("rules", rules=[str(rule) for rule in rules.rules], enabled=rules.enabled)

    def forwards(self) -> Sequence[Forward]:
        """All forwards, in the order of their guest ports."""
        return [*self._forwarder.forwards, *self._reverse.forwards]

    @property
    def rules(self) -> LiveRules:
        """The forwarding rules, which can change."""
        return self._rules

    async def refresh(self) -> None:
        """Ask the guest how it is doing, and wait a little for the answer."""
        self._guest_answered = trio.Event()
        if self._channel.send(StatusRequest()):
            with trio.move_on_after(REFRESH_BOUND):
                await self._guest_answered.wait()

    def status(self) -> Status:
        """The JSON of `hostagent status`."""
        plan, peer, guest = self._plan, self._peer, self._guest_status
        state = instance_state(
            qemu_runs=not self._exited.is_set(),
            ready=self._ready,
            agent_present=self._channel.running,
            stopping=self._power.stopping,
        )
        return {
            "name": self._paths.name,
            "state": state,
            "reason": self._trouble,
            "directory": str(self._paths.directory),
            "version": self._version,
            "since": self._started,
            "arch": plan.architecture,
            "cpus": plan.cpus,
            "memory": plan.memory,
            "disk": plan.disk_size,
            "image": plan.image,
            "accelerator": {"name": plan.accelerator, "warning": plan.accelerator_warning},
            "qemu_pid": self._power.pid,
            "phases": {str(phase): round(seconds, 3) for phase, seconds in self._phases.durations.items()},
            "guest_agent": {
                "present": self._channel.running,
                "version": peer.agent_version if peer else None,
                "seed_version": plan.agent_version,
                "boot_id": peer.boot_id if peer else None,
                "description": peer.description if peer else None,
                "capabilities": sorted(peer.capabilities) if peer else [],
                "sources": [_source_shape(source) for source in guest.sources] if guest else [],
                "counters": dict(guest.counters) if guest else {},
            },
        }

    @asynccontextmanager
    async def execute(self, target: CommandTarget) -> AsyncIterator[GuestExecution]:
        """Start a command in the guest; raises `UserError` when that cannot be done."""
        user = target.user or self._plan.user
        environment = (*self._plan.environment, *target.environment)
        execution = GuestExecution(self._channel)
        try:
            await execution.start(CommandTarget(target.arguments, environment, user, target.directory, target.terminal))
            yield execution
        finally:
            execution.close()


def _source_shape(source: WakeupSource) -> SourceShape:
    return {"name": source.name, "live": source.live, "reason": source.reason, "wakeups": source.wakeups}


def _why_gone(forward: Forward) -> str:
    if forward.kind in (ForwardKind.STATIC, ForwardKind.REVERSE):
        return "its rule is gone, or the guest's program has come"
    return "the guest closed the port"
