"""A GPU in trouble gets no new training until it has recovered, and both are reported."""

from __future__ import annotations

import pytest

from bot.config import HealthSettings
from bot.db import Database
from bot.db.audit import read_entries
from bot.queue import JobStore, slots_of
from bot.scheduled.alerts import AdminNotifier
from bot.scheduled.gpu_health import GpuMonitor
from bot.ui.admin_news import GpuHealth, GpuTrouble
from tests.bot.conftest import Submit
from tests.bot.fakes import FakeClock
from tests.bot.scheduled.conftest import ReadNews
from trainer.protocol.devices import Devices, Gpu

GIB = 1024**3
GPU = "GPU 0 · H100"


class Machine:
    """GPUs whose health a test sets."""

    def __init__(self, db: Database, store: JobStore, notifier: AdminNotifier, clock: FakeClock) -> None:
        self.gpus = {name: Gpu(id=name, name="H100", memory_bytes=80 * GIB, temperature_c=50) for name in ("a", "b")}
        self.problem = ""
        self.queries = 0
        self._db, self._store, self._notifier, self._clock = db, store, notifier, clock

    async def query(self) -> Devices:
        self.queries += 1
        return Devices(gpus=tuple(self.gpus.values()), problem=self.problem)

    def change(self, name: str, **values: int) -> None:
        self.gpus[name] = self.gpus[name].model_copy(update=values)

    async def check(self) -> set[str]:
        """Check as a new bot, and return the devices whose slots are enabled after it."""
        monitor = GpuMonitor(
            self._db,
            self._store.slots,
            self._notifier,
            self.query,
            settings=HealthSettings(max_temperature_c=90),
            clock=self._clock,
        )
        await monitor.check()
        self._clock.advance(600)
        return {slot.device for slot in await self._store.slots.all() if slot.is_enabled}


@pytest.fixture
async def machine(db: Database, store: JobStore, notifier: AdminNotifier, clock: FakeClock) -> Machine:
    machine = Machine(db, store, notifier, clock)
    await store.slots.set(slots_of(await machine.query(), None))
    return machine


async def test_healthy_gpus_are_left_alone(sent_news: ReadNews, machine: Machine) -> None:
    assert await machine.check() == {"a", "b"}
    assert await sent_news() == []


async def test_a_machine_without_gpus_is_not_queried(store: JobStore, machine: Machine) -> None:
    await store.slots.set(slots_of(Devices(), 2))
    before = machine.queries
    await machine.check()
    assert machine.queries == before


async def test_a_hot_gpu_gets_no_training_until_it_has_cooled(
    db: Database, machine: Machine, sent_news: ReadNews
) -> None:
    machine.change("a", temperature_c=91)
    assert await machine.check() == {"b"}
    assert await machine.check() == {"b"}
    machine.change("a", temperature_c=85)
    assert await machine.check() == {"b"}
    machine.change("a", temperature_c=80)
    assert await machine.check() == {"a", "b"}
    assert [news for _, news in await sent_news()] == [
        GpuHealth(slot=GPU, trouble=GpuTrouble.HOT, value=91),
        GpuHealth(slot=GPU, trouble=None),
    ]
    assert [entry.verb for entry in await read_entries(db)] == ["slot on", "slot off"]


async def test_memory_errors_count_from_the_first_check_and_stay_until_the_driver_is_reloaded(
    sent_news: ReadNews, machine: Machine
) -> None:
    machine.change("a", ecc_errors=3)
    assert await machine.check() == {"a", "b"}
    machine.change("a", ecc_errors=4)
    assert await machine.check() == {"b"}
    assert await machine.check() == {"b"}
    machine.change("a", ecc_errors=6)
    assert await machine.check() == {"b"}
    machine.change("a", ecc_errors=0)
    assert await machine.check() == {"a", "b"}
    assert [news for _, news in await sent_news()] == [
        GpuHealth(slot=GPU, trouble=GpuTrouble.MEMORY_ERRORS, value=4),
        GpuHealth(slot=GPU, trouble=None),
    ]


async def test_a_missing_gpu_is_reported_at_the_second_check_and_comes_back(
    sent_news: ReadNews, machine: Machine
) -> None:
    gone = machine.gpus.pop("a")
    assert await machine.check() == {"a", "b"}
    assert await machine.check() == {"b"}
    machine.gpus["a"] = gone
    assert await machine.check() == {"a", "b"}
    assert [news for _, news in await sent_news()] == [
        GpuHealth(slot=GPU, trouble=GpuTrouble.MISSING),
        GpuHealth(slot=GPU, trouble=None),
    ]


async def test_a_gpu_in_trouble_stays_disabled_when_the_bot_restarts(
    sent_news: ReadNews, store: JobStore, machine: Machine
) -> None:
    machine.change("a", temperature_c=95)
    await machine.check()
    await store.slots.set(slots_of(await machine.query(), None))
    assert await machine.check() == {"b"}
    assert len(await sent_news()) == 1


async def test_a_job_keeps_the_slot_of_a_gpu_in_trouble(store: JobStore, submit: Submit, machine: Machine) -> None:
    await submit()
    claimed = await store.attempts.claim()
    assert claimed is not None
    assert claimed.devices == ("a",)
    machine.change("a", temperature_c=95)
    assert await machine.check() == {"b"}
    [still] = await store.attempts.active()
    assert still.devices == ("a",)
