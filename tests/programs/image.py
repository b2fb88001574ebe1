"""The image that the programs run in: that of `build: debian-12` with Debian's packages of the programs in it.

It is built by hostagent's own builder and cached beside the plain one, under its own key, for as long (a month). So
packages are unpacked once and at the host's own speed. Rejected: installing them in each guest, since dpkg under
software emulation takes longer than all the cases.

Debian starts a server as soon as it is installed and at each boot. Here none starts before it is asked for, so that
the guest is up as quickly as ever and each program is seen to come: until `ALLOWED` exists, systemd passes them over.
"""

from __future__ import annotations

import io
import os
import platform
import sys
import tarfile
from dataclasses import replace

import trio

from hostagent.cidata import guest_files
from hostagent.image_build import Recipe, image_of, recipe_for
from hostagent.image_cache import Image
from hostagent.paths import cache

PACKAGES = (
    "postgresql", "redis-server", "nginx-light", "python3-websockets", "dnsmasq", "docker.io", "podman",
    # What apt-get brings along by recommendation. Without its parser for AppArmor, Docker starts no container.
    "apparmor",
    # Podman's names, networks and rootless containers.
    "crun", "netavark", "aardvark-dns", "containernetworking-plugins", "slirp4netns", "fuse-overlayfs", "catatonit",
)  # fmt: skip

SERVICES = (
    "postgresql@", "redis-server", "nginx", "dnsmasq", "docker", "containerd", "podman", "podman-restart",
    "podman-auto-update", "apparmor",
)  # fmt: skip

ALLOWED = "/run/programs-may-start"


class ToldProgress:
    """Tells each step of the build on standard error, once."""

    def __init__(self) -> None:
        self._step = ""

    def update(self, step: str, done: int, total: int | None) -> None:
        """Tell `step` unless that was the last one told."""
        if step != self._step:
            self._step = step
            print(f"image with the programs: {step}", file=sys.stderr, flush=True)


def _with_conditions(overlay: bytes) -> bytes:
    """The overlay with a drop-in for each service that makes it wait to be asked for."""
    buffer = io.BytesIO()
    buffer.write(overlay)
    buffer.seek(0)
    with tarfile.open(fileobj=buffer, mode="a", format=tarfile.USTAR_FORMAT) as archive:
        for service in SERVICES:
            content = f"[Unit]\nConditionPathExists={ALLOWED}\n".encode()
            member = tarfile.TarInfo(f"etc/systemd/system/{service}.service.d/50-when-asked-for.conf")
            member.size = len(content)
            member.mode = 0o644
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def programs_recipe() -> Recipe:
    """What the image is built from."""
    plain = recipe_for("debian-12", platform.machine(), guest_files())
    return replace(plain, overlay=_with_conditions(plain.overlay), more_packages=PACKAGES)


def programs_image() -> Image:
    """The image, from the cache or built now (about five minutes)."""
    return trio.run(image_of, programs_recipe(), cache(), ToldProgress())


def configuration(image: Image) -> str:
    """The `images` of a configuration that boots `image`."""
    return (
        f"images:\n- location: {os.fspath(image.disk)}\n"
        f"  kernel:\n    location: {image.kernel}\n    cmdline: {image.command_line}\n"
        f"  initrd:\n    location: {image.initrd}\n"
    )
