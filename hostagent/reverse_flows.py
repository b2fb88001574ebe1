"""Clients in the guest of a reverse UDP forward: each is a flow with a socket of its own on the host.

The guest says when a flow begins, and the host when it is over: idle for `IDLE` seconds, refused by the server (port
unreachable), or the longest idle of `FLOWS` when another client comes.
"""

from __future__ import annotations

import socket
from collections import OrderedDict

import trio

from hostagent.channel import Channel, StreamHandler
from hostagent.datagram_socket import LARGEST
from hostagent.forwards import Endpoint, Traffic
from hostagent.host_dial import addresses
from hostagent.stream_socket import wait_readable
from hostagent.udp_listener import DATAGRAMS_PER_TURN, FLOWS, IDLE
from protocol.streams import Stream


class ReverseFlow(StreamHandler):
    """One client, and the socket by which the host's server knows it."""

    def __init__(self, flows: ReverseFlows, stream: Stream, sock: socket.socket) -> None:
        self._flows = flows
        self._socket = sock
        self.stream = stream
        self.last_used = trio.current_time()

    async def run(self) -> None:
        """Carry what the server answers, until the flow is over or idle."""
        while self._socket.fileno() >= 0:
            with trio.move_on_at(self.last_used + IDLE):
                if await wait_readable(self._socket):
                    self._receive_turn()
                    self._flows.flush()
            if trio.current_time() >= self.last_used + IDLE:
                self._flows.end(self, "idle")

    def _receive_turn(self) -> None:
        for _ in range(DATAGRAMS_PER_TURN):
            try:
                payload = self._socket.recv(LARGEST)
            except BlockingIOError:
                return
            except ConnectionRefusedError:
                self._flows.end(self, "nobody listens on the host")
                return
            except OSError:
                continue  # an error of an earlier datagram; it is reported once (udp(7))
            self._flows.to_guest(self, payload)

    def receive_data(self, payload: bytes) -> None:
        try:
            self._socket.send(payload)
        except ConnectionRefusedError:
            self._flows.end(self, "nobody listens on the host")
        except OSError:  # no room, too large, no route, a firewall: lost
            self._flows.traffic.datagrams_dropped += 1
        else:
            self._flows.to_host(self, len(payload))

    def receive_end(self) -> None:
        self._flows.end(self, "the guest ended the flow")

    def receive_reset(self, reason: str) -> None:
        self._flows.forget(self)

    def close(self) -> None:
        """Free the socket; `run` notices."""
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()


class ReverseFlows:
    """All flows of one reverse forward."""

    def __init__(self, channel: Channel, end: Endpoint, traffic: Traffic) -> None:
        self._channel = channel
        self._end = end
        self.traffic = traffic
        self._flows: OrderedDict[ReverseFlow, None] = OrderedDict()
        """Least recently used first."""

    def begin(self, stream: Stream) -> ReverseFlow:
        """The flow of a stream that the guest has opened. Raises `OSError` when there can be none."""
        if len(self._flows) >= FLOWS:
            self.end(next(iter(self._flows)), "another client needs the place")
        flow = ReverseFlow(self, stream, _connected(self._end))
        self._flows[flow] = None
        self.traffic.connections += 1
        self.traffic.connections_total += 1
        self._channel.connection.accept_stream(stream)
        return flow

    def flush(self) -> None:
        """Let what was said leave."""
        self._channel.flush()

    def to_guest(self, flow: ReverseFlow, payload: bytes) -> None:
        """A datagram of the server."""
        if not self._channel.connection.send_data(flow.stream, payload):
            self.traffic.datagrams_dropped += 1
            return
        self.traffic.datagrams_to_guest += 1
        self.traffic.bytes_to_guest += len(payload)
        self._use(flow)

    def to_host(self, flow: ReverseFlow, size: int) -> None:
        """A datagram of the client has left."""
        self.traffic.datagrams_to_host += 1
        self.traffic.bytes_to_host += size
        self._use(flow)

    def end(self, flow: ReverseFlow, reason: str) -> None:
        """The flow is over, and the guest does not know it yet."""
        self.forget(flow)
        self._channel.forget(flow.stream, flow)
        self._channel.connection.send_reset(flow.stream, reason)
        self._channel.flush()

    def forget(self, flow: ReverseFlow) -> None:
        """The flow's stream is over."""
        if flow in self._flows:
            del self._flows[flow]
            self.traffic.connections -= 1
            flow.close()

    def end_all(self, reason: str) -> None:
        """The forward is gone."""
        for flow in list(self._flows):
            self.end(flow, reason)

    def _use(self, flow: ReverseFlow) -> None:
        flow.last_used = trio.current_time()
        self._flows.move_to_end(flow)


def _connected(end: Endpoint) -> socket.socket:
    """A socket that hears only the server at `end`."""
    address = addresses(end)[0]
    sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock
