"""One UDP listener on the host: each client address is a flow with a socket of its own in the guest.

The guest's server therefore sees distinct peers and answers each of them. A flow ends when it was idle for `IDLE`
seconds, when the guest says that nobody listens (port unreachable), or when `FLOWS` are alive and a new client comes:
then the one that was idle longest leaves. Datagrams keep their boundaries, 0 to 65,507 bytes. What finds no room is
dropped and counted, as everywhere with UDP; what the kernel dropped because we were late is counted as well.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from collections.abc import Callable

import trio

from hostagent.channel import Channel, StreamHandler
from hostagent.datagram_socket import DatagramSocket, Peer, dropped_by_kernel
from hostagent.forwards import Traffic
from hostagent.route import Route
from hostagent.stream_socket import wait_readable
from protocol.streams import Stream

FLOWS = 1_024
IDLE = 90.0
DATAGRAMS_PER_TURN = 32


class _Flow(StreamHandler):
    """One client of one listener."""

    def __init__(self, listener: UdpListener, client: Peer, traffic: Traffic) -> None:
        self._listener = listener
        self.client = client
        self.traffic = traffic
        self.stream: Stream | None = None
        self.last_used = 0.0

    def receive_data(self, payload: bytes) -> None:
        self._listener.answer(self, payload)

    def receive_reset(self, reason: str) -> None:
        self._listener.forget(self)

    def refused(self, error: str, reason: str) -> None:
        self._listener.forget(self)


class UdpListener:
    """The flows of one bound socket. `route` is asked for each new one: another guest port may take over."""

    def __init__(
        self,
        sock: socket.socket,
        channel: Channel,
        route: Callable[[], Route | None],
    ) -> None:
        self._sock = sock
        self._datagrams = DatagramSocket(sock)
        self._channel = channel
        self._route = route
        self._flows: OrderedDict[Peer, _Flow] = OrderedDict()
        """Least recently used first."""
        self._first_flow = trio.Event()
        self._kernel_drops = 0

    async def run(self) -> None:
        """Receive and expire until the socket is closed."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._expire)
                await self._receive()
                nursery.cancel_scope.cancel()
        finally:
            for flow in list(self._flows.values()):
                self._end(flow, "the listener was closed")
            self._channel.flush()

    async def _receive(self) -> None:
        while await wait_readable(self._sock):
            self._receive_turn()
            self._count_kernel_drops()
            self._channel.flush()

    def _receive_turn(self) -> None:
        for _ in range(DATAGRAMS_PER_TURN):
            try:
                payload, client = self._datagrams.receive()
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error of an earlier answer; recvmsg(2) reports it once
            self._send(client, payload)

    def _count_kernel_drops(self) -> None:
        """A drop needs a full queue, so each is seen after one of the turns that empty it."""
        drops = dropped_by_kernel(self._sock)
        if drops is None or drops == self._kernel_drops:
            return
        if (route := self._route()) is not None:
            route.traffic.datagrams_dropped += (drops - self._kernel_drops) & 0xFFFFFFFF
        self._kernel_drops = drops

    def _send(self, client: Peer, payload: bytes) -> None:
        flow = self._flows.get(client) or self._begin(client)
        if flow is None:
            return
        traffic = flow.traffic
        if flow.stream is None or not self._channel.connection.send_data(flow.stream, payload):
            traffic.datagrams_dropped += 1
            return
        flow.last_used = trio.current_time()
        self._flows.move_to_end(client)
        traffic.datagrams_to_guest += 1
        traffic.bytes_to_guest += len(payload)

    def _begin(self, client: Peer) -> _Flow | None:
        if len(self._flows) >= FLOWS:
            self._end(next(iter(self._flows.values())), "another client needs the place")
        if (route := self._route()) is None:
            return None
        flow = _Flow(self, client, route.traffic)
        flow.stream = self._channel.open(route.kind, route.target, flow)
        if flow.stream is None:
            flow.traffic.datagrams_dropped += 1
            return None
        self._flows[client] = flow
        flow.traffic.connections += 1
        flow.traffic.connections_total += 1
        self._first_flow.set()
        return flow

    def answer(self, flow: _Flow, payload: bytes) -> None:
        """Give the client a datagram of the guest."""
        traffic = flow.traffic
        try:
            self._datagrams.send(payload, flow.client)
        except OSError:
            traffic.datagrams_dropped += 1
            return
        flow.last_used = trio.current_time()
        self._flows.move_to_end(flow.client)
        traffic.datagrams_to_host += 1
        traffic.bytes_to_host += len(payload)

    def forget(self, flow: _Flow) -> None:
        """The flow's stream is over."""
        if self._flows.get(flow.client) is flow:
            del self._flows[flow.client]
            flow.traffic.connections -= 1

    def _end(self, flow: _Flow, reason: str) -> None:
        self.forget(flow)
        if flow.stream is not None:
            self._channel.forget(flow.stream, flow)
            self._channel.connection.send_reset(flow.stream, reason)

    async def _expire(self) -> None:
        """End flows that were idle for `IDLE`; sleeps for ever while there is none."""
        while True:
            if not self._flows:
                self._first_flow = trio.Event()
                await self._first_flow.wait()
            oldest = next(iter(self._flows.values()))
            if (due := oldest.last_used + IDLE) > trio.current_time():
                await trio.sleep_until(due)
            else:
                self._end(oldest, "idle")
                self._channel.flush()
