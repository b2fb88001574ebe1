"""What a guest's ports may cost the host: work that is put together, and descriptors that are left for others."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest
import trio

from hostagent import forwarder as forwarder_module
from hostagent.forward_plan import ForwardPlan, PlanChange
from hostagent.forwards import Endpoint, ForwardState
from protocol.ports import Port, Protocol
from tests.hostagent.test_forwarder import GUEST, free_number, host


async def test_changes_without_end_are_carried_out_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[int] = []
    change = ForwardPlan.change

    def counted(self: ForwardPlan, opened: Collection[Port], closed: Collection[Port]) -> PlanChange:
        plans.append(len(opened))
        return change(self, opened, closed)

    async with host(tmp_path) as (seen, _):
        monkeypatch.setattr(ForwardPlan, "change", counted)
        always, blinking = (Port(Protocol.TCP, GUEST, free_number()) for _ in range(2))
        assert seen.forwarder.change([always], [])
        assert plans == [1], "the first one is carried out at once"
        seen.forwarder._rested = trio.current_time() + 0.01
        for _ in range(5_000):
            seen.forwarder.change([blinking], [])
            seen.forwarder.replace([always])
        assert plans == [1]
        seen.forwarder.change([blinking], [always])
        await seen.sees(lambda forwards: [str(forward.guest) for forward in forwards] == [f"{GUEST}:{blinking.number}"])
        assert plans == [1, 1]


async def test_listeners_leave_descriptors_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarder_module, "_most_listeners", lambda: 2)
    async with host(tmp_path) as (seen, guest):
        first, second = (Port(Protocol.TCP, GUEST, free_number()) for _ in range(2))
        guest.open_ports(first, second)
        forwards = await seen.sees(lambda forwards: {forward.state for forward in forwards} == {"listening", "failed"})
        (failed,) = [forward for forward in forwards if forward.state is ForwardState.FAILED]
        assert "ulimit -n" in failed.reason
        guest.close_ports(*(port for port in (first, second) if Endpoint(port.address, port.number) != failed.guest))
        await seen.state(ForwardState.LISTENING)
