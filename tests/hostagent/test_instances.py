"""Listing shows every instance as what it is, and none keeps the others from being shown."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from hostagent import shutdown
from hostagent.errors import UserError
from hostagent.instance_lock import held_lock, try_lock
from hostagent.instances import delete_instance, find_instance, list_instances
from hostagent.lifecycle import InstanceState
from hostagent.paths import InstancePaths, home
from hostagent.qemu.pid_file import ProcessIdentity, hold_pid_file
from tests.fakes.instance_folder import PLAN, instance_folder
from tests.fakes.privileges import without_root
from tests.fakes.served_instance import served_in_thread


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOSTAGENT_HOME", str(tmp_path / "home"))


def test_no_instances() -> None:
    assert list_instances() == []
    assert not home().exists(), "asking creates nothing"
    home().mkdir()
    assert list_instances() == []


def test_a_stopped_instance() -> None:
    paths = instance_folder("web")
    (summary,) = list_instances()
    assert (summary.name, summary.state, summary.pid, summary.error) == ("web", InstanceState.STOPPED, None, "")
    assert (summary.arch, summary.cpus, summary.memory, summary.disk) == ("x86_64", 2, PLAN.memory, PLAN.disk_size)
    assert summary.directory == paths.directory


def test_what_is_no_instance_is_not_listed() -> None:
    instance_folder("web")
    (home() / ".trash").mkdir()
    (home() / "notes.txt").touch()
    (home() / "documents").mkdir()
    (home() / "documents" / "thesis.txt").touch()
    assert [summary.name for summary in list_instances()] == ["web"]
    with pytest.raises(UserError, match="no instance 'documents'"):  # so nothing can delete it either
        find_instance("documents")


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"text"', "\0", "{'a': 1}"])
def test_a_plan_that_makes_no_sense(text: str) -> None:
    instance_folder("good")
    instance_folder("bad").launch_plan.write_text(text)
    bad, good = list_instances()
    assert (bad.state, good.state) == (InstanceState.BROKEN, InstanceState.STOPPED)
    assert bad.error.startswith("launch.json cannot be read")


@pytest.mark.parametrize("value", ['"many"', "null", "[]", "1.5"])
def test_values_that_make_no_sense_are_unknown(value: str) -> None:
    instance_folder("web").launch_plan.write_text(f'{{"cpus": {value}, "memory": {value}}}')
    (summary,) = list_instances()
    assert (summary.cpus, summary.memory, summary.disk) == (0, 0, 0)


def test_a_plan_that_is_not_text() -> None:
    instance_folder("web").launch_plan.write_bytes(b"\xff\xfe")
    assert list_instances()[0].state is InstanceState.BROKEN


def test_an_instance_that_never_started() -> None:
    paths = InstancePaths.of("web")
    paths.directory.mkdir(parents=True)
    paths.config.touch()
    (summary,) = list_instances()
    assert (summary.state, summary.error) == (InstanceState.STOPPED, "never started: `hostagent up` prepares it")


def test_a_folder_that_may_not_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folder lets nobody but its user in
        Path(folder).chmod(0o755)
        monkeypatch.setenv("HOSTAGENT_HOME", folder)
        paths = instance_folder("closed")
        paths.directory.chmod(0)
        with without_root():
            (summary,) = list_instances()
        paths.directory.chmod(0o700)
    assert summary.state is InstanceState.BROKEN
    assert summary.error == "it cannot be looked at: Permission denied"


def test_an_instance_that_is_being_prepared() -> None:
    paths = InstancePaths.of("web")
    paths.directory.mkdir(parents=True)
    with try_lock(paths.up_lock):
        (summary,) = list_instances()
        assert (summary.state, summary.error) == (InstanceState.STARTING, "")


def test_a_host_agent_that_does_not_answer_yet() -> None:
    paths = instance_folder("web")
    with try_lock(paths.lock):
        assert list_instances()[0].state is InstanceState.STARTING


def test_a_running_one_has_its_host_agents_pid() -> None:
    paths = instance_folder("web")
    with served_in_thread(paths.api_socket), held_lock(paths):
        (summary,) = list_instances()
    assert (summary.state, summary.pid) == (InstanceState.RUNNING, os.getpid())


@pytest.mark.parametrize(("reason", "error"), [("", "its guest agent is away"), ("it hangs", "it hangs")])
def test_one_whose_guest_agent_is_away_says_so_and_not_that_its_host_agent_is(reason: str, error: str) -> None:
    paths = instance_folder("web")
    with served_in_thread(paths.api_socket) as served, held_lock(paths):
        served.instance.state, served.instance.reason = "degraded", reason
        (summary,) = list_instances()
    assert (summary.state, summary.error) == (InstanceState.DEGRADED, error)


def test_a_qemu_without_its_host_agent() -> None:
    paths = instance_folder("web")
    with hold_pid_file(paths.qemu_pid) as pid_file:
        pid_file.record(ProcessIdentity(os.getpid(), 0.0))
        (summary,) = list_instances()
        assert summary.state is InstanceState.DEGRADED
        assert "takes it over" in summary.error


def test_finding_by_name() -> None:
    with pytest.raises(UserError, match="no instance 'web'") as caught:
        find_instance("web")
    assert "`hostagent up` makes one" in caught.value.hint
    instance_folder("web")
    assert find_instance("web") == InstancePaths.of("web")
    with pytest.raises(UserError, match="no instance 'db'") as caught:
        find_instance("db")
    assert caught.value.hint == "the instances are: web"
    with pytest.raises(UserError, match="usable instance name"):
        find_instance("../web")


def test_finding_without_a_name() -> None:
    with pytest.raises(UserError, match="no instance yet"):
        find_instance(None)
    instance_folder("web")
    assert find_instance(None).name == "web"
    instance_folder("db")
    with pytest.raises(UserError, match="more than one") as caught:
        find_instance(None)
    assert caught.value.hint == "name one of: db, web"


def test_deleting_removes_the_folder() -> None:
    paths = instance_folder("web")
    instance_folder("db")
    delete_instance(paths, force=False)
    assert [summary.name for summary in list_instances()] == ["db"]


def test_a_link_is_left_to_whoever_made_it(tmp_path: Path) -> None:
    elsewhere = tmp_path / "big disk"
    instance_folder("web").directory.rename(elsewhere)
    (home() / "web").symlink_to(elsewhere)
    before = sorted(elsewhere.iterdir())
    with pytest.raises(UserError, match=f"a link to {elsewhere}"):
        delete_instance(find_instance("web"), force=True)
    assert sorted(elsewhere.iterdir()) == before


@pytest.mark.parametrize("force", [True, False])
def test_what_is_being_prepared_is_not_deleted(force: bool) -> None:
    paths = instance_folder("web")
    with try_lock(paths.up_lock), pytest.raises(UserError, match="is being started"):
        delete_instance(paths, force=force)
    assert paths.launch_plan.exists()


def test_what_runs_is_not_deleted_without_force() -> None:
    paths = instance_folder("web")
    with try_lock(paths.lock), pytest.raises(UserError, match="is running") as caught:
        delete_instance(paths, force=False)
    assert "--force" in caught.value.hint
    assert paths.launch_plan.exists()


def test_an_orphan_is_ended_and_deleted_with_force() -> None:
    paths = instance_folder("web")
    with hold_pid_file(paths.qemu_pid) as pid_file:
        orphan = subprocess.Popen(["sleep", "60"], pass_fds=[pid_file.fd], start_new_session=True)
        pid_file.record(ProcessIdentity(orphan.pid, 0.0))
    with orphan:
        delete_instance(paths, force=True)
        assert orphan.wait() != 0
    assert not paths.directory.exists()


def test_an_up_whose_machine_was_ended_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It notices a moment later, and holds its lock until then."""
    paths = instance_folder("web")
    command = ["flock", str(paths.lock), "flock", str(paths.up_lock), "sh", "-c", "echo; read end; sleep 0.2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as up:
        assert up.stdout is not None
        assert up.stdout.readline() == b"\n"
        stdin = up.stdin
        assert stdin is not None
        monkeypatch.setattr(shutdown, "down", lambda *_, **__: stdin.close())
        delete_instance(paths, force=True)
    assert not paths.directory.exists()


def test_a_folder_that_cannot_be_removed_is_told() -> None:
    paths = InstancePaths.of("web")
    with pytest.raises(UserError, match="cannot be removed"):
        delete_instance(paths, force=False)
