"""Debian's (or Ubuntu's) cloud kernel and the modules the tiny guest loads, from the host's own package sources.

`apt-get download` fetches without installing and without root; package lists go to a folder of our own, so that this
works where nobody ran `apt-get update` and where the system's lists are not ours to write. A kernel that was fetched
once is used until somebody empties the cache.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

META_PACKAGES = ("linux-image-cloud-amd64", "linux-image-virtual")
"""Debian's name, then Ubuntu's."""

MODULES = (
    "virtio_pci", "virtio_console", "virtio_net", "tcp_diag", "udp_diag", "unix_diag", "veth", "crc32c_generic",
    "nf_tables", "nfnetlink", "nft_chain_nat", "nft_nat", "nft_compat", "nf_nat",
)  # fmt: skip
"""What a full distribution would load by itself on first use; a module built into the kernel is passed over."""

_DECOMPRESSORS = {".ko": ["cat"], ".ko.xz": ["xz", "-dc"], ".ko.zst": ["zstd", "-dc"]}


@dataclass(frozen=True, slots=True)
class GuestKernel:
    """A bootable kernel and the contents of its modules by name, in the order in which they can be loaded."""

    image: Path
    modules: dict[str, bytes]


def obtain_kernel(cache: Path) -> GuestKernel:
    """The kernel from the cache, or fetched now (30 MB, a few seconds); raises `RuntimeError` when apt cannot."""
    folder = cache / "tiny-guest-kernel"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="kernel-") as scratch:
            _fetch(Path(scratch))
            try:
                (Path(scratch) / "kernel").rename(folder)
            except OSError:
                if not folder.is_dir():  # else another test run was quicker, and its kernel is as good
                    raise
    (image,) = folder.glob("boot/vmlinuz-*")
    return GuestKernel(image, _load_order({_module_name(path): path for path in folder.rglob("*.ko*")}))


def _fetch(scratch: Path) -> None:
    """Unpack the kernel and module packages into `scratch`/kernel."""
    for folder in ("lists/partial", "archives/partial", "download"):
        (scratch / folder).mkdir(parents=True)
    options = ["-o", f"Dir::State::lists={scratch}/lists", "-o", f"Dir::Cache={scratch}", "-o", "APT::Sandbox::User="]
    _apt(["apt-get", *options, "--quiet", "update"], scratch)
    for meta in META_PACKAGES:
        depends = ["apt-cache", *options, "depends", "--recurse", "--no-recommends", "--no-suggests", meta]
        listing = _apt(depends, scratch, check=False)
        if packages := sorted(set(re.findall(r"\b(linux-(?:image|modules)-\d\S+)", listing))):
            break
    else:
        raise RuntimeError(f"apt knows none of {', '.join(META_PACKAGES)}: check the machine's package sources")
    _apt(["apt-get", *options, "--quiet", "download", *packages], scratch / "download")
    unpacked = scratch / "unpacked"
    for package in (scratch / "download").glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", package, unpacked], check=True)
    (scratch / "kernel").mkdir()
    for part in ("boot", "lib"):
        found = unpacked / part if (unpacked / part).exists() else unpacked / "usr" / part
        shutil.move(found, scratch / "kernel" / part)


def _apt(command: list[str], folder: Path, *, check: bool = True) -> str:
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def _module_name(path: Path) -> str:
    """The module's name as the kernel spells it: file names may have dashes."""
    return path.name.split(".ko")[0].replace("-", "_")


def _content(path: Path) -> bytes:
    suffix = path.name[path.name.index(".ko") :]
    return subprocess.run([*_DECOMPRESSORS[suffix], path], check=True, stdout=subprocess.PIPE).stdout


def _load_order(available: dict[str, Path]) -> dict[str, bytes]:
    """`MODULES` with what they depend on, each after its dependencies (`depends=` in .modinfo; modinfo(8))."""
    loaded: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in loaded or name not in available:
            return
        content = _content(available[name])
        found = re.search(rb"\0depends=([^\0]*)\0", content)
        for dependency in found[1].decode().split(",") if found else []:
            add(dependency.replace("-", "_"))
        loaded[name] = content

    for name in MODULES:
        add(name)
    return loaded
