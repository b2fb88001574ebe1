"""An instance's folder with a configuration, as a running host agent finds it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from hostagent.config.loader import HostDefaults, load_config
from hostagent.config.resolved import dump_resolved
from hostagent.config.rules import rule_set
from hostagent.guest_account import account_of, socket_variables
from hostagent.launch_plan import LaunchPlan, write_plan
from hostagent.paths import InstancePaths
from tests.fakes.instance_folder import PLAN

IMAGES = "images: [{build: debian-12}]\n"


def configure(folder: Path, text: str, host: HostDefaults | None = None) -> tuple[InstancePaths, LaunchPlan]:
    """Write the files of an instance that was started with the configuration `text`; its paths and launch plan."""
    folder.mkdir(mode=0o700, exist_ok=True)
    paths = InstancePaths(folder)
    loaded = load_config((IMAGES + text).encode(), "config.yaml", host)
    rules = rule_set(loaded.config, socket_variables(paths, account_of(loaded.config)))
    resolved = dump_resolved(loaded.config)
    plan = dataclasses.replace(PLAN, forwarding=rules, configuration=json.loads(resolved))
    paths.config.write_text(loaded.text, encoding="utf-8")
    paths.resolved_config.write_text(resolved, encoding="utf-8")
    write_plan(paths.launch_plan, plan)
    return paths, plan
