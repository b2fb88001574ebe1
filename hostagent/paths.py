"""Every path that hostagent creates on the host, in one place.

`HOSTAGENT_HOME` (default `~/.hostagent`) holds one folder per instance and nothing else that matters;
`HOSTAGENT_CACHE` (default `$XDG_CACHE_HOME/hostagent` or `~/.cache/hostagent`) holds what can be fetched or built
again: images, the frozen guest agent, probe results.

A unix socket's path must fit `sun_path`: 108 bytes on Linux, 104 on macOS (unix(7)), NUL included. The smaller one
holds everywhere, and is checked before anything is created.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from hostagent.errors import UserError

MAX_SOCKET_PATH = 103
"""Longest socket path in bytes that fits sun_path with its NUL on every supported host."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def home() -> Path:
    """The folder that holds the instances. It may not exist yet."""
    return Path(os.environ.get("HOSTAGENT_HOME") or Path.home() / ".hostagent").absolute()


def cache() -> Path:
    """The folder for what can be fetched or built again. It may not exist yet."""
    if chosen := os.environ.get("HOSTAGENT_CACHE"):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "hostagent"


def check_name(name: str) -> str:
    """Return `name` if it can be an instance's (and a host) name; raise `UserError` otherwise."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is not a usable instance name",
            "use 1 to 63 lowercase letters, digits, dots, dashes or underscores, starting with a letter or digit",
        )
    return name


def names_a_file(argument: str) -> bool:
    """Whether what the user typed is meant as a configuration file, and not as a name."""
    return "/" in argument or argument.lower().endswith((".yaml", ".yml"))


@dataclass(frozen=True, slots=True)
class InstancePaths:
    """The files of one instance, all below its own 0700 folder."""

    directory: Path

    @classmethod
    def of(cls, name: str) -> InstancePaths:
        """Paths of the instance `name`; raises `UserError` for a bad name or a socket path that is too long."""
        paths = cls(home() / check_name(name))
        longest = max((paths.channel_socket, paths.monitor_socket, paths.api_socket), key=lambda p: len(os.fsencode(p)))
        if (length := len(os.fsencode(longest))) > MAX_SOCKET_PATH:
            raise UserError(
                f"the path {longest} has {length} bytes, and a socket's path may have {MAX_SOCKET_PATH}",
                "set HOSTAGENT_HOME to a shorter path, or give the instance a shorter name",
            )
        return paths

    @property
    def name(self) -> str:
        """The instance's name."""
        return self.directory.name

    @property
    def config(self) -> Path:
        """config.yaml as the user gave it."""
        return self.directory / "config.yaml"

    @property
    def resolved_config(self) -> Path:
        """The validated configuration with all defaults, as JSON."""
        return self.directory / "resolved.json"

    @property
    def launch_plan(self) -> Path:
        """What `up` decided, as JSON: all that the host agent reads."""
        return self.directory / "launch.json"

    @property
    def disk(self) -> Path:
        """The qcow2 overlay on the image."""
        return self.directory / "disk.qcow2"

    @property
    def disk_image(self) -> Path:
        """Which image the disk is made from, as JSON, with the kernel that goes with it."""
        return self.directory / "image.json"

    @property
    def seed(self) -> Path:
        """The cloud-init seed ISO, written anew at each start."""
        return self.directory / "seed.iso"

    @property
    def channel_socket(self) -> Path:
        """The chardev socket behind the virtio-serial port; QEMU listens on it."""
        return self.directory / "channel.sock"

    @property
    def monitor_socket(self) -> Path:
        """QEMU's monitor (QMP); QEMU listens on it."""
        return self.directory / "qmp.sock"

    @property
    def api_socket(self) -> Path:
        """The host agent's HTTP API."""
        return self.directory / "api.sock"

    @property
    def qemu_pid(self) -> Path:
        """Identity of the QEMU process (JSON: pid and start time)."""
        return self.directory / "qemu.pid"

    @property
    def qemu_log(self) -> Path:
        """What QEMU printed."""
        return self.directory / "qemu.log"

    @property
    def serial_log(self) -> Path:
        """What the guest printed on its serial console."""
        return self.directory / "serial.log"

    @property
    def agent_log(self) -> Path:
        """The host agent's log, JSON lines."""
        return self.directory / "agent.log"

    @property
    def agent_errors(self) -> Path:
        """The host agent's standard error: empty unless something is wrong with it."""
        return self.directory / "agent.err"

    @property
    def up_lock(self) -> Path:
        """Locked (flock) by the `hostagent up` that prepares the instance."""
        return self.directory / "up.lock"

    @property
    def lock(self) -> Path:
        """Locked (flock) by the host agent for as long as it lives."""
        return self.directory / "lock"
