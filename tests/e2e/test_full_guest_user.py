"""A normal user, without root and without /dev/kvm, with an instance beside root's."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostagent import paths
from tests.e2e.test_full_guest import answers
from tests.e2e.vm import BOOT_SECONDS, CONFIGURATION, Installation, Vm, installation, wait_until

pytestmark = [pytest.mark.full_guest, pytest.mark.timeout(1500)]

USER = f"hatester{os.getpid()}"  # what a killed run has left behind is not in the way


@pytest.fixture(scope="module")
def user() -> Iterator[pwd.struct_passwd]:
    """An account that was made for this and is removed again."""
    subprocess.run(["useradd", "--create-home", "--shell", "/bin/sh", USER], check=True)
    try:
        yield pwd.getpwnam(USER)
    finally:
        subprocess.run(["userdel", "--remove", USER], check=True, capture_output=True)


def shared_cache(user: pwd.struct_passwd) -> Path:
    """The user's own cache, with root's image in it and what a guest agent is frozen from, but no guest agent."""
    target = Path(user.pw_dir) / ".cache" / "hostagent"
    target.mkdir(parents=True)
    # Another checkout's freeze may replace the packages just now.
    lock = paths.cache() / "freeze" / "freeze.lock"
    lock.parent.mkdir(exist_ok=True)
    for source in (paths.cache() / name for name in ("images", "debian-root", "freeze")):
        if source.exists():  # else the user makes it anew
            command = ["flock", str(lock), "cp", "-a", "--reflink=auto", str(source), str(target / source.name)]
            subprocess.run(command, check=True)
    subprocess.run(["chown", "-R", f"{user.pw_uid}:{user.pw_gid}", Path(user.pw_dir) / ".cache"], check=True)
    return target


def assert_froze_the_same(cache: Path) -> None:
    """The one guest agent in `cache` has the same bytes as root's of that version."""
    (frozen,) = (cache / "guestagent").iterdir()
    roots = paths.cache() / "guestagent" / frozen.name
    command = ["diff", "--recursive", "--no-dereference", str(frozen), str(roots)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture(scope="module")
def theirs(shared_vm: Vm, user: pwd.struct_passwd) -> Iterator[Installation]:
    """The user's hostagent.

    The one right left, to read everything, is for this checkout and its Python, which may be in a folder of root's.
    newuidmap(1), for freezing in a user namespace, gets its own from the file.
    """
    cache = shared_cache(user)
    become = (
        "setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups",
        "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search",
        "env", f"HOME={user.pw_dir}", f"USER={USER}", f"LOGNAME={USER}",
    )  # fmt: skip
    with installation(cache=cache, prefix=become, owner=user.pw_uid) as at:
        yield at


def test_all_of_it_works_without_root(shared_vm: Vm, theirs: Installation, user: pwd.struct_passwd) -> None:
    configuration = theirs.home.with_name("theirs.yaml")
    configuration.write_text(CONFIGURATION, encoding="utf-8")
    guest = Vm(theirs, "theirs", configuration)
    guest.up(BOOT_SECONDS)
    assert_froze_the_same(Path(theirs.environment["HOSTAGENT_CACHE"]))
    owners = {process.username() for process in theirs.processes()}
    assert owners == {USER}
    assert theirs.run("shell", "--", "id", "-un").strip() == USER
    assert theirs.run("shell", "--", "sudo", "-n", "id", "-un").strip() == "root"
    assert guest.status()["accelerator"]["name"]
    with guest.running("python3", "-m", "http.server", "8383"):
        wait_until(lambda: answers(8383), seconds=30)
        with guest.running("python3", "-m", "http.server", "79"):
            wait_until(lambda: (guest.port(79) or {}).get("state") == "denied", seconds=30)
            port = guest.port(79)
            assert port is not None
            assert "ip_unprivileged_port_start=79" in port["reason"]
        # Two instances want one port: the second is told which instance has it, and gets it when that is gone.
        with shared_vm.running("python3", "-m", "http.server", "8383"):
            wait_until(lambda: "theirs" in str((shared_vm.port(8383) or {}).get("reason")), seconds=30)
            port = shared_vm.port(8383)
            assert port is not None
            assert port["state"] == "conflict"
            assert theirs.document("down")["stopped_by"] == "guest agent"
            wait_until(lambda: (shared_vm.port(8383) or {}).get("state") == "listening", seconds=10)
            assert answers(8383)


def test_a_home_that_cannot_be_written_is_told(theirs: Installation, tmp_path: Path) -> None:
    locked = theirs.home.with_name("locked")
    locked.mkdir(mode=0o555)
    at = Installation(locked / "home", {**theirs.environment, "HOSTAGENT_HOME": str(locked / "home")}, theirs.prefix)
    done = at.try_run("up", "default")
    assert done.returncode == 1
    assert b"cannot be made" in done.stderr
    assert b"Traceback" not in done.stderr
    assert list(locked.iterdir()) == []
    shutil.rmtree(locked)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", 8383), 1).close()
