"""What `hostagent ports --watch --json` says, waited for: nobody asks again and again."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.e2e.vm import Vm

Ports = list[dict[str, Any]]

SECONDS = 30.0
"""Bound on what a program does with its ports. Most of it is the program, which emulation makes slow."""


class PortWatch:
    """The latest listing, read by a thread for as long as the command runs."""

    def __init__(self, command: subprocess.Popen[bytes]) -> None:
        self._command = command
        self._changed = threading.Condition()
        self._ports: Ports = []
        self._ended = False

    def read(self) -> None:
        """Follow the command to its end; the thread's work."""
        assert self._command.stdout is not None
        for line in self._command.stdout:
            with self._changed:
                self._ports = json.loads(line)["ports"]
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait(self, condition: Callable[[Ports], object], what: str, seconds: float = SECONDS) -> float:
        """Until a listing fulfils `condition`; the seconds that took. Otherwise an error with that listing."""
        began = time.monotonic()
        with self._changed:
            done = self._changed.wait_for(lambda: self._ended or condition(self._ports), seconds)
            assert not self._ended, "`hostagent ports --watch` has ended"
            assert done, f"not within {seconds} s: {what}; there are {words_for(self._ports)}"
        return time.monotonic() - began

    def listening(self, number: int, protocol: str = "tcp", seconds: float = SECONDS) -> Ports:
        """The lines for a guest port once all are listening and their owners known: one for each of its addresses."""
        found: Ports = []

        def is_there(ports: Ports) -> bool:
            found[:] = lines_for(ports, number, protocol)
            return bool(found) and all(one["state"] == "listening" and one["owner"] for one in found)

        self.wait(is_there, f"{protocol} {number} is listening and has an owner", seconds)
        addresses = [one["guest"]["address"] for one in found]
        assert len(set(addresses)) == len(addresses), f"{protocol} {number} is listed more than once: {found}"
        return found

    def gone(self, number: int, protocol: str = "tcp", seconds: float = SECONDS) -> float:
        """Until no line for a guest port is left; the seconds that took."""
        return self.wait(lambda ports: not lines_for(ports, number, protocol), f"{protocol} {number} is gone", seconds)


def words_for(ports: Ports) -> str:
    """What is forwarded or should be, in short, for an error."""
    words = []
    for port in ports:
        guest, owner = port["guest"], port["owner"] or {"process": "nobody", "unit": ""}
        where = guest.get("path") or f"{guest['address']} {guest['port']}"
        if port["state"] != "ignored":
            words.append(f"{port['state']} {port['protocol']} {where} of {owner['process']} {owner['unit']}")
            words += [f"({port['reason']})"] if port["reason"] else []
    return ", ".join(words)


def lines_for(ports: Ports, number: int, protocol: str) -> Ports:
    """The lines of `ports` for one guest port, without those that are not forwarded: the guest's DNS stub has 53."""
    wanted = (number, protocol)
    return [one for one in ports if (one["guest"].get("port"), one["protocol"]) == wanted and one["state"] != "ignored"]


@contextmanager
def port_watch(vm: Vm) -> Iterator[PortWatch]:
    """A watch on the ports of an instance, which has seen them once."""
    command = vm.at.start("ports", vm.name, "--watch", "--json", stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with command:
        watch = PortWatch(command)
        reader = threading.Thread(target=watch.read, name="port watch")
        reader.start()
        try:
            watch.wait(bool, "the first listing")
            yield watch
        finally:
            command.terminate()
            reader.join()
