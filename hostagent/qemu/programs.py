"""QEMU's programs on the PATH, and how to install the package of one that is missing."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from hostagent.errors import UserError

_PACKAGES = {
    # program: package of Debian and Ubuntu, of Fedora and its kin
    "qemu-system-x86_64": ("qemu-system-x86", "qemu-system-x86-core"),
    "qemu-system-aarch64": ("qemu-system-arm", "qemu-system-aarch64-core"),
    "qemu-img": ("qemu-utils", "qemu-img"),
}


def find_program(name: str) -> Path:
    """Where the program `name` is; raises `UserError` with the command that installs it."""
    if found := shutil.which(name):
        return Path(found)
    raise UserError(f"{name} is not installed, or not on the PATH", _install_hint(name))


def _install_hint(name: str) -> str:
    debian, fedora = _PACKAGES[name]
    if sys.platform == "darwin":
        return "install it with: brew install qemu"
    if shutil.which("apt-get"):
        return f"install it with: sudo apt-get install {debian}"
    if shutil.which("dnf"):
        return f"install it with: sudo dnf install {fedora}"
    return f"install QEMU: the package is called {debian} on Debian and Ubuntu, {fedora} on Fedora and Alma Linux"
