"""Training windows and free disk space decide whether trainings start, and the dispatcher is woken for it."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from bot.db import Database
from bot.queue import JobStore
from bot.queue.planning.windows import parse_windows
from bot.queue.store.queue_control import Admission
from bot.scheduled import AdmissionControl, DiskMonitor
from bot.scheduled.admission_control import WakeupScheduler
from tests.bot.conftest import Submit
from tests.bot.fakes import FakeClock

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()


def test_no_training_starts_outside_the_windows_or_while_the_disk_is_full(clock: FakeClock) -> None:
    free = [100]
    disk = DiskMonitor(Path("/"), min_free_bytes=50, free=lambda path: free[0])
    control = AdmissionControl(parse_windows(["mon-fri 20:00-08:00"], zone=BERLIN), disk, clock=clock)
    clock.at = at("2026-11-24T21:00")
    assert (control(), control.hold_reason()) == (Admission.ALLOW, "")
    free[0] = 49
    assert control() is Admission.HOLD
    assert "49 B" in control.hold_reason()
    clock.at = at("2026-11-28T12:00")
    assert control() is Admission.HOLD
    # Discord shows it in the reader's own time and language.
    assert f"<t:{int(at('2026-11-30T20:00'))}:f>" in control.hold_reason()


def test_a_full_disk_counts_as_full_until_there_is_some_space_to_spare() -> None:
    free = [49]
    disk = DiskMonitor(Path("/"), min_free_bytes=50, free=lambda path: free[0])
    is_low = []
    for free[0] in (49, 52, 56, 52, 49):
        is_low.append(disk.is_low())
    assert is_low == [True, True, False, False, True]
    assert not DiskMonitor(Path("/"), min_free_bytes=0, free=lambda path: 0).is_low()


async def test_the_dispatcher_is_woken_at_the_edge_of_a_window(db: Database, store: JobStore, clock: FakeClock) -> None:
    clock.at = at("2026-11-24T19:59")
    disk = DiskMonitor(Path("/"), min_free_bytes=0)
    control = AdmissionControl(parse_windows(["20:00-08:00"], zone=BERLIN), disk, clock=clock)
    wakeup = WakeupScheduler(db, store.changed, control, clock=clock)
    await wakeup.check()
    store.changed.clear()
    await wakeup.check()
    assert not store.changed.is_set()
    clock.advance(60)
    await wakeup.check()
    assert store.changed.is_set()


async def test_the_dispatcher_is_woken_at_a_delayed_start(
    db: Database, store: JobStore, submit: Submit, clock: FakeClock
) -> None:
    wakeup = WakeupScheduler(db, store.changed, lambda: Admission.ALLOW, clock=clock)
    await submit()
    async with db.transaction() as connection:
        await connection.execute_fetchall("UPDATE job SET run_after = ?", (clock.time() + 61,))
    await wakeup.check()
    store.changed.clear()
    await asyncio.sleep(0.05)
    assert not store.changed.is_set()
    clock.advance(60.99)
    await wakeup.check()
    assert not store.changed.is_set()
    await asyncio.wait_for(store.changed.wait(), 60)
