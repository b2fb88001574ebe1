"""Rules change while an instance runs: by the real program that reads them, from real files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

from hostagent import live_rules
from hostagent.errors import UserError
from hostagent.forward_rules import RuleSet
from hostagent.launch_plan import read_plan, write_plan
from hostagent.live_rules import LiveRules
from hostagent.paths import InstancePaths
from tests.fakes.configured_instance import IMAGES, configure
from tests.fakes.instance_folder import PLAN

RULES = "portForwards:\n- {guestPort: 80, hostPort: 8080}\n- {guestPort: 81, ignore: true}\n"


class Changing:
    """The rules of an instance, and what was applied."""

    def __init__(self, folder: Path, text: str = RULES) -> None:
        self.paths: InstancePaths
        self.paths, plan = configure(folder, text)
        self.applied: list[RuleSet] = []
        self.live = LiveRules(self.paths, plan, self.applied.append)

    @property
    def names(self) -> list[str]:
        assert read_plan(self.paths.launch_plan).forwarding == self.live.rules, "the next host agent knows them"
        if self.applied:
            assert self.applied[-1] == self.live.rules
        return [rule.name for rule in self.live.rules.rules]


async def test_the_last_word_holds(tmp_path: Path) -> None:
    changing = Changing(tmp_path / "box")
    rule, warnings = await changing.live.add({"guestPort": 80, "hostPort": 9090})
    assert (rule.name, rule.host_port(80), warnings) == ("added.1", 9090, ())
    await changing.live.add({"guestSocket": "/run/a", "hostSocket": "a.sock", "reverse": True})
    assert changing.names == ["added.2", "added.1", "portForwards.0", "portForwards.1"]
    assert changing.live.rules.rules[0].host_socket == str(changing.paths.directory / "sock" / "a.sock")
    await changing.live.remove("added.2")
    await changing.live.remove("portForwards.0")
    assert changing.names == ["added.1", "portForwards.1"]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"guestPort": 70_000}, "guestPort: must be at most 65535, not 70000"),
        ({"guestPrt": 80}, "guestPrt: unknown key; did you mean 'guestPort'?"),
        ({"guestPortRange": [1, 9], "hostPortRange": [1, 8]}, "hostPortRange: has 8 ports, and the guest's side has 9"),
        ({"guestSocket": "/a"}, "a guestSocket needs a hostSocket or a hostPort"),
        ({"guestPort": 1, "hostPort": 0, "proto": "x"}, "hostPort: must be at least 1, not 0; proto: must be 'tcp'"),
        ({"guestPort": {"a": [1, "\x1b[2J"]}}, "guestPort: must be a whole number"),
    ],
)
async def test_a_rule_that_is_wrong_changes_nothing(tmp_path: Path, entry: dict[str, object], words: str) -> None:
    changing = Changing(tmp_path / "box")
    before = changing.names
    with pytest.raises(UserError) as caught:
        await changing.live.add(entry)
    assert words in caught.value.message
    assert (changing.names, changing.applied) == (before, [])


async def test_no_name_is_given_twice(tmp_path: Path) -> None:
    """A script that removes a rule twice must not hit another one, not even after the host agent was replaced."""
    changing = Changing(tmp_path / "box", "")
    await changing.live.add({"guestPort": 1})
    await changing.live.add({"guestPort": 2})
    await changing.live.remove("added.2")
    await changing.live.remove("added.1")
    await changing.live.reload("")
    successor = LiveRules(changing.paths, read_plan(changing.paths.launch_plan), changing.applied.append)
    rule, _warnings = await successor.add({"guestPort": 3})
    assert rule.name == "added.3"


async def test_a_rule_that_is_not_there(tmp_path: Path) -> None:
    changing = Changing(tmp_path / "box")
    with pytest.raises(UserError, match=r"no rule 'added\.7'"):
        await changing.live.remove("added.7")


async def test_not_more_rules_than_anybody_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_rules, "MAX_ADDED", 1)
    changing = Changing(tmp_path / "box")
    await changing.live.add({"guestPort": 80})
    with pytest.raises(UserError, match="1 rules were added already"):
        await changing.live.add({"guestPort": 81})


async def test_the_configuration_is_read_again(tmp_path: Path) -> None:
    """What was added stays, what was removed is back, and what needs a restart is named."""
    changing = Changing(tmp_path / "box")
    await changing.live.add({"guestPort": 90})
    await changing.live.remove("portForwards.1")
    changing.paths.config.write_text(IMAGES + "cpus: 7\nmemory: 3GiB\nforwardDefault: none\nplain: true\n" + RULES)
    reloaded = await changing.live.reload("")
    assert changing.names == ["added.1", "portForwards.0", "portForwards.1"]
    assert not changing.live.rules.forward_by_default
    assert set(reloaded.restart) - {"arch"} == {"cpus", "memory"}
    assert [warning.split(": ", 1)[1] for warning in reloaded.warnings] == [
        "plain: hostagent does not act on this key yet"
    ]
    assert (await changing.live.reload("")).restart == reloaded.restart, "they still wait for it"
    changing.paths.config.write_text(IMAGES + RULES)
    assert set((await changing.live.reload("")).restart) <= {"arch"}, "as it was started"


async def test_another_file_becomes_the_configuration(tmp_path: Path) -> None:
    changing = Changing(tmp_path / "box")
    other = tmp_path / "other.yaml"
    other.write_text(IMAGES + "forwarding: false\n")
    await changing.live.reload(str(other))
    assert changing.names == []
    assert not changing.live.rules.enabled
    assert changing.paths.config.read_text() == other.read_text()


async def test_a_file_that_is_wrong_changes_nothing(tmp_path: Path) -> None:
    changing = Changing(tmp_path / "box")
    before = changing.names, changing.paths.config.read_text()
    other = tmp_path / "other.yaml"
    other.write_text("portForwards:\n- {guestPort: 80, hostPort: 65536}\n- {guestPort: x}\n")
    with pytest.raises(UserError) as caught:
        await changing.live.reload(str(other))
    assert caught.value.message.splitlines()[1:] == [
        f"{other}:2:29: portForwards.0.hostPort: must be at most 65535, not 65536",
        f"{other}:3:15: portForwards.1.guestPort: must be a whole number, not 'x'",
    ]
    assert (changing.names, changing.paths.config.read_text()) == before


async def test_changes_are_made_one_after_the_other(tmp_path: Path) -> None:
    changing = Changing(tmp_path / "box", "")
    async with trio.open_nursery() as nursery:
        for number in (1, 2, 3):
            nursery.start_soon(changing.live.add, {"guestPort": number})
    assert changing.names == ["added.3", "added.2", "added.1"]


async def test_without_what_a_start_left_behind(tmp_path: Path) -> None:
    changing = Changing(tmp_path / "box")
    changing.paths.launch_plan.unlink()
    with pytest.raises(UserError, match=r"launch\.json cannot be used"):
        await changing.live.add({"guestPort": 1})


async def test_a_plan_of_another_version(tmp_path: Path) -> None:
    changing = Changing(tmp_path / "box")
    write_plan(changing.paths.launch_plan, PLAN)
    with pytest.raises(UserError, match=r"launch\.json is damaged, or was written by another version"):
        await changing.live.add({"guestPort": 1})


async def test_a_reader_that_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changing = Changing(tmp_path / "box")
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(UserError, match="could not be read"):
        await changing.live.add({"guestPort": 1})
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(slow))
    monkeypatch.setattr(live_rules, "READ_BOUND", 0.1)
    with pytest.raises(UserError, match="took more than"):
        await changing.live.add({"guestPort": 1})
