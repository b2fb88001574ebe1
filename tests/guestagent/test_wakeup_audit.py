"""Audit as a source, on the real kernel: it is turned on only if it was off, and put back."""

from __future__ import annotations

import fcntl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from pyroute2.nftables.main import NFTables

from guestagent.audit_records import Enabled
from guestagent.wakeup_audit import AuditSource, _Control
from guestagent.wakeups import SourceUnavailableError
from tests.guestagent.network_namespace import network_namespace
from tests.guestagent.recording_watch import RecordingWatch


def enabled() -> Enabled:
    with _Control() as control:
        return control.status().enabled


@asynccontextmanager
async def listening(source: AuditSource, watch: RecordingWatch) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run, watch)
        await watch.until_woken_for_rules()
        watch.forget()
        yield
        nursery.cancel_scope.cancel()


async def test_a_changed_rule_in_any_namespace_wakes() -> None:
    source, watch = AuditSource(), RecordingWatch()
    async with listening(source, watch):
        with network_namespace(), NFTables(nfgen_family=1) as rules:
            rules.table("add", name="hostagent_test")
        await watch.until_woken_for_rules()
    assert source.states[0].wakeups >= 1


async def test_auditing_is_on_while_it_runs_and_then_as_before() -> None:
    before = enabled()
    async with listening(AuditSource(), RecordingWatch()):
        assert enabled() is not Enabled.OFF
        async with listening(AuditSource(), RecordingWatch()):
            assert enabled() is not Enabled.OFF
        assert enabled() is not Enabled.OFF  # the inner one had found it on
    assert enabled() is before


async def test_what_a_killed_predecessor_enabled_is_put_back_and_a_living_ones_is_not(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    before = enabled()
    with _Control() as control:
        control._set(Enabled.ON)
        try:
            lock.touch()
            with lock.open("rb") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                async with listening(AuditSource(lock=lock), RecordingWatch()):
                    pass
                assert enabled() is Enabled.ON
                assert lock.exists()
            async with listening(AuditSource(lock=lock), RecordingWatch()):
                assert enabled() is Enabled.ON
            assert enabled() is Enabled.OFF
            assert not lock.exists()
        finally:
            control._set(before)


async def test_auditing_that_is_off_stays_off_when_told_so() -> None:
    if enabled() is not Enabled.OFF:
        async with listening(AuditSource(may_enable=False), RecordingWatch()):
            return
    with pytest.raises(SourceUnavailableError, match="told to leave it so"):
        await AuditSource(may_enable=False).run(RecordingWatch())
    assert enabled() is Enabled.OFF


async def test_a_refusal_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "scripted")

    monkeypatch.setattr("guestagent.wakeup_audit.open_multicast", refuse)
    with pytest.raises(SourceUnavailableError, match="audit: not permitted"):
        await AuditSource().run(RecordingWatch())
