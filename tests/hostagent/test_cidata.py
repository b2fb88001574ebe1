"""The seed is read back from the ISO with its names, modes and meaning."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pycdlib import PyCdlib

from hostagent.cidata import Account, Seed, account_name, guest_files, meta_data, seed_iso, user_data, write_seed
from hostagent.errors import UserError
from tests.fakes.seeds import make_seed, unpack


@pytest.fixture
def seed(tmp_path: Path) -> Seed:
    return make_seed(tmp_path / "agent")


@pytest.fixture
def seen(tmp_path: Path, seed: Seed) -> Path:
    return unpack(seed, tmp_path / "seen")


def test_the_volume_has_cloud_inits_label(seed: Seed) -> None:
    iso = PyCdlib()
    iso.open_fp(io.BytesIO(seed_iso(seed)))
    label = iso.pvd.volume_identifier
    iso.close()
    assert label.rstrip() == b"cidata"


def test_the_agents_tree_is_there_with_its_modes(seed: Seed, seen: Path) -> None:
    for path in seed.agent_directory.rglob("*"):
        copy = seen / "guestagent" / path.relative_to(seed.agent_directory)
        if path.is_dir():
            assert copy.is_dir()
        elif path.name != "VERSION":
            assert copy.read_bytes() == path.read_bytes()
            assert not copy.is_symlink()
            assert copy.stat().st_mode & 0o777 == (0o755 if path.name == "guestagent" else 0o644)
    assert (seen / "guestagent" / "VERSION").read_text() == "1.0\n"


def test_every_file_of_the_agent_is_vouched_for(seen: Path) -> None:
    lines = (seen / "guestagent.sha256").read_text().splitlines()
    digests = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    files = [path for path in (seen / "guestagent").rglob("*") if path.is_file() and path.name != "VERSION"]
    assert digests == {
        path.relative_to(seen / "guestagent").as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_the_guests_files_are_those_of_cloud_init(seen: Path) -> None:
    for name in ("install", "update-from-seed", "hostagent-guestagent.service", "stock-image.conf"):
        assert (seen / "hostagent" / name).read_bytes() == (guest_files() / name).read_bytes()


def test_user_data_is_what_cloud_init_reads(seed: Seed, seen: Path) -> None:
    text = (seen / "user-data").read_text()
    assert text.startswith("#cloud-config\n")
    assert yaml.safe_load(text) == user_data(seed)


def test_bootcmd_is_the_file_as_it_is(seed: Seed) -> None:
    [[shell, option, text]] = user_data(seed)["bootcmd"]
    assert (shell, option) == ("sh", "-c")
    assert text == (guest_files() / "first-boot").read_text()


def test_the_account_is_made_with_what_is_known(seed: Seed) -> None:
    account = Account("alice", 1234, 'A "l" $(i)\'ce', "/home/alice.guest", "/bin/zsh", ("ssh-ed25519 AAAA alice",))
    [user] = user_data(replace(seed, account=account))["users"]
    assert user == {
        "name": "alice", "uid": 1234, "gecos": 'A "l" $(i)\'ce', "homedir": "/home/alice.guest", "shell": "/bin/zsh",
        "sudo": "ALL=(ALL) NOPASSWD:ALL", "lock_passwd": True, "ssh_authorized_keys": ["ssh-ed25519 AAAA alice"],
    }  # fmt: skip


def test_an_account_without_keys_has_none(seed: Seed) -> None:
    [user] = user_data(seed)["users"]
    assert "ssh_authorized_keys" not in user


@pytest.mark.parametrize("account", [Account("root"), Account("toor", 0)])
def test_root_is_taken_as_it_is(tmp_path: Path, account: Account) -> None:
    seed = make_seed(tmp_path / "agent", account=account)
    assert user_data(seed)["users"] == [{"name": "root", "lock_passwd": False}]
    assert not (unpack(seed, tmp_path / "seen") / "hostagent" / "account").exists()


def test_without_a_known_card_the_guest_finds_one(seen: Path) -> None:
    assert not (seen / "network-config").exists()


def test_a_known_card_gets_its_address_by_dhcp(tmp_path: Path) -> None:
    seen = unpack(make_seed(tmp_path / "agent", mac="52:54:00:12:34:56"), tmp_path / "seen")
    config = yaml.safe_load((seen / "network-config").read_text())
    assert config["version"] == 2
    assert config["ethernets"]["eth0"]["match"] == {"macaddress": "52:54:00:12:34:56"}


def test_a_new_agent_is_no_new_instance(tmp_path: Path, seed: Seed) -> None:
    newer = make_seed(tmp_path / "newer", version="2.0")
    assert meta_data(newer) == meta_data(seed)


@pytest.mark.parametrize(
    "change",
    [
        {"hostname": "other"},
        {"account": Account("alice", 1234, authorized_keys=("ssh-ed25519 AAAA new",))},
        {"account": Account("bob", 1234)},
        {"mac_address": "52:54:00:12:34:56"},
    ],
    ids=str,
)
def test_what_cloud_init_applies_once_makes_a_new_instance(seed: Seed, change: dict[str, object]) -> None:
    changed = replace(seed, **change)  # type: ignore[arg-type]
    assert meta_data(changed)["instance-id"] != meta_data(seed)["instance-id"]


def test_the_seed_is_replaced_as_a_whole(tmp_path: Path, seed: Seed) -> None:
    path = tmp_path / "seed.iso"
    path.write_bytes(b"old")
    with path.open("rb") as in_use:
        write_seed(path, seed)
        assert in_use.read() == b"old"  # QEMU may have it open
    assert path.read_bytes()[0x8001:0x8006] == b"CD001"
    assert [entry.name for entry in tmp_path.glob("seed*")] == ["seed.iso"]


def test_a_folder_without_an_agent_is_refused(tmp_path: Path, seed: Seed) -> None:
    with pytest.raises(UserError, match="does not hold a frozen guest agent"):
        seed_iso(replace(seed, agent_directory=tmp_path / "nothing"))


@pytest.mark.parametrize("version", ["", "../up", ".hidden", "a b", "a/b", "x" * 101, "1\n2"])
def test_a_version_that_is_no_folder_name_is_refused(seed: Seed, version: str) -> None:
    with pytest.raises(ValueError, match="folder"):
        replace(seed, agent_version=version)


@pytest.mark.parametrize(
    "wrong",
    [{"name": "Alice"}, {"name": "a b"}, {"name": ""}, {"uid": -1}, {"comment": "a:b"}, {"home": "/a\nb"}],
    ids=str,
)
def test_what_cannot_stand_in_the_password_file_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="cannot"):
        Account(**{"name": "alice", **wrong})  # type: ignore[arg-type]


@given(st.text())
def test_every_name_of_a_host_user_becomes_an_account(wanted: str) -> None:
    assert Account(account_name(wanted)).name


def test_usual_names_stay_as_they_are() -> None:
    assert [account_name(name) for name in ("alice", "a-b_c1", "Alice.B", "1st")] == [
        "alice",
        "a-b_c1",
        "alice_b",
        "u1st",
    ]


def test_wheel_and_checkout_both_have_the_guests_files() -> None:
    assert (guest_files() / "install").is_file()
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included["cloud-init"] == "hostagent/_cloud_init"


def test_the_iso_is_what_other_programs_read(tmp_path: Path, seed: Seed) -> None:
    write_seed(tmp_path / "seed.iso", seed)
    shown = subprocess.run(
        ["blkid", "-o", "value", "-s", "LABEL", tmp_path / "seed.iso"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "cidata"
