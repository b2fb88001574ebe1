from __future__ import annotations

import socket
from pathlib import Path

import pytest

from guestagent.lost_datagrams import OVERFLOWED, UNWANTED, lost_datagrams
from tests.guestagent.network_namespace import network_namespace

SNMP = """Ip: Forwarding DefaultTTL
Ip: 1 64
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors
Udp: 1000 7 3 900 3 0
UdpLite: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors
UdpLite: 0 99 0 0 99 0
"""
SNMP6 = """Ip6InReceives                   \t12
Udp6NoPorts                     \t5
Udp6RcvbufErrors                \t1
UdpLite6NoPorts                 \t99
"""


def test_both_families_count_together(tmp_path: Path) -> None:
    (tmp_path / "snmp").write_text(SNMP)
    (tmp_path / "snmp6").write_text(SNMP6)
    assert lost_datagrams(tmp_path) == {UNWANTED: 12, OVERFLOWED: 4}


@pytest.mark.parametrize("text", ["", "Udp: NoPorts\n", "Udp: NoPorts\nUdp: many\n", "Udp6NoPorts\n", "Udp:\nUdp:\n"])
def test_what_the_kernel_does_not_tell_is_left_out(tmp_path: Path, text: str) -> None:
    assert lost_datagrams(tmp_path) == {}
    (tmp_path / "snmp").write_text(text)
    (tmp_path / "snmp6").write_text(text)
    assert lost_datagrams(tmp_path) == {}


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_this_kernel_counts_what_nobody_takes(family: socket.AddressFamily) -> None:
    loopback = "127.0.0.1" if family is socket.AF_INET else "::1"
    with network_namespace(), socket.socket(family, socket.SOCK_DGRAM) as sock:
        before = lost_datagrams()
        for _ in range(3):
            sock.sendto(b"anybody?", (loopback, 9))
        after = lost_datagrams()
    assert after[UNWANTED] - before[UNWANTED] == 3
    assert after[OVERFLOWED] == before[OVERFLOWED]
