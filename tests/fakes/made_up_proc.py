"""A /proc with the processes of a test, in a folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class MadeUpProc:
    """What guest agents read of /proc (proc(5)), as far as a test says."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(
        self,
        pid: int,
        *inodes: int,
        comm: str = "server",
        cgroup: str = "0::/\n",
        command_line: str = "",
        files: int = 0,
        children: Iterable[int] = (),
        namespace: int = 0,
    ) -> None:
        """A process with sockets `inodes` and so many other files, in network namespace `namespace`."""
        process = self.root / str(pid)
        (process / "fd").mkdir(parents=True)
        (process / "fdinfo").mkdir()
        (process / "comm").write_bytes(comm.encode("utf-8", "surrogateescape") + b"\n")
        (process / "cmdline").write_text(command_line)
        (process / "cgroup").write_text(cgroup)
        (process / "status").write_text(f"Name:\tx\nTgid:\t{pid}\n")
        (process / "task" / str(pid)).mkdir(parents=True)
        (process / "task" / str(pid) / "children").write_text("".join(f"{child} " for child in children))
        self._join(str(pid), namespace)
        for number, target in enumerate([*["/dev/null"] * files, *[f"socket:[{item}]" for item in inodes]]):
            (process / "fd" / str(number)).symlink_to(target)

    def add_self(self, *, namespace: int) -> None:
        """The reader of this /proc."""
        self._join("self", namespace)

    def open(self, pid: int, descriptor: int, target: str, *, inode: int | None = None, write: bool = False) -> None:
        """One more open file, to be read or to be written; `inode` as kernels from 5.14 on tell it."""
        (self.root / str(pid) / "fd" / str(descriptor)).symlink_to(target)
        info = f"pos:\t0\nflags:\t0210000{write:d}\nmnt_id:\t28\n" + (f"ino:\t{inode}\n" if inode is not None else "")
        (self.root / str(pid) / "fdinfo" / str(descriptor)).write_text(info)

    def _join(self, process: str, namespace: int) -> None:
        (self.root / process / "ns").mkdir(parents=True)
        (self.root / process / "ns" / "net").symlink_to(f"net:[{namespace}]")

    @staticmethod
    def conmon(identifier: str, name: str) -> str:
        """The command line of a container's monitor, as Podman writes it (libpod/oci_conmon_common.go)."""
        arguments = (
            *("/usr/bin/conmon", "--api-version", "1", "-c", identifier, "-u", identifier, "-r", "/usr/bin/crun"),
            *("-b", f"/var/lib/containers/storage/overlay-containers/{identifier}/userdata"),
            *("-p", f"/run/containers/storage/overlay-containers/{identifier}/userdata/pidfile", "-n", name),
            *("--exit-dir", "/run/libpod/exits", "--full-attach", "-s", "-l", "journald", "--log-level", "warning"),
        )
        return "".join(f"{argument}\0" for argument in arguments)
