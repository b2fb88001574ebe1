"""The instances on disk: which there are, what state they are in, and how one is deleted."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from hostagent.api_client import ApiClient
from hostagent.errors import UserError
from hostagent.instance_lock import host_agent_pid, is_locked, try_lock
from hostagent.lifecycle import InstanceState
from hostagent.paths import InstancePaths, home
from hostagent.qemu.pid_file import is_held


@dataclass(frozen=True, slots=True)
class InstanceSummary:
    """One instance as `list` shows it; sizes in bytes, 0 when unknown."""

    name: str
    state: InstanceState
    pid: int | None
    arch: str
    cpus: int
    memory: int
    disk: int
    directory: Path
    error: str


def is_instance(paths: InstancePaths) -> bool:
    """Whether the folder is one of ours: whoever sets HOSTAGENT_HOME may keep other things there, too."""
    try:
        return any(file.exists() for file in (paths.config, paths.launch_plan, paths.lock, paths.up_lock))
    except OSError:  # somebody else's folder, above all root's: `list` shows that it cannot be looked at
        return True


def instance_folders() -> list[InstancePaths]:
    """Where the instances are, by name; none of them is asked anything. Raises `OSError`."""
    if not home().is_dir():
        return []
    folders = (path for path in sorted(home().iterdir()) if path.is_dir() and not path.name.startswith("."))
    return [paths for paths in map(InstancePaths, folders) if is_instance(paths)]


def list_instances() -> list[InstanceSummary]:
    """All instances, by name. One that makes no sense is `broken`, and says why."""
    return [_summary(paths) for paths in instance_folders()]


def _summary(paths: InstancePaths) -> InstanceSummary:
    try:
        state, pid, error = _state(paths)
        plan, flaw = _plan(paths)
    except OSError as exc:  # somebody else's folder, above all root's
        state, pid, plan, error = InstanceState.BROKEN, None, {}, f"it cannot be looked at: {exc.strerror}"
    if state is InstanceState.STOPPED:
        state, error = (InstanceState.BROKEN if plan is None else state), flaw
    return InstanceSummary(
        name=paths.name,
        state=state,
        pid=pid,
        arch=str((plan or {}).get("architecture", "")),
        cpus=_number(plan, "cpus"),
        memory=_number(plan, "memory"),
        disk=_number(plan, "disk_size"),
        directory=paths.directory,
        error=error,
    )


def _plan(paths: InstancePaths) -> tuple[dict[str, object] | None, str]:
    """The launch plan as far as it can be read (None: not at all), and what is wrong with it."""
    try:
        plan = json.loads(paths.launch_plan.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, "never started: `hostagent up` prepares it"
    except ValueError as exc:
        return None, f"{paths.launch_plan.name} cannot be read: {exc}"
    if not isinstance(plan, dict):
        return None, f"{paths.launch_plan.name} cannot be read: it is no JSON object"
    return plan, ""


def _number(plan: dict[str, object] | None, key: str) -> int:
    value = (plan or {}).get(key)
    return value if isinstance(value, int) else 0


def _state(paths: InstancePaths) -> tuple[InstanceState, int | None, str]:
    """State, the host agent's process, and what is wrong."""
    if is_locked(paths.lock):
        try:
            status = ApiClient(paths).status()
            state = InstanceState(str(status["state"]))
            wrong = str(status["reason"]) or ("its guest agent is away" if state is InstanceState.DEGRADED else "")
            return state, host_agent_pid(paths), wrong
        except (UserError, KeyError, ValueError):  # not ready to answer, or of another version
            return InstanceState.STARTING, None, ""
    if is_held(paths.qemu_pid):
        return InstanceState.DEGRADED, None, "its host agent is gone, and QEMU runs: `hostagent up` takes it over"
    return (InstanceState.STARTING if is_locked(paths.up_lock) else InstanceState.STOPPED), None, ""


def find_instance(name: str | None) -> InstancePaths:
    """The instance `name`, or the only one there is; raises `UserError` that names the candidates otherwise."""
    names = [paths.name for paths in instance_folders()]
    if name is None:
        if len(names) == 1:
            return InstancePaths.of(names[0])
        if not names:
            raise UserError("there is no instance yet", "`hostagent up` makes one")
        raise UserError("there is more than one instance", f"name one of: {', '.join(names)}")
    paths = InstancePaths.of(name)
    if not paths.directory.is_dir() or not is_instance(paths):
        known = (
            f"the instances are: {', '.join(names)}" if names else "there is no instance yet: `hostagent up` makes one"
        )
        raise UserError(f"there is no instance {name!r}", known)
    return paths


def require_stopped(paths: InstancePaths) -> None:
    """Raise `UserError` when the instance runs, which only `delete_instance` with `force` removes."""
    if runs(paths):
        raise UserError(f"{paths.name} is running", f"`hostagent down {paths.name}` first, or delete it with --force")


def runs(paths: InstancePaths) -> bool:
    """Whether there is a host agent or a QEMU."""
    return is_locked(paths.lock) or is_held(paths.qemu_pid)


def delete_instance(paths: InstancePaths, *, force: bool) -> None:
    """Remove the instance and its disk. One that runs is only removed with `force`, which ends it first."""
    if paths.directory.is_symlink():
        raise UserError(
            f"{paths.directory} is a link to {paths.directory.resolve()}", "remove the link and that folder yourself"
        )
    if not force:
        require_stopped(paths)
    elif runs(paths):
        from hostagent.shutdown import UP_BOUND, down, wait_for  # of this path only, since they cost trio's import

        down(paths, force=True, show=lambda _: None)
        wait_for(lambda: not is_locked(paths.up_lock), UP_BOUND)
    try:
        with try_lock(paths.up_lock) as prepared_by_nobody, try_lock(paths.lock) as free:
            if not (prepared_by_nobody and free):
                raise UserError(f"{paths.name} is being started", "wait until it is up, or interrupt that `up`")
            shutil.rmtree(paths.directory)
    except OSError as exc:
        raise UserError(f"{paths.directory} cannot be removed: {exc.strerror}", "check its rights") from exc
