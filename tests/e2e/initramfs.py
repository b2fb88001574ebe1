"""Initramfs archives in the kernel's own format, from values and folders: no root, no mknod, the same bytes each time.

The format is "newc" of cpio(5); the kernel reads it as Documentation/driver-api/early-userspace/buffer-format.rst says.
"""

from __future__ import annotations

import stat
from pathlib import Path


class Initramfs:
    """Collects files, folders, links and devices; `to_bytes` gives the archive."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[int, bytes, tuple[int, int]]] = {}

    def folder(self, name: str) -> None:
        """Add the folder `name` and those above it."""
        path = Path(name)
        for parent in [*reversed(path.parents), path]:
            if parent != Path():
                self._entries.setdefault(parent.as_posix(), (stat.S_IFDIR | 0o755, b"", (0, 0)))

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file and the folders above it."""
        self.folder(Path(name).parent.as_posix())
        self._entries[name] = (stat.S_IFREG | mode, content, (0, 0))

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link and the folders above it."""
        self.folder(Path(name).parent.as_posix())
        self._entries[name] = (stat.S_IFLNK | 0o777, target.encode(), (0, 0))

    def character_device(self, name: str, major: int, minor: int) -> None:
        """Add a character device and the folders above it."""
        self.folder(Path(name).parent.as_posix())
        self._entries[name] = (stat.S_IFCHR | 0o600, b"", (major, minor))

    def tree(self, name: str, source: Path) -> None:
        """Add everything below `source` under the folder `name`, with its modes and symbolic links."""
        for path in sorted(source.rglob("*")):
            inside = f"{name}/{path.relative_to(source).as_posix()}"
            if path.is_symlink():
                self.link(inside, path.readlink().as_posix())
            elif path.is_dir():
                self.folder(inside)
            else:
                self.file(inside, path.read_bytes(), stat.S_IMODE(path.stat().st_mode))

    def to_bytes(self) -> bytes:
        """The whole archive, uncompressed: under software emulation, unpacking would cost more than reading."""
        parts = [_entry(number, name, *entry) for number, (name, entry) in enumerate(self._entries.items(), start=1)]
        return b"".join([*parts, _entry(0, "TRAILER!!!", 0, b"", (0, 0))])


def _entry(inode: int, name: str, mode: int, content: bytes, device: tuple[int, int]) -> bytes:
    encoded = name.encode() + b"\0"
    links, time, owner = 1, 0, 0
    fields = (inode, mode, owner, owner, links, time, len(content), 0, 0, *device, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return _padded(header) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
