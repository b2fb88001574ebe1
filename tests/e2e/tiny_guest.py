"""A guest in five seconds: Debian's cloud kernel, busybox, the frozen agent and frozen test servers.

The real kernel, the real virtio-serial link and the real frozen agent, without an image, a network or root. What is
missing is the distribution: no systemd, no cloud-init, no Python. `agent_command` is started again whenever it ends.

Promises: `tiny_guest` gives a guest whose test server answers; whatever waits for it fails at once with the serial
console's last lines when QEMU dies; QEMU is gone when the block ends, and also when this process is killed.
"""

from __future__ import annotations

import codecs
import os
import platform
import re
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from hostagent import guest_payload, paths
from tests.e2e.guest_kernel import obtain_kernel
from tests.e2e.initramfs import Initramfs
from tests.e2e.server_control import GuestServer
from tests.e2e.virtual_cpus import virtual_cpus

REPOSITORY = Path(__file__).resolve().parents[2]
SERVER_SPEC = "tests/e2e/guest_server.spec"
SERVER_MODULES = ("tests/e2e/guest_server.py", "tests/conformance/guest_side.py")

BOOT_SECONDS = 90.0
"""Bound on power-on to the test server's first answer; about 6 s on an idle machine under TCG."""

SOCKETS = ("channel", "monitor", "test")
"""QEMU's chardevs: the agent's virtio-serial port, QMP, the test server's port."""


class GuestDiedError(Exception):
    """QEMU ended while the guest was needed."""


class SerialLog:
    """What the guest printed on its serial console, as it comes."""

    def __init__(self) -> None:
        self.text = ""
        self._grown = trio.lowlevel.ParkingLot()

    async def follow(self, stream: trio.abc.ReceiveStream) -> None:
        """Read `stream` to its end. Carriage returns go, wherever a chunk ends: a terminal sends one per line."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        async for chunk in stream:
            self.text += decoder.decode(chunk).replace("\r", "")
            self._grown.unpark_all()

    def tail(self, lines: int = 25) -> str:
        """The last lines, for a failure's message."""
        return "\n".join(self.text.splitlines()[-lines:])

    async def wait_for_line(self, pattern: str, seconds: float = 90.0) -> re.Match[str]:
        """The first match of `pattern` (multi-line mode) that is or will be printed; `TooSlowError` after `seconds`."""
        compiled = re.compile(pattern, re.MULTILINE)
        with trio.fail_after(seconds):
            while not (found := compiled.search(self.text)):
                await self._grown.park()
        return found


@dataclass(frozen=True, slots=True)
class TinyGuest:
    """A running guest. `pid` is QEMU's."""

    channel_socket: Path
    monitor_socket: Path
    serial: SerialLog
    server: GuestServer
    pid: int


async def _frozen_server(cache: Path) -> Path:
    """guest_side.py as a frozen tree; frozen when it or what freezes it changed."""
    inputs = [(name, await trio.Path(REPOSITORY / name).read_bytes()) for name in (SERVER_SPEC, *SERVER_MODULES)]
    version = guest_payload.freeze_fingerprint(inputs)
    tree = cache / "guest-server" / version
    with tempfile.TemporaryDirectory(prefix="freeze-") as folder:
        # What is called like the specification travels with it to where it is frozen.
        spec = Path(folder) / Path(SERVER_SPEC).name
        for name, content in inputs:
            file = spec if name == SERVER_SPEC else spec.with_suffix(".modules") / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        await guest_payload.obtain_frozen_tree(spec, tree, version, cache, lambda _line: None)
    return tree


async def boot_files(folder: Path, agent_command: str) -> tuple[Path, Path]:
    """Kernel and initramfs; the latter is written to `folder`."""
    cache = paths.cache()
    kernel = await trio.to_thread.run_sync(obtain_kernel, cache)
    payload = await guest_payload.obtain_guest_agent(platform.machine(), cache, lambda _line: None)
    server = await _frozen_server(cache)
    initramfs = folder / "initramfs"
    await trio.to_thread.run_sync(_write_initramfs, initramfs, kernel.modules, payload.directory, server, agent_command)
    return kernel.image, initramfs


def _write_initramfs(target: Path, modules: dict[str, bytes], agent: Path, server: Path, agent_command: str) -> None:
    archive = Initramfs()
    for name in ("dev", "proc", "sys", "run", "tmp", "root", "etc"):
        archive.folder(name)
    archive.character_device("dev/console", 5, 1)
    archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    archive.file("etc/group", b"root:x:0:\n")
    archive.file("bin/busybox", Path("/bin/busybox").read_bytes(), 0o755)
    archive.link("bin/sh", "busybox")
    for number, (name, content) in enumerate(modules.items()):
        archive.file(f"modules/{number:02}-{name}.ko", content)
    archive.tree("usr/lib/guestagent", agent)
    archive.tree("usr/lib/guest_server", server)
    for library in _base_libraries(agent):
        archive.file(str(library).lstrip("/"), library.read_bytes(), 0o755)
    init = (REPOSITORY / "tests/e2e/tiny_guest.init").read_text(encoding="utf-8").replace("@AGENT@", agent_command)
    archive.file("init", init.encode(), 0o755)
    target.write_bytes(archive.to_bytes())


def _base_libraries(tree: Path) -> set[Path]:
    """What PyInstaller leaves to the system: glibc and the dynamic loader (ldd(1) lists what is loaded, by path)."""
    elf_files = [tree / "guestagent", *(tree / "_internal").rglob("*.so*")]
    listing = subprocess.run(["ldd", *elf_files], check=True, capture_output=True, text=True).stdout
    found = {Path(path) for path in re.findall(r"(/\S+) \(0x", listing)}
    return {path for path in found if tree not in path.parents}


def _command(kernel: Path, initramfs: Path, listeners: dict[str, socket.socket]) -> list[str]:
    sockets = [
        argument
        for name, listener in listeners.items()
        for argument in ("-chardev", f"socket,id={name},fd={listener.fileno()},server=on,wait=off")
    ]
    return [
        "setpriv", "--pdeathsig", "KILL",
        "qemu-system-x86_64",
        "-machine", "q35,hpet=off",
        "-accel", "tcg,thread=multi",
        "-cpu", "max,-erms",
        "-smp", "2",
        "-m", "512",
        "-nodefaults", "-no-user-config", "-no-reboot",
        "-display", "none",
        "-serial", "stdio",
        "-kernel", str(kernel),
        "-initrd", str(initramfs),
        # On a busy host the kernel's test of the timer interrupt fails, and it stands still before its first word.
        # Without random addresses, where it stands can be looked up.
        "-append", "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check",
        "-netdev", "user,id=net0",
        "-device", "virtio-net-pci,netdev=net0",
        "-device", "virtio-serial-pci",
        *sockets,
        "-mon", "chardev=monitor,mode=control",
        "-device", "virtserialport,chardev=channel,name=hostagent.0",
        "-device", "virtserialport,chardev=test,name=hostagent.test",
    ]  # fmt: skip


def _start(kernel: Path, initramfs: Path, folder: Path) -> subprocess.Popen[bytes]:
    """QEMU, its sockets in `folder` listening from the first moment, so that nobody has to wait for them.

    Not trio.run_process: that forks in a worker thread, and PR_SET_PDEATHSIG (prctl(2)) counts the death of the thread
    that forked, and an idle worker thread ends after seconds.
    """
    with ExitStack() as stack:
        listeners = {name: stack.enter_context(socket.socket(socket.AF_UNIX)) for name in SOCKETS}
        for name, listener in listeners.items():
            listener.bind(str(folder / f"{name}.sock"))
            listener.listen(1)
        return subprocess.Popen(
            _command(kernel, initramfs, listeners),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[listener.fileno() for listener in listeners.values()],
        )


async def _watch(qemu: subprocess.Popen[bytes], serial: SerialLog) -> None:
    """Follow the serial console until QEMU ends, then raise."""
    assert qemu.stdout is not None
    async with trio.lowlevel.FdStream(os.dup(qemu.stdout.fileno())) as output:
        await serial.follow(output)
    raise GuestDiedError(f"QEMU ended; the guest's serial console and QEMU's own words end with:\n{serial.tail()}")


@asynccontextmanager
async def tiny_guest(agent_command: str = "guestagent") -> AsyncIterator[TinyGuest]:
    """A booted guest; `agent_command` is a line of its /bin/sh.

    Raises `GuestDiedError` when QEMU ends before the block does. What the block raises comes out as it is, with the
    end of the serial console as a note.
    """
    with tempfile.TemporaryDirectory(prefix="tiny-") as folder_name:
        folder = Path(folder_name)
        kernel, initramfs = await boot_files(folder, agent_command)
        serial = SerialLog()
        qemu = _start(kernel, initramfs, folder)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_watch, qemu, serial)
                async with await trio.open_unix_socket(str(folder / "test.sock")) as stream:
                    server = GuestServer(stream)
                    await server.request("hello", seconds=BOOT_SECONDS)
                    yield TinyGuest(folder / "channel.sock", folder / "monitor.sock", serial, server, qemu.pid)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            cause = _only_cause(group)
            cause.add_note(f"the guest's serial console ends with:\n{serial.tail()}")
            cause.add_note(f"its virtual CPUs:\n{await virtual_cpus(folder / 'monitor.sock')}")
            raise cause from None
        finally:
            qemu.kill()
            with qemu:  # collects the process and closes the pipe
                pass


def _only_cause(error: BaseException) -> BaseException:
    """What a nursery wrapped, where it wrapped one exception: a test's own failure, or the guest's death."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
