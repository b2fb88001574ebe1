"""Which package sources a Debian image is built from.

On a Debian host they are the host's own, asked from apt itself (`apt-get indextargets`, apt-get(8)) and moved to the
wanted release: a mirror that works for the host works for the image, also where nothing else can be reached. Third
parties' sources are left out: only the suites that Debian itself publishes, only `main`, and only what is signed with
Debian's archive keys is used. On any other host mmdebstrap's default mirror is taken.

Rejected: parsing sources.list and deb822 files here, which apt does better.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import trio

from hostagent.errors import UserError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
"""Debian's archive keys, on Debian and (package debian-archive-keyring) on its relatives."""

CODENAMES: Mapping[str, str] = {"debian-12": "bookworm", "debian-13": "trixie"}
"""The suite of each release that can be built."""

_FORMAT = "$(REPO_URI) $(RELEASE) $(CODENAME) $(COMPONENT) $(ORIGIN)"
_POCKETS = ("", "-updates", "-security")


def sources_for(codename: str, host_codename: str, index_targets: str) -> list[str]:
    """Lines of sources.list(5) for the release `codename`, from the host's `index_targets`; empty when none fits."""
    lines: list[str] = []
    for row in index_targets.splitlines():
        fields = row.split(" ")
        if len(fields) != 5:
            continue
        address, release, release_codename, component, origin = fields
        pocket = _pocket(host_codename, (release, release_codename))
        foreign = not origin.startswith("$") and origin != "Debian"
        if pocket is None or foreign or component != "main" or not address.startswith(("http://", "https://")):
            continue
        line = f"deb [signed-by={KEYRING}] {address} {codename}{pocket} main"
        if line not in lines:
            lines.append(line)
    # Updates alone are no release: without its main pocket the host's sources are of no use.
    return lines if any(f" {codename} main" in line for line in lines) else []


def _pocket(host_codename: str, names: Iterable[str]) -> str | None:
    for name in names:
        for pocket in _POCKETS:
            if name == host_codename + pocket:
                return pocket
    return None


async def debian_sources(codename: str) -> list[str]:
    """Ask this host for package sources of `codename`; an empty list stands for mmdebstrap's default mirror.

    Raises `UserError` when Debian's archive keys are not installed, because then no source can be trusted.
    """
    if not KEYRING.exists():
        raise UserError(
            "Debian's archive keys are not installed, so its packages cannot be verified",
            "install the package debian-archive-keyring (debian-keyring on Fedora and its kin)",
        )
    release = _os_release()
    if release.get("ID") != "debian" or "VERSION_CODENAME" not in release:
        return []
    command = ["apt-get", "indextargets", "--format", _FORMAT, "Identifier: Packages"]
    try:
        done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.DEVNULL, check=False)
    except OSError:  # a Debian without apt: the default mirror serves it as well
        return []
    return sources_for(codename, release["VERSION_CODENAME"], done.stdout.decode(errors="replace"))


async def proxy_environment() -> dict[str, str]:
    """The environment for mmdebstrap: ours, with the proxies that the host's apt is configured to use.

    mmdebstrap runs apt with a configuration of its own, and apt then takes proxies from the environment
    (apt-transport-http(1)).
    """
    environment = dict(os.environ)
    # mke2fs and friends live in sbin, which is not on a Debian user's PATH.
    environment["PATH"] = environment.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    command = ["apt-config", "shell", "http_proxy", "Acquire::http::Proxy", "https_proxy", "Acquire::https::Proxy"]
    try:
        done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.DEVNULL, check=False)
    except OSError:
        return environment
    for line in done.stdout.decode(errors="replace").splitlines():
        name, _, value = line.partition("=")
        if value.strip("'") not in ("", "DIRECT"):
            environment.setdefault(name, value.strip("'"))
    return environment


def _os_release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}
