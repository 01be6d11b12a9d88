"""Disk and GPUs: what is told when they fall sick and are well again, and which slots are given away meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.config import HealthSettings
from bot.db import Database
from bot.outbox import Outbox
from bot.queue import JobStore, slots_of
from bot.queue.store.audit import read_entries
from bot.scheduled.disk import Disk, DiskWatch
from bot.scheduled.gpus import GpuWatch
from bot.scheduled.news import News
from tests.bot.conftest import Submit
from tests.bot.fakes import Clock
from trainer.protocol.devices import Devices, Gpu

GIB = 1024**3


@pytest.fixture
def news(db: Database, outbox: Outbox) -> News:
    return News(db, outbox, channel_id=900)


async def told(db: Database) -> list[str]:
    rows = await db.all(
        "SELECT json_extract(notice, '$.detail') AS text FROM outbox WHERE channel_id = 900 ORDER BY id"
    )
    return [row["text"] for row in rows]


async def test_a_full_disk_is_told_once_for_each_crossing_also_over_restarts(
    db: Database, news: News, clock: Clock, tmp_path: Path
) -> None:
    free = 20 * GIB

    async def look() -> int:
        disk = Disk(tmp_path, min_free_bytes=10 * GIB, free=lambda path: free)
        await DiskWatch(db, news, disk, now=clock).look()
        clock.advance(60)
        return len(await told(db))

    assert await look() == 0
    free = 9 * GIB
    assert await look() == 1
    assert await look() == 1
    free = 20 * GIB
    assert await look() == 2
    free = 9 * GIB
    assert await look() == 3
    assert "The disk is nearly full: 9.0 GiB free, 10.0 GiB are needed." in (await told(db))[0]
    assert (await told(db))[1] == "There is room on the disk again: 20.0 GiB free. Trainings start."


class Machine:
    """GPUs whose health the test sets."""

    def __init__(self, db: Database, store: JobStore, news: News, clock: Clock) -> None:
        self.gpus = {name: Gpu(id=name, name="H100", memory_bytes=80 * GIB, temperature_c=50) for name in ("a", "b")}
        self.problem = ""
        self.asked = 0
        self._db, self._store, self._news, self._clock = db, store, news, clock

    async def ask(self) -> Devices:
        self.asked += 1
        return Devices(gpus=tuple(self.gpus.values()), problem=self.problem)

    def change(self, name: str, **values: int) -> None:
        self.gpus[name] = self.gpus[name].model_copy(update=values)

    async def look(self) -> set[str]:
        """A look by a new bot; the devices whose slots are given away after it."""
        watch = GpuWatch(
            self._db,
            self._store.slots,
            self._news,
            self.ask,
            settings=HealthSettings(max_temperature_c=90),
            now=self._clock,
        )
        await watch.look()
        self._clock.advance(600)
        return {slot.device for slot in await self._store.slots.all() if slot.is_enabled}


@pytest.fixture
async def machine(db: Database, store: JobStore, news: News, clock: Clock) -> Machine:
    machine = Machine(db, store, news, clock)
    await store.slots.set(slots_of(await machine.ask(), None))
    return machine


async def test_gpus_that_are_well_are_left_alone(db: Database, machine: Machine) -> None:
    assert await machine.look() == {"a", "b"}
    assert await told(db) == []


async def test_a_machine_without_gpus_is_not_asked(store: JobStore, machine: Machine) -> None:
    await store.slots.set(slots_of(Devices(), 2))
    before = machine.asked
    await machine.look()
    assert machine.asked == before


async def test_a_hot_gpu_gets_no_training_until_it_has_cooled(db: Database, machine: Machine) -> None:
    machine.change("a", temperature_c=91)
    assert await machine.look() == {"b"}
    assert await machine.look() == {"b"}
    machine.change("a", temperature_c=85)
    assert await machine.look() == {"b"}
    machine.change("a", temperature_c=80)
    assert await machine.look() == {"a", "b"}
    assert await told(db) == [
        "GPU 0 · H100 is too hot (91 °C): it gets no new training until it is well again.",
        "GPU 0 · H100 is well again and takes trainings.",
    ]
    assert [entry.verb for entry in await read_entries(db)] == ["slot on", "slot off"]


async def test_memory_errors_count_from_the_first_look_and_stay_until_the_driver_is_loaded_anew(
    db: Database, machine: Machine
) -> None:
    machine.change("a", ecc_errors=3)
    assert await machine.look() == {"a", "b"}
    machine.change("a", ecc_errors=4)
    assert await machine.look() == {"b"}
    assert await machine.look() == {"b"}
    machine.change("a", ecc_errors=6)
    assert await machine.look() == {"b"}
    machine.change("a", ecc_errors=0)
    assert await machine.look() == {"a", "b"}
    assert [text.split(" has")[0].split(" is")[0] for text in await told(db)] == ["GPU 0 · H100", "GPU 0 · H100"]


async def test_a_gpu_that_vanished_is_told_at_the_second_look_and_comes_back(db: Database, machine: Machine) -> None:
    gone = machine.gpus.pop("a")
    assert await machine.look() == {"a", "b"}
    assert await machine.look() == {"b"}
    machine.gpus["a"] = gone
    assert await machine.look() == {"a", "b"}
    assert "is no longer there" in (await told(db))[0]


async def test_a_sick_gpu_stays_off_when_the_bot_starts_again(db: Database, store: JobStore, machine: Machine) -> None:
    machine.change("a", temperature_c=95)
    await machine.look()
    await store.slots.set(slots_of(await machine.ask(), None))
    assert await machine.look() == {"b"}
    assert len(await told(db)) == 1


async def test_a_job_keeps_the_slot_of_a_sick_gpu(store: JobStore, submit: Submit, machine: Machine) -> None:
    await submit()
    busy = await store.runs.claim()
    assert busy is not None
    assert busy.devices == ("a",)
    machine.change("a", temperature_c=95)
    assert await machine.look() == {"b"}
    [still] = await store.runs.busy()
    assert still.devices == ("a",)
