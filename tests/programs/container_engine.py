"""A container engine in the guest, used by its command as a user would."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tests.programs import container_image
from tests.programs.guest import ProgramGuest

GONE_SECONDS = {"stop": 5.0, "kill": 40.0, "pod": 5.0}
"""Bounds on the time from the end of the engine's command until its ports are gone. `podman kill` does not wait for the
end: conmon then starts another podman that clears up, which takes seconds under software emulation."""

READY = "/run/programs-ready"
"""Folder of the guest with a FIFO for each container: what is read from it comes when the container serves."""

Port = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Engine:
    """How one engine is used."""

    command: str
    """What runs it in the guest's shell, such as `docker`."""
    name: str
    """How its containers are called in the list of ports: `docker` for `docker/NAME`."""

    def ask(self, guest: ProgramGuest, words: str, stdin: bytes = b"") -> str:
        """What the engine's command prints."""
        return guest.shell(f"{self.command} {words}", stdin=stdin)

    def serve(self, guest: ProgramGuest, name: str, words: str) -> None:
        """Run the engine's command, which starts a container, and wait until that serves."""
        fifo = f"{READY}/{name}"
        guest.shell(f"test -p {fifo} || {{ mkdir -p -m 777 {READY}; mkfifo {fifo}; chmod 666 {fifo}; }}"
                    f"\n{self.command} {words} >/dev/null\ntest $(timeout 60 cat {fifo}) = up")  # fmt: skip

    def load(self, guest: ProgramGuest) -> None:
        """Give it the image."""
        self.ask(guest, f"import - {container_image.NAME}", container_image.archive())

    @contextmanager
    def container(self, guest: ProgramGuest, name: str, options: str, serve: str = "tcp:80 udp:53") -> Iterator[None]:
        """A container that serves, for as long as the block."""
        self.serve(
            guest,
            name,
            f"run --detach --name {name} --env NAME={name} --volume /usr:/usr:ro --volume {READY}:/ready {options}"
            f" {container_image.NAME} python3 /server.py {serve}",
        )
        try:
            yield
        finally:
            self.ask(guest, f"rm --force {name}")

    def ends(self, guest: ProgramGuest, words: str, ports: Sequence[Port]) -> None:
        """Run a command that ends containers: their ports are gone within seconds of it."""
        self.ask(guest, words)
        began = time.monotonic()
        verb = words.split()[0]
        for number, protocol in ports:
            guest.ports.gone(number, protocol, GONE_SECONDS[verb])
        guest.note(f"gone {time.monotonic() - began:.1f} s after `{verb}`")
