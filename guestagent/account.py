"""Whose command it is: the guest's user, and the environment that a login would give.

A command does not inherit the agent's environment: a frozen program carries paths of its own libraries in it, which
break the programs it starts. What a login starts with is made here instead.

`LOGIN_USER` names the user that hostagent made for the host's user; without it the first ordinary user is taken (the
range is that of login.defs(5)), and root where there is none.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

LOGIN_USER = Path("/etc/hostagent/login-user")
"""One line: the user for commands that name none."""

_ENVIRONMENT = Path("/etc/environment")
_FIRST_UID, _LAST_UID = 1_000, 59_999
_NO_LOGIN = frozenset({"nologin", "false", "sync", "shutdown", "halt"})
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Account:
    """A user of the guest, as far as a command needs to know."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str

    @property
    def login_arguments(self) -> tuple[str, ...]:
        """argv of a login shell: a dash before the name makes it one (login(1))."""
        return ("-" + Path(self.shell).name,)


def find_account(name: str, login_user: Path = LOGIN_USER) -> Account:
    """The account called `name`, or for an empty name the one that commands run as. Raises `LookupError`."""
    if name:
        return _account(_entry(name))
    try:
        named = login_user.read_text("utf-8").strip()
    except FileNotFoundError:
        named = ""
    if named:
        return _account(_entry(named))
    ordinary = [entry for entry in pwd.getpwall() if _is_ordinary(entry)]
    return _account(min(ordinary, key=lambda entry: entry.pw_uid) if ordinary else _root())


def login_environment(account: Account, file: Path = _ENVIRONMENT) -> dict[str, str]:
    """The variables that a login of `account` would start with."""
    environment = {"PATH": _PATH, "LANG": "C.UTF-8"}
    with contextlib.suppress(OSError):  # few systems have it
        environment |= parse_environment(file.read_text("utf-8", "replace"))
    environment |= {"HOME": account.home, "USER": account.name, "LOGNAME": account.name, "SHELL": account.shell}
    runtime = Path(f"/run/user/{account.uid}")
    if runtime.is_dir():
        environment["XDG_RUNTIME_DIR"] = str(runtime)
    return environment


def parse_environment(text: str) -> dict[str, str]:
    """What a file in the form of /etc/environment sets (pam_env(8)): `KEY=value`, `export` and quotes allowed."""
    values = {}
    for line in text.splitlines():
        key, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and key.isidentifier() and "\0" not in value:
            value = value.strip()
            quoted = len(value) >= 2 and value[0] == value[-1] and value[0] in "'\""
            values[key] = value[1:-1] if quoted else value
    return values


def _entry(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        if name == "root":
            return _root()
        raise LookupError(f"the guest has no user {name!r}") from None


def _root() -> pwd.struct_passwd:
    """root, whom a guest without /etc/passwd has as well."""
    try:
        return pwd.getpwuid(0)
    except KeyError:
        return pwd.struct_passwd(("root", "x", 0, 0, "", "/", "/bin/sh"))


def _is_ordinary(entry: pwd.struct_passwd) -> bool:
    return _FIRST_UID <= entry.pw_uid <= _LAST_UID and Path(entry.pw_shell).name not in _NO_LOGIN


def _account(entry: pwd.struct_passwd) -> Account:
    return Account(
        name=entry.pw_name,
        uid=entry.pw_uid,
        gid=entry.pw_gid,
        groups=tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)),
        home=entry.pw_dir or "/",
        shell=entry.pw_shell or "/bin/sh",
    )
