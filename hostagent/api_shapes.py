"""The JSON documents of the control API, which are also what `--json` prints: the shapes that scripts may rely on.

Keys are never renamed or removed within API version 1; new ones may be added. Times are Unix seconds, sizes and
traffic are bytes, states are lowercase words. Texts may come from the guest and can hold anything but are escaped to
ASCII where they are printed. API.md and openapi.json are generated from these classes and their docstrings by
build/describe_api.py, and tests hold the real documents to them. The string below a key describes it there.

The command line imports this module for type checking only: making these classes costs a tenth of its start.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict, final

API_VERSION = 1


@final
class EndpointShape(TypedDict):
    """An address and a port."""

    address: str
    port: int


@final
class SocketShape(TypedDict):
    """A unix socket's absolute path."""

    path: str


class OwnerShape(TypedDict):
    """The process behind a guest port."""

    process: str
    pid: int
    uid: int
    unit: str


class TrafficShape(TypedDict):
    """Counters of one forward since it began."""

    connections: int
    connections_total: int
    connections_refused: int
    bytes_to_guest: int
    bytes_to_host: int
    datagrams_to_guest: int
    datagrams_to_host: int
    datagrams_dropped: int


class PortShape(TypedDict):
    """One forward: a port that is open in the guest, or what a rule puts there, and what became of it on the host."""

    state: str
    """"listening", "conflict", "denied", "ignored", "stalled" or "failed"."""
    protocol: str
    """"tcp", "udp" or "unix"."""
    host: list[EndpointShape | SocketShape]
    """Where it listens, or would; empty when no rule forwards it. Of a reverse one: where it leads to."""
    guest: EndpointShape | SocketShape
    kind: str
    """"socket", "nat" or "service" for a port that the guest opened; "static" or "reverse" for what a rule makes."""
    owner: OwnerShape | None
    traffic: TrafficShape
    reason: str
    """Why it is in this state, with the next step; empty while all is well."""
    rule: str
    """The rule that decided."""
    since: float
    """When it came into this state."""


class PortList(TypedDict):
    """All ports of one instance, in the order of their guest ports."""

    ports: list[PortShape]


class EventShape(TypedDict):
    """What every event has; further keys depend on the kind."""

    id: int
    """Grows by one with every event, also across restarts of the host agent."""
    time: float
    kind: str


class PhaseEvent(EventShape):
    """Kind "phase": a step of the start."""

    phase: str
    """"qemu", "hello" or "ports"."""
    state: str
    """"started", "stalled", "done" or "failed"."""
    seconds: float
    detail: str


class StateEvent(EventShape):
    """Kind "state": the instance is in another state."""

    state: str
    """"running", "starting" (again, after a reset of the guest), "stopping" or "stopped"."""
    reason: str


class ForwardEvent(EventShape):
    """Kind "forward": a forward came, went or changed."""

    protocol: str
    guest: str
    host: list[str]
    state: str
    """As in `PortShape`, or "gone"."""
    reason: str
    process: str | None


class GuestEvent(EventShape):
    """Kind "guest": the guest agent came or went."""

    agent: str
    """"present", "away", "failed" (it broke the protocol's rules and is left alone for a while) or "incompatible"."""
    reason: NotRequired[str]
    version: NotRequired[str]
    boot_id: NotRequired[str]
    fault: NotRequired[bool]


class QemuEvent(EventShape):
    """Kind "qemu": an event of QEMU's monitor, as QEMU says it."""

    name: str
    data: dict[str, Any]


class LogEvent(EventShape):
    """Kind "log": what the host agent writes for its developers."""

    level: str
    message: str
    logger: NotRequired[str]
    traceback: NotRequired[str]


class RulesEvent(EventShape):
    """Kind "rules": the forwarding rules were changed."""

    rules: list[str]
    """Those of the user, in order and in words."""
    enabled: bool
    """Whether anything is forwarded at all."""


class LostEvent(EventShape):
    """Kind "lost": events before the next one are gone; agent.log may still have them."""

    missed: int | None
    """How many; null when the id that was asked for belongs to another life of the instance."""


AnyEvent = PhaseEvent | StateEvent | ForwardEvent | GuestEvent | QemuEvent | RulesEvent | LogEvent | LostEvent


class AcceleratorShape(TypedDict):
    """What runs the guest's code."""

    name: str
    """"kvm", "hvf" or "tcg"."""
    warning: str


class SourceShape(TypedDict):
    """One of the ways in which the guest's kernel tells that something changed."""

    name: str
    live: bool
    reason: str
    """Why it is not live."""
    wakeups: int


class GuestAgentShape(TypedDict):
    """The guest agent; null and empty values stand for what it has not said yet."""

    present: bool
    version: str | None
    seed_version: str
    """The version that the next boot will have."""
    boot_id: str | None
    description: str | None
    capabilities: list[str]
    sources: list[SourceShape]
    counters: dict[str, int]


class Status(TypedDict):
    """A running instance, as its host agent knows it."""

    name: str
    state: str
    """"starting", "running", "degraded" (without a guest agent) or "stopping"."""
    reason: str
    """What is wrong with the guest agent, and the next step; empty while all is well."""
    directory: str
    version: str
    since: float
    arch: str
    cpus: int
    memory: int
    disk: int
    image: str
    accelerator: AcceleratorShape
    qemu_pid: int | None
    phases: dict[str, float]
    """Seconds that each finished step of the start took."""
    guest_agent: GuestAgentShape


class RuleShape(TypedDict):
    """One forwarding rule."""

    name: str
    """What to call it to remove it: "portForwards.0" is the first of the configuration; empty for built-in rules."""
    text: str
    """The rule in words."""
    origin: str
    """"configuration", "added" or "built-in"."""
    ports: int
    """How many forwards it decides about now."""


class RuleList(TypedDict):
    """All forwarding rules, in the order in which they are asked: the first that matches a port decides."""

    rules: list[RuleShape]
    default: str
    """What becomes of a port that no rule matches: "loopback" or "none"."""
    enabled: bool
    """Whether anything is forwarded at all."""


class RuleRequest(TypedDict, total=False):
    """A rule, with the keys of an entry of portForwards in a configuration."""

    guestIP: str
    guestIPMustBeZero: bool
    guestPort: int
    guestPortRange: list[int]
    guestSocket: str
    hostIP: str
    hostPort: int
    hostPortRange: list[int]
    hostSocket: str
    proto: str
    reverse: bool
    ignore: bool
    static: bool
    wait: float


class RuleChange(TypedDict):
    """The rule that was added or removed."""

    rule: RuleShape
    warnings: list[str]


class ReloadAnswer(TypedDict):
    """What reading the configuration again led to."""

    rules: int
    """How many rules of the user's there are now, added ones too."""
    warnings: list[str]
    restart: list[str]
    """Keys with other values than the instance was started with; they take effect when it is started again."""


class Stopped(TypedDict):
    """What it took: "guest agent", "power button", "quit", "terminated", "killed", or "interrupted start" of QEMU."""

    stopped_by: str


class ErrorShape(TypedDict):
    """Why a request failed, and what to do next."""

    message: str
    hint: str


class Instance(TypedDict):
    """One instance on this host. What is not known of one that does not run is empty or 0."""

    name: str
    state: str
    """"running", "starting", "stopping", "degraded" (without a guest agent), "stopped" or "broken"."""
    pid: int | None
    """The host agent's; null while there is none."""
    arch: str
    cpus: int
    memory: int
    disk: int
    directory: str
    error: str
    """Why something of this is not known."""


class InstanceList(TypedDict):
    """All instances on this host, by name."""

    instances: list[Instance]


class CheckShape(TypedDict):
    """One thing that hostagent needs of this host. `state` is "ok", "warning" or "problem"."""

    name: str
    state: str
    reason: str
    next_step: str


class Diagnosis(TypedDict):
    """What `doctor` found."""

    checks: list[CheckShape]


class Shutdown(TypedDict):
    """What `down` did."""

    name: str
    stopped_by: str
    """As in `Stopped`, or "not running"."""
    seconds: float


PRINTED = (InstanceList, Diagnosis, Shutdown)
"""What only commands print."""

Document = dict[str, Any]
"""A parsed JSON object whose keys depend on its kind."""
