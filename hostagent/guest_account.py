"""The user's account in the guest, and what the variables in sockets' paths stand for because of it."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from hostagent.cidata import Account, account_name
from hostagent.config.rules import SocketVariables
from hostagent.config.schema import Config
from hostagent.paths import InstancePaths

_LARGEST_KEY_FILE = 16_384


def account_of(config: Config) -> Account:
    """The account: what the configuration leaves open is as on the host."""
    me = pwd.getpwuid(os.getuid())
    user = config.user
    name = user.name or account_name(me.pw_name)
    return Account(
        name=name,
        uid=user.uid if user.uid is not None else me.pw_uid if user.name is None else None,
        comment=user.comment if user.comment is not None else "",
        home=user.home,
        shell=user.shell,
        authorized_keys=_public_keys(Path(me.pw_dir) / ".ssh") if config.ssh.load_dot_ssh_pub_keys else (),
    )


def host_name(paths: InstancePaths) -> str:
    """The guest's own name for itself: the instance's, as far as host names may hold it."""
    return paths.name.replace("_", "-").replace(".", "-")


def socket_variables(paths: InstancePaths, account: Account) -> SocketVariables:
    """What the variables stand for. The guest's UID is missing where the guest chooses it."""
    me = pwd.getpwuid(os.getuid())
    home = account.home or ("/root" if account.is_root else f"/home/{account.name}")
    guest = {"Home": home, "User": account.name}
    if account.uid is not None:
        guest["UID"] = str(account.uid)
    host = {"Dir": str(paths.directory), "Home": me.pw_dir, "User": me.pw_name, "UID": str(me.pw_uid)}
    return SocketVariables(host | {"Name": paths.name}, guest | {"Name": paths.name, "Hostname": host_name(paths)})


def _public_keys(folder: Path) -> tuple[str, ...]:
    """The user's public keys; what cannot be read or is no key is left out: nothing depends on them."""
    keys = []
    for path in sorted(folder.glob("*.pub")) if folder.is_dir() else ():
        try:
            with path.open(encoding="utf-8") as file:
                line = file.read(_LARGEST_KEY_FILE).strip()
        except (OSError, UnicodeDecodeError):
            continue
        if line.startswith(("ssh-", "ecdsa-", "sk-")) and line.isprintable():
            keys.append(line)
    return tuple(keys)
