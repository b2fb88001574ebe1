"""The rules of a running instance, and how they change: one entry added or removed, or the configuration read again.

What was added decides before the configuration's rules, the newest first, so that the last word a user said holds. It
lasts until the instance is stopped: it is in the launch plan, from which the next host agent of the same guest begins.
One change is made after the other.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import trio

from hostagent.errors import UserError
from hostagent.forward_rules import ForwardRule, RuleSet
from hostagent.launch_plan import LaunchPlan, forward_rule, write_plan
from hostagent.launch_plan import rule_set as rule_set_of
from hostagent.paths import InstancePaths

READ_BOUND = 60.0
"""Seconds that reading rules may take, on a machine that is busy."""

ADDED = "added."
"""What names of added rules begin with."""

MAX_ADDED = 1_000


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What reading the configuration again led to."""

    rules: RuleSet
    warnings: tuple[str, ...]
    restart: tuple[str, ...]
    """Keys with other values than the instance was started with, which take effect when it is started again."""


class LiveRules:
    """The rules of one instance. `apply` is told of each new set."""

    def __init__(self, paths: InstancePaths, plan: LaunchPlan, apply: Callable[[RuleSet], None]) -> None:
        self._paths = paths
        self._plan = plan
        self._apply = apply
        self._lock = trio.Lock()

    @property
    def rules(self) -> RuleSet:
        """The rules that hold."""
        return self._plan.forwarding

    async def add(self, entry: Mapping[str, Any]) -> tuple[ForwardRule, tuple[str, ...]]:
        """Let an entry of `portForwards` hold before all others; the rule and warnings. Raises `UserError`."""
        async with self._lock:
            rules = self.rules
            added = [rule for rule in rules.rules if rule.name.startswith(ADDED)]
            if len(added) >= MAX_ADDED:
                raise UserError(f"{MAX_ADDED} rules were added already", "remove some, or write them into config.yaml")
            number = self._plan.rules_added + 1  # never one that was removed: a script may still mean that by it
            answer = await self._read({"entry": dict(entry), "name": f"{ADDED}{number}"})
            rule = forward_rule(answer["rule"])
            await self._use(replace(rules, rules=(rule, *rules.rules)), number)
            return rule, tuple(answer["warnings"])

    async def remove(self, name: str) -> ForwardRule:
        """Let the rule `name` hold no longer; raises `UserError` when there is none."""
        async with self._lock:
            rules = self.rules
            for rule in rules.rules:
                if rule.name == name:
                    await self._use(replace(rules, rules=tuple(one for one in rules.rules if one is not rule)))
                    return rule
            raise UserError(f"there is no rule {name!r}", "`hostagent forward list` shows the names of all")

    async def reload(self, path: str) -> Reloaded:
        """Let the rules of the configuration at `path` hold, or of the instance's own; raises `UserError`."""
        async with self._lock:
            answer = await self._read({"path": path})
            fresh = rule_set_of(answer["forwarding"])
            added = tuple(rule for rule in self.rules.rules if rule.name.startswith(ADDED))
            await self._use(replace(fresh, rules=(*added, *fresh.rules)))
            return Reloaded(self.rules, tuple(answer["warnings"]), tuple(answer["restart"]))

    async def _use(self, rules: RuleSet, rules_added: int | None = None) -> None:
        plan = replace(self._plan, forwarding=rules, rules_added=rules_added or self._plan.rules_added)
        try:
            await trio.to_thread.run_sync(write_plan, self._paths.launch_plan, plan)
        except OSError as exc:
            raise UserError(f"{self._paths.launch_plan} cannot be written: {exc.strerror}", "make room there") from exc
        self._plan = plan
        self._apply(rules)

    async def _read(self, request: dict[str, Any]) -> dict[str, Any]:
        with trio.move_on_after(READ_BOUND):
            done = await trio.run_process(
                [sys.executable, "-m", "hostagent.rule_reader", str(self._paths.directory)],
                stdin=json.dumps(request).encode(),
                capture_stdout=True,
                stderr=subprocess.DEVNULL,
                check=False,
            )
            return _understood(done.stdout)
        raise UserError(f"reading the rules took more than {READ_BOUND:.0f} s", "try again when the host is less busy")


def _understood(output: bytes) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads(output)
    except ValueError as exc:
        raise UserError("the rules could not be read", "check them with `hostagent validate FILE`") from exc
    if "message" in answer:
        raise UserError(answer["message"], answer["hint"])
    return answer
