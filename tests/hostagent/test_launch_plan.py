"""A plan comes back as it was written, and nothing else is taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostagent.errors import UserError
from hostagent.forward_rules import ForwardRule, RuleSet
from hostagent.launch_plan import LaunchPlan, read_plan, write_plan
from hostagent.paths import InstancePaths
from hostagent.qemu.command_line import HostForward
from protocol.ports import Protocol

PLAN = LaunchPlan(
    architecture="x86_64",
    cpus=2,
    memory=2 << 30,
    disk_size=20 << 30,
    accelerator="tcg",
    accelerator_warning="no KVM",
    image="built from debian-12",
    agent_version="1.0+abc",
    user="ada",
    kernel="/images/vmlinuz",
    initrd="/images/initrd",
    kernel_command_line="root=LABEL=root",
    forwarding=RuleSet(
        rules=(
            ForwardRule("a rule", protocol=Protocol.UDP, guest_ports=(1, 9), host_ports=(11, 19)),
            ForwardRule("the same ports", "portForwards.1", host_socket="/tmp/a", static=True, wait=1.5),
        ),
        forward_by_default=False,
    ),
    environment=(("http_proxy", "http://192.0.2.1:3128"),),
    host_forwards=(HostForward(2000, 3000, "udp"),),
    configuration={"cpus": 2, "env": {"A": "b"}},
    rules_added=16,
)


def test_a_plan_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "launch.json"
    write_plan(path, PLAN)
    assert read_plan(path) == PLAN


def test_the_machine_has_the_instance_s_own_files(tmp_path: Path) -> None:
    paths = InstancePaths(tmp_path / "box")
    machine = PLAN.machine(paths)
    assert (machine.name, machine.seed, machine.serial_log) == ("box", paths.seed, paths.serial_log)
    assert machine.disk is not None
    assert machine.disk.path == paths.disk
    assert machine.kernel == Path("/images/vmlinuz")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"forwarding": {"rules": []}, "surprise": 1}', "null"])
def test_anything_else_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "launch.json"
    path.write_text(text)
    with pytest.raises(UserError, match="cannot be used"):
        read_plan(path)
