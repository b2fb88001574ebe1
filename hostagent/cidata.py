"""The cloud-init seed: a small ISO that turns a stock image into a guest of ours.

Any block device labelled `cidata` is cloud-init's NoCloud data source: `user-data` and `meta-data` lie at its root
(and `network-config` where the host knows the network card). Ours also carries the frozen guest agent and what installs
it, so that a guest without any network gets both:

    user-data  meta-data  [network-config]
    hostagent/            install, update-from-seed, the unit: files of cloud-init/
    hostagent/account     the user's account, for `install`
    guestagent/           the onedir tree as it was frozen, with VERSION
    guestagent.sha256     digests of that tree, in the format of sha256sum(1)

Promises: mode bits of the tree are kept (Rock Ridge); the seed is replaced at once or not at all; the instance id
changes only when what cloud-init applies once per instance has changed (account, keys, host name, network), so a newer
guest agent alone makes cloud-init do nothing.

Refuses: pasting configuration into shell text. user-data is a Python value that is dumped as YAML, the one shell text
in it is a constant, and the account travels as a file of lines that the installer reads without evaluating them.

Rejected: Joliet (no guest of ours reads it when Rock Ridge is there) and writing files with cloud-init's write_files
(base64 of 20 MB in YAML).
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostagent.errors import UserError
from hostagent.image_cache import disk_errors

LABEL = "cidata"
"""Volume label by which cloud-init and the guest's installer find the seed (NoCloud's documentation)."""

_GUEST_FILES = ("install", "update-from-seed", "hostagent-guestagent.service", "stock-image.conf")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,99}")
_ACCOUNT_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_LINE = re.compile(r"[^\x00-\x1f\x7f:]*")
"""What may stand in a field of passwd(5)."""


@dataclass(frozen=True, slots=True)
class Account:
    """The user's account in the guest. `None` leaves the choice to the guest."""

    name: str
    uid: int | None = None
    comment: str = ""
    home: str | None = None
    shell: str | None = None
    authorized_keys: tuple[str, ...] = ()
    """Lines of authorized_keys(5)."""

    def __post_init__(self) -> None:
        if not _ACCOUNT_NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} cannot be the name of an account; account_name() makes one")
        if self.uid is not None and not 0 <= self.uid < 2**32 - 1:
            raise ValueError(f"{self.uid} cannot be a user id")
        for field in (self.comment, self.home or "/", self.shell or "/"):
            if not _LINE.fullmatch(field):
                raise ValueError(f"{field!r} cannot stand in passwd(5)")

    @property
    def is_root(self) -> bool:
        """Whether it is the account that every guest has already."""
        return self.name == "root" or self.uid == 0


def account_name(wanted: str) -> str:
    """`wanted` (a user name of the host, of any kind) as a name that every distribution's useradd accepts."""
    name = re.sub(r"[^a-z0-9_-]", "_", wanted.lower())[:32]
    if not _ACCOUNT_NAME.fullmatch(name):
        name = f"u{name}"[:32]
    return name


@dataclass(frozen=True, slots=True)
class Seed:
    """Everything that a seed says to the guest."""

    hostname: str
    account: Account
    agent_directory: Path
    """The frozen guest agent: an executable `guestagent` and what it needs."""
    agent_version: str
    """Compared by the guest with the installed one: different builds must have different versions."""
    mac_address: str | None = None
    """Address of the first network card; without it the guest takes the first card it finds."""

    def __post_init__(self) -> None:
        if not _VERSION.fullmatch(self.agent_version):
            raise ValueError(f"{self.agent_version!r} cannot be the name of the agent's folder in the guest")


def guest_files() -> Path:
    """The folder with the files for the guest: hostagent/_cloud_init in a wheel, cloud-init/ in a checkout."""
    packaged = Path(__file__).with_name("_cloud_init")
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "cloud-init"


def write_seed(path: Path, seed: Seed) -> None:
    """Write the ISO of `seed` to `path`, replacing an older one at once; raises `UserError` for a full disk."""
    content = seed_iso(seed)
    fresh = path.with_suffix(".new")
    with disk_errors(path.parent):
        fresh.write_bytes(content)
        fresh.replace(path)


def seed_iso(seed: Seed) -> bytes:
    """The ISO image of `seed`; raises `UserError` when the guest agent's tree is not usable."""
    from pycdlib import PyCdlib  # here: image_build only wants guest_files(), and this costs 60 ms

    if not (seed.agent_directory / "guestagent").is_file():
        raise UserError(
            f"{seed.agent_directory} does not hold a frozen guest agent", "freeze it again: make -C build guestagent"
        )
    iso = PyCdlib()
    # Level 4 lifts the limits on names and depth that a frozen tree exceeds; guests see the Rock Ridge names anyway.
    iso.new(interchange_level=4, rock_ridge="1.09", vol_ident=LABEL)
    try:
        for name, content, mode in _members(seed):
            if mode == stat.S_IFDIR:
                iso.add_directory(iso_path=f"/{name}", rr_name=name.rpartition("/")[2], file_mode=0o040755)
            else:
                iso.add_fp(
                    io.BytesIO(content), len(content), f"/{name}", rr_name=name.rpartition("/")[2], file_mode=mode
                )
        image = io.BytesIO()
        iso.write_fp(image)
    finally:
        iso.close()
    return image.getvalue()


def _members(seed: Seed) -> Iterator[tuple[str, bytes, int]]:
    """Path, content and mode of all that is on the seed, every folder before what is in it."""
    yield "user-data", b"#cloud-config\n" + _yaml(user_data(seed)), 0o100644
    yield "meta-data", _yaml(meta_data(seed)), 0o100644
    if seed.mac_address is not None:
        yield "network-config", _yaml(network_config(seed.mac_address)), 0o100644
    yield "hostagent", b"", stat.S_IFDIR
    for name in _GUEST_FILES:
        yield f"hostagent/{name}", (guest_files() / name).read_bytes(), 0o100644
    if not seed.account.is_root:
        yield "hostagent/account", _account_lines(seed.account), 0o100644
    digests: list[str] = []
    yield "guestagent", b"", stat.S_IFDIR
    yield "guestagent/VERSION", f"{seed.agent_version}\n".encode(), 0o100644
    for path in sorted(seed.agent_directory.rglob("*")):
        name = path.relative_to(seed.agent_directory).as_posix()
        if path.is_dir() and not path.is_symlink():
            yield f"guestagent/{name}", b"", stat.S_IFDIR
        elif name != "VERSION":
            # A symbolic link is carried as the file it names: the guest's copy must not depend on its place.
            content = path.read_bytes()
            digests.append(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
            yield f"guestagent/{name}", content, 0o100755 if path.stat().st_mode & stat.S_IXUSR else 0o100644
    yield "guestagent.sha256", "".join(digests).encode(), 0o100644


def user_data(seed: Seed) -> dict[str, Any]:
    """cloud-init's user-data: the account, and the agent's installation in an image that has never seen hostagent."""
    first_boot = (guest_files() / "first-boot").read_text(encoding="utf-8")
    return {
        "users": [_user(seed.account)],
        # The keys of an sshd that is there are made once and stay.
        "ssh_deletekeys": False,
        # What stock images do by default and what needs a network or time without use to us.
        "package_update": False,
        "package_upgrade": False,
        "apt": {"preserve_sources_list": True},
        "bootcmd": [["sh", "-c", first_boot]],
    }


def _user(account: Account) -> dict[str, Any]:
    user: dict[str, Any] = {"name": "root" if account.is_root else account.name}
    if account.authorized_keys:
        user["ssh_authorized_keys"] = list(account.authorized_keys)
    if account.is_root:
        return {**user, "lock_passwd": False}
    user |= {"gecos": account.comment, "sudo": "ALL=(ALL) NOPASSWD:ALL", "lock_passwd": True}
    chosen = {"uid": account.uid, "homedir": account.home, "shell": account.shell or "/bin/bash"}
    return user | {key: value for key, value in chosen.items() if value is not None}


def _account_lines(account: Account) -> bytes:
    """One field a line: name, uid, home, shell, comment; an empty line leaves the choice to useradd."""
    uid = "" if account.uid is None else str(account.uid)
    fields = (account.name, uid, account.home or "", account.shell or "/bin/bash", account.comment)
    return "".join(f"{field}\n" for field in fields).encode()


def meta_data(seed: Seed) -> dict[str, str]:
    """cloud-init's meta-data. A new instance id makes cloud-init apply all that it applies once per instance."""
    users = user_data(seed)["users"]
    applied_once = json.dumps([seed.hostname, seed.mac_address, users], sort_keys=True)
    identity = hashlib.sha256(applied_once.encode()).hexdigest()[:16]
    return {"instance-id": f"hostagent-{identity}", "local-hostname": seed.hostname}


def network_config(mac_address: str) -> dict[str, Any]:
    """Addresses by DHCP on the card with this address (network config version 2, in the part all renderers know)."""
    card = {"match": {"macaddress": mac_address}, "set-name": "eth0", "dhcp4": True, "dhcp6": False}
    return {"version": 2, "ethernets": {"eth0": card}}


def _yaml(value: object) -> bytes:
    import yaml  # here for the same reason as pycdlib

    class Dumper(yaml.SafeDumper):
        """Writes shell text as the block it is, so that a person can read the seed."""

    def text(dumper: Dumper, content: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", content, style="|" if "\n" in content else None)

    Dumper.add_representer(str, text)
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True).encode()
