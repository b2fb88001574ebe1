"""What `up` decided about one instance, written down for its host agent.

The host agent reads this and nothing else: no YAML, no validation library, no image index. It stays valid for as long
as the QEMU that was started from it, so a host agent that takes over from a dead one finds the same answers.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hostagent.errors import UserError
from hostagent.forward_rules import BY_DEFAULT, ForwardRule, RuleSet
from hostagent.paths import InstancePaths
from hostagent.qemu.command_line import AcceleratorName, Architecture, Disk, HostForward, MachineSpec
from protocol.ports import Protocol


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """Everything that the host agent needs to know. Sizes in bytes."""

    architecture: str
    cpus: int
    memory: int
    disk_size: int
    accelerator: str
    accelerator_warning: str
    """Why it is not the best one, for `status`; empty when it is."""
    image: str
    """Where the image came from."""
    agent_version: str
    """Version of the guest agent on the seed."""
    user: str
    """Account in the guest."""
    kernel: str = ""
    initrd: str = ""
    kernel_command_line: str = ""
    firmware: str = ""
    forwarding: RuleSet = BY_DEFAULT
    environment: tuple[tuple[str, str], ...] = ()
    """Set for every command that `hostagent shell` starts."""
    host_forwards: tuple[HostForward, ...] = ()
    """QEMU's own forwards; used by the benchmark only."""
    configuration: dict[str, Any] = field(default_factory=dict)
    """The resolved configuration that the machine was started with; one that is read later tells its changes by it."""
    rules_added: int = 0
    """How many rules were ever added to the configuration's: the number in the name of the newest one."""

    def machine(self, paths: InstancePaths) -> MachineSpec:
        """The machine that QEMU is to be."""
        return MachineSpec(
            name=paths.name,
            architecture=Architecture(self.architecture),
            accelerator=AcceleratorName(self.accelerator),
            cpus=self.cpus,
            memory=self.memory,
            serial_log=paths.serial_log,
            disk=Disk(paths.disk),
            seed=paths.seed,
            kernel=_path(self.kernel),
            initrd=_path(self.initrd),
            kernel_command_line=self.kernel_command_line if self.kernel else None,
            firmware=_path(self.firmware),
            host_forwards=self.host_forwards,
        )


def _path(text: str) -> Path | None:
    return Path(text) if text else None


def write_plan(path: Path, plan: LaunchPlan) -> None:
    """Write `plan` as JSON, replacing an older one at once or not at all."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(dataclasses.asdict(plan), indent=2) + "\n", encoding="utf-8")
    fresh.replace(path)


def read_plan(path: Path) -> LaunchPlan:
    """The plan that `write_plan` wrote; `UserError` when there is none, or it is another version's."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        forwarding = rule_set(values.pop("forwarding"))
        forwards = tuple(HostForward(**forward) for forward in values.pop("host_forwards"))
        environment = tuple((str(name), str(value)) for name, value in values.pop("environment"))
        return LaunchPlan(**values, forwarding=forwarding, host_forwards=forwards, environment=environment)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as exc:
        raise UserError(
            f"{path} cannot be used: {exc}",
            "run `hostagent up` with the configuration file again, or delete the instance",
        ) from exc


def rule_set(values: dict[str, Any]) -> RuleSet:
    """The rules that `dataclasses.asdict` made `values` of; consumes them."""
    return RuleSet(rules=tuple(forward_rule(rule) for rule in values.pop("rules")), **values)


def forward_rule(values: dict[str, Any]) -> ForwardRule:
    """The rule that `dataclasses.asdict` made `values` of; consumes them."""
    protocol, guest_ports, host_ports = (values.pop(key) for key in ("protocol", "guest_ports", "host_ports"))
    return ForwardRule(
        protocol=None if protocol is None else Protocol(protocol),
        guest_ports=tuple(guest_ports),
        host_ports=None if host_ports is None else tuple(host_ports),
        **values,
    )
