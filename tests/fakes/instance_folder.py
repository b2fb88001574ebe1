"""Instances on disk, as `up` leaves them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hostagent.launch_plan import LaunchPlan, write_plan
from hostagent.paths import InstancePaths

PLAN = LaunchPlan(
    architecture="x86_64",
    cpus=2,
    memory=2 << 30,
    disk_size=20 << 30,
    accelerator="tcg",
    accelerator_warning="",
    image="debian-12",
    agent_version="1.0",
    user="root",
)


def instance_folder(name: str, **changes: object) -> InstancePaths:
    """The folder of an instance that was prepared and does not run."""
    paths = InstancePaths.of(name)
    paths.directory.mkdir(mode=0o700, parents=True)
    write_plan(paths.launch_plan, dataclasses.replace(PLAN, **changes))  # type: ignore[arg-type]
    return paths


def unstarted_instance(directory: Path) -> Path:
    """The folder of an instance that has a configuration, and was never started."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").touch()
    return directory
