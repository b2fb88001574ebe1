"""Reads forwarding rules for a running host agent: `python -m hostagent.rule_reader FOLDER`, alive for a moment.

The host agent holds no YAML and no schema library in its memory; it asks this program, which is of the same version
and runs as the same user. The request is one JSON object on standard input, the answer one on standard output: rules
as `dataclasses.asdict` writes them, or a message and a hint. Nothing is changed before all of it is right.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hostagent.config.loader import HostDefaults, load_config, read_config
from hostagent.config.mistakes import ConfigError
from hostagent.config.resolved import dump_resolved, load_resolved
from hostagent.config.rules import forward_rules, rule_set
from hostagent.config.schema import Config
from hostagent.errors import UserError
from hostagent.guest_account import account_of, socket_variables
from hostagent.launch_plan import read_plan
from hostagent.paths import InstancePaths

_LIVE = {"portForwards", "forwardDefault", "forwarding"}
"""Keys of a configuration that change without a restart."""

_ENTRY = "portForwards.0"


@dataclass(frozen=True, slots=True)
class Rules:
    """Answers to the requests about one instance."""

    paths: InstancePaths

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to `request`; raises `UserError`."""
        if "entry" in request:
            return self._entry(request["entry"], request["name"])
        return self._file(Path(request["path"]) if request["path"] else self.paths.config)

    def _entry(self, entry: object, name: str) -> dict[str, Any]:
        """The rule that one entry of `portForwards` says."""
        config = self._running()
        document = {"images": [{"build": "debian-12"}], "portForwards": [entry]}
        try:
            loaded = load_config(json.dumps(document).encode(), "rule", HostDefaults("x86_64", 1))
        except ConfigError as exc:
            words = "; ".join(_without_place(mistake.path, mistake.message) for mistake in exc.mistakes)
            raise UserError(words or exc.message, "see `hostagent forward add --help`") from exc
        variables = socket_variables(self.paths, account_of(config))
        (rule,) = forward_rules(loaded.config.port_forwards, variables, lambda _: name)
        warnings = [_without_place(warning.path, warning.message) for warning in loaded.warnings]
        return {"rule": asdict(rule), "warnings": warnings}

    def _file(self, path: Path) -> dict[str, Any]:
        """The rules of a configuration, which becomes the instance's own."""
        running, loaded = self._running(), read_config(path)
        variables = socket_variables(self.paths, account_of(loaded.config))
        forwarding = rule_set(loaded.config, variables)
        self.paths.config.write_text(loaded.text, encoding="utf-8")
        self.paths.resolved_config.write_text(dump_resolved(loaded.config), encoding="utf-8")
        return {
            "forwarding": asdict(forwarding),
            "warnings": [warning.described(str(path)) for warning in loaded.warnings],
            "restart": _differences(running, loaded.config),
        }

    def _running(self) -> Config:
        """What the machine was started with, which a configuration that was read since does not change."""
        plan = read_plan(self.paths.launch_plan)
        return load_resolved(json.dumps(plan.configuration), str(self.paths.launch_plan))


def _without_place(path: str, message: str) -> str:
    key = path.removeprefix(_ENTRY).removeprefix(".")
    return f"{key}: {message}" if key else message


def _differences(old: Config, new: Config) -> list[str]:
    """Keys with other values, which take effect when the instance is started again."""
    before, after = old.model_dump(), new.model_dump()
    return sorted(key for key in before.keys() - _LIVE if before[key] != after[key])


def main() -> int:
    """Entry point; returns the exit code."""
    try:
        answer = Rules(InstancePaths(Path(sys.argv[1]))).answer(json.load(sys.stdin))
    except UserError as exc:
        answer = {"message": exc.message, "hint": exc.hint}
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
