"""The guest with the programs: booted once for all of them, reached through the real command line only."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.vm import BOOT_SECONDS, Vm, installation
from tests.programs.image import ALLOWED, configuration, programs_image
from tests.programs.port_watch import Ports, PortWatch, lines_for, port_watch

HTTP, NAMES = 18_080, 15_353
"""Host ports of the guest's 80 and 53, which not every user of a host may have."""

POSTGRESQL_SOCKET = ".s.PGSQL.5432"

CONFIGURATION = f"""cpus: 2
memory: 2GiB
portForwards:
- guestPort: 80
  hostPort: {HTTP}
- guestPort: 53
  hostPort: {NAMES}
- guestSocket: /var/run/postgresql/{POSTGRESQL_SOCKET}
  hostSocket: {POSTGRESQL_SOCKET}
"""

LOOPBACKS = ("127.0.0.1", "::1")
START_SECONDS = 120.0
"""Bound on the start of a program: those written in Go need several seconds under software emulation."""

NAME_SECONDS = 90.0
"""Bound on the name of a container, from when its port is there. Engines list a container late."""


@dataclass(slots=True)
class ProgramGuest:
    """The running guest, a watch on its ports, and what a case has to tell."""

    vm: Vm
    ports: PortWatch
    notes: list[str] = field(default_factory=list)

    @property
    def sockets(self) -> Path:
        """The folder of the forwarded unix sockets on the host."""
        return self.vm.at.home / self.vm.name / "sock"

    def note(self, text: str) -> None:
        """Something that was measured on the way."""
        self.notes.append(text)

    def shell(self, script: str, *, stdin: bytes = b"", seconds: float = START_SECONDS) -> str:
        """What a script prints in the guest, as root; an error when one of its commands fails."""
        return self.vm.shell(f"set -e\n{script}", stdin=stdin, seconds=seconds)

    def put(self, content: str, path: str) -> None:
        """Write a file in the guest, with its folder."""
        self.shell(f'mkdir -p "{os.path.dirname(path)}" && cat > "{path}"', stdin=content.encode())  # noqa: PTH120

    def start(self, *services: str) -> None:
        """Start services of the distribution, which none does by itself here (`image`)."""
        names, units = " ".join(services), " ".join(f"--unit {name}" for name in services)
        self.shell(
            f"touch {ALLOWED}\nsystemctl start {names} && systemctl is-active --quiet {names} ||"
            f" {{ journalctl --no-pager --lines 30 {units} >&2; exit 1; }}"
        )

    def stop(self, *units: str) -> None:
        """Stop units, also what would start them again."""
        self.shell(f"systemctl stop {' '.join(units)}")

    def listening(self, number: int, protocol: str = "tcp", *, seconds: float = START_SECONDS) -> dict[str, Any]:
        """The forward of a guest port, at the first of its addresses, once both loopbacks of the host lead to it."""
        forwards = self.ports.listening(number, protocol, seconds)
        addresses = {end["address"] for forward in forwards for end in forward["host"]}
        assert addresses == set(LOOPBACKS), f"{protocol} {number} is at {addresses}: {forwards}"
        return forwards[0]

    def belongs_to(self, unit: str, number: int, protocol: str = "tcp", *, seconds: float = NAME_SECONDS) -> None:
        """Until every line for a guest port says that it belongs to a container; its name comes behind the port."""

        def is_named(ports: Ports) -> bool:
            found = lines_for(ports, number, protocol)
            return bool(found) and all(line["owner"] and line["owner"]["unit"] == unit for line in found)

        self.ports.wait(is_named, f"{protocol} {number} belongs to {unit}", seconds)

    def rows(self, number: int, protocol: str = "tcp") -> list[str]:
        """What `hostagent ports` shows a person of a guest port."""
        rows = [re.split(r"\s{2,}", line) for line in self.vm.at.run("ports", self.vm.name).splitlines()]
        return ["  ".join(row) for row in rows if row[2].endswith(f":{number}") and row[3] == protocol]

    @contextmanager
    def rule(self, guest_end: str, host_end: str) -> Iterator[None]:
        """A rule that is added while the instance runs, for as long as the block."""
        added = self.vm.at.document("forward", "add", guest_end, host_end, "--name", self.vm.name)["rule"]["name"]
        yield
        self.vm.at.run("forward", "remove", added, "--name", self.vm.name)

    def gone(self, ports: Sequence[int | tuple[int, str]]) -> None:
        """All of these guest ports are gone soon."""
        for port in ports:
            self.ports.gone(*(port if isinstance(port, tuple) else (port,)))


@contextmanager
def programs_guest() -> Iterator[ProgramGuest]:
    """The booted guest; deleted afterwards."""
    image = programs_image()
    with installation() as at:
        path = at.home.with_name("programs.yaml")
        path.write_text(CONFIGURATION + configuration(image), encoding="utf-8")
        vm = Vm(at, "programs", path)
        vm.up(BOOT_SECONDS)
        # The guest agent is there long before the rest of a first boot is over, and `start` would wait for that.
        vm.shell("systemctl is-system-running --wait", seconds=BOOT_SECONDS)
        with port_watch(vm) as watch:
            yield ProgramGuest(vm, watch)
