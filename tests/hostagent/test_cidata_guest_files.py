"""The shell scripts of the guest, run for real below a folder that stands in for the guest's root."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from hostagent.cidata import Account, guest_files
from tests.fakes.seeds import make_seed, unpack

SCRIPTS = [path for path in guest_files().rglob("*") if path.is_file() and path.read_bytes().startswith(b"#!/bin/sh")]
PREFIX = Path("usr/local/lib/hostagent")


class Guest:
    """A root folder, and seeds that are attached to it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self._folder = folder
        self._seeds = 0

    @property
    def current(self) -> Path:
        return self.root / PREFIX / "guestagent" / "current"

    @property
    def versions(self) -> set[str]:
        return {path.name for path in (self.root / PREFIX / "guestagent").iterdir()}

    def seed(self, version: str, account: Account | None = None) -> Path:
        self._seeds += 1
        place = self._folder / f"seed{self._seeds}"
        # The account that runs the tests exists, so that no test makes one on this machine.
        return unpack(make_seed(place / "tree", version, account or Account("root")), place / "mounted")

    def boot(self, seed: Path | None, **environment: str) -> subprocess.CompletedProcess[str]:
        """What happens before the agent's first start after power-on."""
        shutil.rmtree(self.root / "run", ignore_errors=True)
        return self.start(seed, **environment)

    def start(self, seed: Path | None, **environment: str) -> subprocess.CompletedProcess[str]:
        """What happens before any start of the agent."""
        variables = os.environ | {"HOSTAGENT_ROOT": str(self.root), "HOSTAGENT_RETRY_SECONDS": "0"} | environment
        variables["HOSTAGENT_SEED"] = str(seed or self._folder / "no seed")
        return subprocess.run(
            ["sh", guest_files() / "update-from-seed"],
            env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def run_agent(self) -> str:
        return subprocess.run([self.current / "guestagent"], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_posix(script: Path) -> None:
    subprocess.run(["sh", "-n", script], check=True)
    subprocess.run(["bash", "--posix", "-n", script], check=True)


def test_the_first_boot_installs_the_agent(guest: Guest) -> None:
    done = guest.boot(guest.seed("1.0"))
    assert done.returncode == 0, done.stderr
    assert guest.run_agent() == "agent 1.0"
    assert guest.current.readlink() == Path("1.0")
    units = guest.root / "etc/systemd/system"
    assert (units / "hostagent-guestagent.service").read_bytes() == (
        guest_files() / "hostagent-guestagent.service"
    ).read_bytes()
    wanted = units / "basic.target.wants" / "hostagent-guestagent.service"
    assert wanted.resolve() == units / "hostagent-guestagent.service"
    assert os.access(guest.root / PREFIX / "update-from-seed", os.X_OK)


def test_the_same_version_is_left_alone(guest: Guest) -> None:
    guest.boot(guest.seed("1.0"))
    before = (guest.current / "guestagent").stat()
    assert guest.boot(guest.seed("1.0")).stderr == ""
    assert (guest.current / "guestagent").stat().st_ino == before.st_ino


def test_another_version_is_taken_and_the_one_before_is_kept(guest: Guest) -> None:
    for version in ("1.0", "2.0", "3.0"):
        assert guest.boot(guest.seed(version)).returncode == 0
        assert guest.run_agent() == f"agent {version}"
    assert guest.versions == {"current", "2.0", "3.0"}
    guest.boot(guest.seed("2.0"))
    assert guest.run_agent() == "agent 2.0"


def test_a_restart_does_not_look_at_the_seed(guest: Guest) -> None:
    guest.boot(guest.seed("1.0"))
    done = guest.start(guest.seed("2.0"))
    assert (done.returncode, done.stderr) == (0, "")
    assert guest.run_agent() == "agent 1.0"


def test_without_a_seed_the_installed_agent_stays(guest: Guest) -> None:
    guest.boot(guest.seed("1.0"))
    done = guest.boot(None)
    assert done.returncode == 0
    assert guest.run_agent() == "agent 1.0"


def test_without_a_seed_and_an_agent_it_fails(guest: Guest) -> None:
    done = guest.boot(None)
    assert done.returncode == 1
    assert "there is no agent to start" in done.stderr


def test_a_later_seed_helps_a_guest_without_an_agent(guest: Guest) -> None:
    guest.boot(None)
    assert guest.start(guest.seed("1.0")).returncode == 0
    assert guest.run_agent() == "agent 1.0"


def damage_byte(seed: Path) -> None:
    library = seed / "guestagent/_internal/library.so.1"
    library.write_bytes(b"x" + library.read_bytes()[1:])


def lose_file(seed: Path) -> None:
    (seed / "guestagent/_internal/library.so").unlink()


def lose_executable(seed: Path) -> None:
    (seed / "guestagent/guestagent").unlink()


def leave_the_folder(seed: Path) -> None:
    (seed / "guestagent/VERSION").write_text("../../../../etc\n")


def lose_digests(seed: Path) -> None:
    (seed / "guestagent.sha256").unlink()


@pytest.mark.parametrize("damage", [damage_byte, lose_file, lose_executable, leave_the_folder, lose_digests])
def test_a_damaged_seed_never_becomes_current(guest: Guest, damage: object) -> None:
    guest.boot(guest.seed("1.0"))
    seed = guest.seed("2.0")
    assert callable(damage)
    damage(seed)
    done = guest.boot(seed)
    assert done.returncode == 0
    assert "failed; version 1.0 stays" in done.stderr
    assert guest.run_agent() == "agent 1.0"
    assert guest.versions == {"current", "1.0"}


def test_what_a_power_cut_left_is_removed(guest: Guest) -> None:
    guest.boot(guest.seed("1.0"))
    staging = guest.root / PREFIX / "guestagent" / ".staging"
    staging.mkdir()
    (staging / "half").touch()
    (staging.parent / ".current").symlink_to("2.0")
    guest.boot(guest.seed("2.0"))
    assert guest.run_agent() == "agent 2.0"
    assert guest.versions == {"current", "1.0", "2.0"}


def test_an_installed_tree_that_lost_its_executable_is_installed_again(guest: Guest) -> None:
    guest.boot(guest.seed("1.0"))
    (guest.current / "guestagent").unlink()
    assert guest.boot(guest.seed("1.0")).returncode == 0
    assert guest.run_agent() == "agent 1.0"


def test_new_scripts_and_units_come_with_the_seed(guest: Guest) -> None:
    guest.boot(guest.seed("1.0"))
    seed = guest.seed("2.0")
    (seed / "hostagent/hostagent-guestagent.service").write_text("[Unit]\nDescription=newer\n")
    guest.boot(seed)
    unit = guest.root / "etc/systemd/system/hostagent-guestagent.service"
    assert "newer" in unit.read_text()


def fake_useradd(folder: Path, status: str = "0") -> dict[str, str]:
    """A PATH on which useradd writes its arguments to a file, one a line."""
    programs = folder / "programs"
    programs.mkdir()
    program = programs / "useradd"
    program.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" >>"{folder}/useradd"\necho >>"{folder}/useradd"\nexit {status}\n'
    )
    program.chmod(0o755)
    return {"PATH": f"{programs}:{os.environ['PATH']}"}


def test_the_account_is_there_when_the_agent_is(guest: Guest, tmp_path: Path) -> None:
    account = Account("hostagent-test", 4321, 'A "l" $(touch bad)\'ce', "/home/x y", "/bin/sh")
    guest.boot(guest.seed("1.0", account), **fake_useradd(tmp_path))
    calls = (tmp_path / "useradd").read_text().strip().split("\n\n")
    [arguments] = [call.splitlines() for call in calls]
    assert arguments[-1] == "hostagent-test"
    options = dict(zip(arguments[3:-2:2], arguments[4:-2:2], strict=True))
    assert arguments[:3] == ["-R", str(guest.root), "-m"]
    assert options == {"-s": "/bin/sh", "-c": 'A "l" $(touch bad)\'ce', "-d": "/home/x y", "-u": "4321"}


def test_the_account_may_use_sudo_from_the_first_moment(guest: Guest, tmp_path: Path) -> None:
    guest.boot(guest.seed("1.0", Account("hostagent-test")), **fake_useradd(tmp_path))
    (rights,) = (guest.root / "etc/sudoers.d").iterdir()
    assert rights.read_text() == "hostagent-test ALL=(ALL) NOPASSWD:ALL\n"
    assert stat.S_IMODE(rights.stat().st_mode) == 0o440


def test_root_needs_no_rights(guest: Guest) -> None:
    guest.boot(guest.seed("1.0"))
    assert not (guest.root / "etc/sudoers.d").exists()


def test_an_id_that_is_taken_does_not_prevent_the_account(guest: Guest, tmp_path: Path) -> None:
    done = guest.boot(
        guest.seed("1.0", Account("hostagent-test", 4321, "A name")), **fake_useradd(tmp_path, status="4")
    )
    with_id, without_id = (tmp_path / "useradd").read_text().strip().split("\n\n")
    assert "4321" in with_id.splitlines()
    assert "4321" not in without_id.splitlines()
    assert done.returncode == 0
    assert guest.run_agent() == "agent 1.0"


def finished_cloud_init(guest: Guest, instance: str) -> None:
    dropin = guest.root / "etc/systemd/system/cloud-final.service.d/50-hostagent.conf"
    dropin.parent.mkdir(parents=True)
    dropin.touch()
    state = guest.root / "var/lib/cloud"
    for folder in ("instance", "data", "scripts/per-boot"):
        (state / folder).mkdir(parents=True)
    (state / "instance/boot-finished").touch()
    (state / "data/instance-id").write_text(f"{instance}\n")


def instance_id(seed: Path) -> str:
    first = (seed / "meta-data").read_text().splitlines()[0]
    return first.removeprefix("instance-id: ")


def test_cloud_init_is_spared_what_it_has_done(guest: Guest) -> None:
    seed = guest.seed("1.0")
    finished_cloud_init(guest, instance_id(seed))
    guest.boot(seed)
    assert (guest.root / "run/hostagent/cloud-init-unneeded").exists()
    assert (guest.root / "run/cloud-init/disabled").exists()


def changed_instance(guest: Guest) -> None:
    (guest.root / "var/lib/cloud/data/instance-id").write_text("another\n")


def unfinished(guest: Guest) -> None:
    (guest.root / "var/lib/cloud/instance/boot-finished").unlink()


def users_script(guest: Guest) -> None:
    (guest.root / "var/lib/cloud/scripts/per-boot/mine").touch()


def stock_image(guest: Guest) -> None:
    shutil.rmtree(guest.root / "etc/systemd/system/cloud-final.service.d")


@pytest.mark.parametrize("reason", [changed_instance, unfinished, users_script, stock_image])
def test_cloud_init_runs_when_there_is_a_reason(guest: Guest, reason: object) -> None:
    seed = guest.seed("1.0")
    finished_cloud_init(guest, instance_id(seed))
    assert callable(reason)
    reason(guest)
    guest.boot(seed)
    assert not (guest.root / "run/hostagent/cloud-init-unneeded").exists()
    assert not (guest.root / "run/cloud-init/disabled").exists()


def test_the_unit_is_one_that_systemd_understands(tmp_path: Path) -> None:
    unit = tmp_path / "hostagent-guestagent.service"
    text = (guest_files() / unit.name).read_text()
    # systemd-analyze also checks that the programs exist.
    unit.write_text(text.replace("/usr/local/lib/hostagent/guestagent/current/guestagent", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if unit.name in line and "man page" not in line] == []
