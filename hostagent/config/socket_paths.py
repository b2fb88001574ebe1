"""Paths of unix sockets in forwarding rules: the variables they may hold, and how long they may be.

Variables have Lima's spelling, `{{.Home}}`, and no other part of Go's templates exists: what is not one of them is a
mistake. Values are paths and names, never text that is looked at again.

A place has one path: `.` and doubled slashes go, so that two rules for one place are known as such. `..` stays where it
is allowed, in the guest: what it leads to depends on symbolic links that are not here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from typing import Final

from hostagent.config.mistakes import nearest, quoted
from hostagent.paths import MAX_SOCKET_PATH

MAX_GUEST_PATH: Final = 107
"""Bytes of a socket's path in the guest: sun_path of Linux, less its NUL (unix(7))."""

HOST_VARIABLES: Final = ("Dir", "Home", "Name", "UID", "User")
"""For `hostSocket`: the instance's folder, and the user who runs it."""

GUEST_VARIABLES: Final = ("Home", "Hostname", "Name", "UID", "User")
"""For `guestSocket`: the account in the guest, the guest's host name, the instance's name."""

HOST_FOLDER: Final = "{{.Dir}}/sock/"
"""Where a relative `hostSocket` lies, as in Lima."""

_VARIABLE: Final = re.compile(r"\{\{\s*\.([A-Za-z][A-Za-z0-9_.]*)\s*\}\}")
_BRACES: Final = re.compile(r"\{\{|\}\}")


def check_path(text: str, known: Collection[str], limit: int) -> str:
    """Return `text`, in the form that all paths of this place have, if it can be a socket's; raises `ValueError`.

    With variables in it, its length is known only when they are: `expand` looks again.
    """
    for name in _VARIABLE.findall(text):
        if name not in known:
            near = nearest(name, known)
            meant = f"did you mean {{{{.{near}}}}}?" if near else f"known here: {', '.join(sorted(known))}"
            raise ValueError(f"unknown variable {quoted(name)}; {meant}")
    if _BRACES.search(_VARIABLE.sub("", text)):
        raise ValueError("holds {{ or }} without a variable: they look like {{.Home}}")
    if not text.startswith(("/", "{{")):
        raise ValueError("must be an absolute path")
    text = _without_detours(text)
    if len(os.fsencode(_VARIABLE.sub("", text))) > limit:
        raise ValueError(f"is too long for a socket, whose path may have {limit} bytes")
    return text


def _without_detours(path: str) -> str:
    """`path`, which is absolute or begins with a variable, without parts that lead nowhere."""
    first, *others = path.split("/")
    return "/".join((first, *(part for part in others if part not in ("", ".")))) or "/"


def check_host_path(text: str) -> str:
    """`hostSocket` as an absolute path, with its variables; raises `ValueError`."""
    whole = text if text.startswith(("/", "{{")) else HOST_FOLDER + text
    if ".." in whole.split("/"):
        raise ValueError("must not hold the part '..'")
    return check_path(whole, HOST_VARIABLES, MAX_SOCKET_PATH)


def check_guest_path(text: str) -> str:
    """`guestSocket`; raises `ValueError`."""
    return check_path(text, GUEST_VARIABLES, MAX_GUEST_PATH)


def expand(text: str, values: Mapping[str, str], limit: int) -> str:
    """`text` with its variables filled in; raises `ValueError` when one is not known, or the result is too long."""
    for name in _VARIABLE.findall(text):
        if name not in values:
            why = ": the guest chooses the id of a user of another name; say it with user.uid" if name == "UID" else ""
            raise ValueError(f"the variable {{{{.{name}}}}} has no value here{why}")
    path = _VARIABLE.sub(lambda match: values[match[1]], text)
    if path.startswith("/"):
        path = _without_detours(path)
    if (length := len(os.fsencode(path))) > limit:
        raise ValueError(f"{quoted(path)} has {length} bytes, and a socket's path may have {limit}")
    if not path.startswith("/"):
        raise ValueError(f"{quoted(path)} is no absolute path")
    return path
