"""A guest agent that lies: whoever sits in the guest and may write whatever it likes to the channel.

It knows the protocol (markers, checksums, sequence numbers), so what it says gets as far as it can. QEMU's monitor and
process are there as for `living_qemu`; the host agent is the real one, in a process of its own.
"""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from hostagent.paths import InstancePaths
from hostagent.qemu.pid_file import ProcessIdentity, hold_pid_file
from protocol.codec import decode_untrusted, encode
from protocol.framing import FrameDecoder, FrameEncoder, PeerGaveUpError, Preamble, PreambleKind, generation_seed
from protocol.limits import PROTOCOL_VERSIONS
from protocol.messages import Hello, Message
from tests.fakes.qmp_server import qmp_server

BOUND = 60.0
"""Seconds that anything may take here; most take milliseconds on a quiet machine."""

MARKER = b"a lying guest 16"
_READ = 262_144

ALL_CAPABILITIES = frozenset({"tcp", "udp", "exec", "unix", "listen"})


class LyingGuest:
    """The guest's end of one channel. Made by `lying_guest`."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener
        self._stream: trio.SocketStream | None = None
        self._decoder = FrameDecoder()
        self._encoder = FrameEncoder(0)
        self.ends = 0
        """How often the host gave up a generation, or asked for one."""
        self.heard: list[Message] = []
        """What the host said in this generation, as far as it was read."""
        self.told: deque[Message | str] = deque(maxlen=40)
        """The last things that the host said, also in generations before: for the message of a test that fails."""

    async def connect(self) -> None:
        """Wait for the host, which connects again whenever it has closed the socket."""
        await self.hang_up()
        with trio.fail_after(BOUND):
            self._stream = await self._listener.accept()
        self._decoder = FrameDecoder()

    async def hang_up(self) -> None:
        """Close the line."""
        if self._stream is not None:
            await trio.aclose_forcefully(self._stream)
            self._stream = None

    async def greet(
        self,
        *,
        boot_id: str = "boot",
        description: str = "a liar",
        hello: bytes = b"",
        capabilities: frozenset[str] = frozenset({"tcp", "udp", "exec"}),
    ) -> None:
        """Begin a generation, on a new connection when the host has closed the old one."""
        if self._stream is None:
            await self.connect()
        while True:
            try:
                await self._begin()
                break
            except (trio.BrokenResourceError, EOFError):
                await self.connect()
        words = Hello(*PROTOCOL_VERSIONS, capabilities, "1.0", boot_id, description)
        await self.say_bodies(hello or encode(words))

    async def _begin(self) -> None:
        """Ask for a generation and answer every SYNC until the host says hello."""
        self.heard.clear()
        await self.say_bytes(Preamble(PreambleKind.LOST, MARKER).encode())
        self._decoder.hunt()
        while not any(isinstance(message, Hello) for message in self.heard):
            await self.listen()

    async def say(self, *messages: Message) -> None:
        """Say messages; raises `BrokenResourceError` when the host has closed the line."""
        await self.say_bodies(*map(encode, messages))

    async def say_bodies(self, *bodies: bytes) -> None:
        """Say bodies that may be no messages, each in a frame as it should be."""
        await self.say_bytes(b"".join(self._encoder.encode(body) for body in bodies))

    async def say_bytes(self, data: bytes) -> None:
        """Say bytes."""
        assert self._stream is not None, "the host is not connected"
        with trio.fail_after(BOUND):
            await self._stream.send_all(data)

    async def hear(self, kind: type[Message]) -> Message:
        """The next message of this kind."""
        with trio.move_on_after(BOUND):
            while True:
                for index, message in enumerate(self.heard):
                    if isinstance(message, kind):
                        return self.heard.pop(index)
                await self.listen()
        raise AssertionError(f"the host did not say {kind.__name__}, but at last {list(self.told)}")

    async def listen(self) -> None:
        """Read once, and take what came: a SYNC is answered. Raises `EOFError` at the end of the connection."""
        self._decoder.receive_data(await self._read())
        while True:
            try:
                for item in self._decoder.items_untrusted():
                    await self._take(item)
                break
            except PeerGaveUpError:
                self.ends += 1

    async def _take(self, item: bytes | Preamble) -> None:
        if isinstance(item, bytes):
            message = decode_untrusted(item)
            self.heard.append(message)
            self.told.append(message)
        elif item.kind is PreambleKind.SYNC:
            self.ends += 1
            self.told.append("SYNC")
            seed = generation_seed(item.marker, MARKER)
            self._decoder.begin(seed)
            self._encoder = FrameEncoder(seed)
            self.heard.clear()
            await self.say_bytes(Preamble(PreambleKind.ANSWER, MARKER, item.marker).encode())

    async def _read(self) -> bytes:
        assert self._stream is not None, "the host is not connected"
        with trio.fail_after(BOUND):
            data = await self._stream.receive_some(_READ)
        if not data:
            raise EOFError
        return bytes(data)

    async def is_over(self) -> bool:
        """Read until the host has ended the generation: it says so, asks for another one, or closes the line."""
        before = self.ends
        try:
            while self.ends == before:
                await self.listen()
        except (trio.BrokenResourceError, EOFError):
            await self.hang_up()
        return True


class HostAgentProcess:
    """The real host agent of an instance whose guest lies."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process

    def resident(self, field: str = "VmRSS") -> int:
        """Bytes of memory now, or at most so far with "VmHWM" (proc(5))."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
        raise ValueError(field)

    def cpu_seconds(self) -> float:
        """CPU time so far, user and system (proc(5))."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def most_descriptors(self) -> int:
        """Files that it may open."""
        return resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE)[0]

    def descriptors(self) -> int:
        """Open files."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@contextlib.asynccontextmanager
async def lying_guest(paths: InstancePaths) -> AsyncIterator[tuple[LyingGuest, HostAgentProcess]]:
    """A host agent and its lying guest, until the end of the block."""
    with hold_pid_file(paths.qemu_pid) as pid_file:
        qemu = await trio.lowlevel.open_process(["sleep", "600"], pass_fds=[pid_file.fd], start_new_session=True)
        pid_file.record(ProcessIdentity(qemu.pid, 0.0))
    with trio.socket.socket(trio.socket.AF_UNIX) as sock:
        await sock.bind(str(paths.channel_socket))
        sock.listen(1)
        async with qmp_server(paths.monitor_socket):
            agent = await trio.lowlevel.open_process(
                [sys.executable, "-m", "hostagent.agent_main", paths.name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            guest = LyingGuest(trio.SocketListener(sock))
            try:
                yield guest, HostAgentProcess(agent)
            except BaseException:
                print(paths.agent_log.read_text() if paths.agent_log.exists() else "no agent.log")
                raise
            finally:
                with trio.CancelScope(shield=True):
                    await guest.hang_up()
                    for process in (agent, qemu):
                        process.kill()
                        await process.wait()
