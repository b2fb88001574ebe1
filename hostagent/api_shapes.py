"""The JSON documents of the control API, which are also what `--json` prints: the shapes that scripts may rely on.

Keys are never renamed or removed within API version 1; new ones may be added. Times are Unix seconds, sizes and
traffic are bytes, states are lowercase words. Texts may come from the guest and can hold anything but are escaped to
ASCII where they are printed. The OpenAPI description is generated from these classes and their docstrings.

| command | prints |
|---|---|
| `ports --json` | `PortList` |
| `ports --watch --json` | a line with a `PortList` whenever something changed |
| `list --json` | `InstanceList` |
| `status --json` | `Instance`, and for a running instance also the keys of `Status` |
| `events --json` | a line with an `EventShape` for each event |
| `doctor --json` | `Diagnosis` |
| `up --json` | a line for each step, the last one `{"event": "ports", "ports": …}` |

The command line imports this module for type checking only: making these classes costs a tenth of its start.
"""

from __future__ import annotations

from typing import Any, TypedDict, final

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
    """One forward: a port that is open in the guest, or what a rule puts there, and what became of it on the host.

    `kind` is "socket", "nat" or "service" for a port that the guest opened, and "static" or "reverse" for what a rule
    alone makes; `protocol` is "tcp", "udp" or "unix".
    """

    state: str
    protocol: str
    host: list[EndpointShape | SocketShape]
    guest: EndpointShape | SocketShape
    kind: str
    owner: OwnerShape | None
    traffic: TrafficShape
    reason: str
    rule: str
    since: float


class PortList(TypedDict):
    """All ports of one instance, in the order of their guest ports."""

    ports: list[PortShape]


class EventShape(TypedDict):
    """One event. Further keys depend on the kind; "lost" (with `missed`) stands for events that are gone."""

    id: int
    time: float
    kind: str


class Status(TypedDict):
    """A running instance. Further keys describe its phases, guest, accelerator, sources and counters."""

    state: str


class Stopped(TypedDict):
    """What it took to shut the guest down: "guest agent", "acpi", "quit" or "kill"."""

    stopped_by: str


class ErrorShape(TypedDict):
    """Why a request failed, and what to do next."""

    message: str
    hint: str


class Instance(TypedDict):
    """One instance on this host. Sizes are bytes; `pid` is the host agent's, null while there is none."""

    name: str
    state: str
    pid: int | None
    arch: str
    cpus: int
    memory: int
    disk: int
    directory: str
    error: str


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


Document = dict[str, Any]
"""A parsed JSON object whose keys depend on its kind."""
