"""`hostagent forward` and `hostagent config` against a served instance, as processes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostagent.instance_lock import try_lock
from tests.documents import problems
from tests.fakes.command_line import run
from tests.fakes.configured_instance import IMAGES, configure
from tests.fakes.instance_folder import unstarted_instance
from tests.fakes.served_instance import ServedInstance, served_in_thread


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ha-") as folder:
        yield Path(folder)


@pytest.fixture
def served(home: Path) -> Iterator[ServedInstance]:
    directory = home / "box"
    configure(directory, "")
    with try_lock(directory / "lock"), served_in_thread(directory / "api.sock") as instance:
        yield instance


def test_add_list_and_remove(served: ServedInstance, home: Path) -> None:
    added = run("forward", "add", "80", "8080", "--proto", "tcp", home=home)
    assert added.stdout == b"added.1: 127.0.0.1 80 (tcp) to 127.0.0.1 8080\n"
    document = json.loads(run("forward", "add", "any:3000-3009", "--ignore", "--json", home=home).stdout)
    assert problems(document, "RuleChange") == []
    lines = run("forward", "list", home=home).stdout.decode().splitlines()
    assert lines[0].split() == ["RULE", "PORTS", "WHAT", "IT", "SAYS"]
    names = [line.split()[0] for line in lines[1:]]
    assert [name for name in names if name != "built-in"] == ["added.2", "added.1"]
    document = json.loads(run("forward", "list", "--json", home=home).stdout)
    assert problems(document, "RuleList") == []
    assert (document["default"], document["enabled"]) == ("loopback", True)
    assert run("forward", "remove", "added.1", home=home).stdout.startswith(b"removed added.1: ")
    assert [rule.name for rule in served.instance.applied[-1].rules] == ["added.2"]


@pytest.mark.parametrize(
    ("guest", "text"),
    [("80", "ignore any 80 (any)"), ("80-90", "ignore any 80-90 (any)"), ("localhost:80", "ignore 127.0.0.1 80 (any)")],
)
def test_a_port_without_an_address_is_ignored_at_any(served: ServedInstance, home: Path, guest: str, text: str) -> None:
    assert run("forward", "add", guest, "--ignore", home=home).stdout.decode() == f"added.1: {text}\n"


def test_what_is_ignored_leads_nowhere(served: ServedInstance, home: Path) -> None:
    done = run("forward", "add", "80", "8080", "--ignore", home=home)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"--ignore takes GUEST alone" in done.stderr
    assert served.instance.applied == []


def test_names_of_added_rules_are_completed(served: ServedInstance, home: Path) -> None:
    environment = {"_HOSTAGENT_COMPLETE": "bash_complete", "COMP_WORDS": "hostagent forward remove", "COMP_CWORD": "3"}
    assert run(home=home, env=environment).stdout == b"\n"
    run("forward", "add", "80", home=home)
    assert run(home=home, env=environment).stdout == b"plain,added.1\n"
    served.end()
    assert run(home=home, env=environment).stdout == b"\n", "nobody is told while one types"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("add", "http"), b"error: 'http' is no end of a forward\nhint: write PORT"),
        (("add", "80", "0.0.0.0"), b"error: '0.0.0.0' is no end of a forward"),
        (("add", "80", "99999"), b"error: hostPort: must be at most 65535, not 99999"),
        (("add", "80", "--wait", "3"), b"error: wait: only a static forward"),
        (("remove", ""), b"error: the rule's name is missing\nhint: `hostagent forward list`"),
        (("remove", "added.9"), b"error: there is no rule 'added.9'\nhint: `hostagent forward list`"),
    ],
)
def test_what_a_user_can_mend(served: ServedInstance, home: Path, arguments: tuple[str, ...], words: bytes) -> None:
    done = run("forward", *arguments, home=home)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(words)
    assert served.instance.applied == []


def test_the_configuration_is_read_again(served: ServedInstance, home: Path) -> None:
    file = home / "box" / "config.yaml"
    file.write_text(IMAGES + "cpus: 7\nportForwards:\n- {guestPort: 80, hostPort: 8080}\n- {guestPort: 80}\n")
    done = run("config", "reload", home=home)
    assert done.stdout.startswith(b"2 rules hold\n")
    assert b"config.yaml:5:4: portForwards.1.guestPort: can never match: portForwards.0 above has all" in done.stderr
    assert b"cpus: after `hostagent down`" in run("config", "reload", home=home).stdout, "said for as long as it is so"
    other = home / "other.yaml"
    other.write_text(IMAGES + "forwardDefault: none\n")
    document = json.loads(run("config", "reload", str(other), "--name", "box", "--json", home=home).stdout)
    assert problems(document, "ReloadAnswer") == []
    assert not served.instance.applied[-1].forward_by_default
    other.write_text("portForwards: [{guestPort: x}]\n")
    done = run("config", "reload", str(other), home=home)
    assert done.returncode == 1
    assert f"{other}:1:28: portForwards.0.guestPort".encode() in done.stderr


def test_without_a_running_instance(home: Path) -> None:
    unstarted_instance(home / "box")
    for arguments in (("forward", "list"), ("forward", "add", "80"), ("config", "reload", "box")):
        done = run(*arguments, home=home)
        assert done.returncode == 1
        assert b"is not running" in done.stderr
