"""Slots: where trainings run, one for each GPU, or for each place that the configuration names."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bot.db import Database
from bot.queue.store.audit import write_entry
from trainer.protocol.devices import Devices

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Room for one training at a time."""

    #: The same over restarts: `gpu:GPU-3f2a…`, `place:1`.
    id: str
    #: As in CUDA_VISIBLE_DEVICES; empty: whatever the machine or the cluster gives.
    device: str
    #: For people: `GPU 0 · RTX 4090`.
    name: str
    memory_bytes: int | None = None
    #: Which job holds it, None if it is free.
    job_id: int | None = None
    is_enabled: bool = True


def slots_of(devices: Devices, places: int | None) -> list[Slot]:
    """The slots of a machine: one for each GPU that was found, or as many places as the configuration says.

    Places on a machine with as many GPUs or more are bound to the first of them; on one with fewer (a CPU, or several
    trainings on one GPU by somebody's wish) they are bound to nothing.
    """
    gpus = [
        Slot(id=f"gpu:{gpu.id}", device=gpu.id, name=f"GPU {number} · {gpu.name}", memory_bytes=gpu.memory_bytes)
        for number, gpu in enumerate(devices.gpus)
    ]
    if places is None:
        return gpus or [Slot(id="place:1", device="", name="CPU")]
    if places <= len(gpus):
        return gpus[:places]
    return [Slot(id=f"place:{number}", device="", name=f"place {number}") for number in range(1, places + 1)]


class Slots:
    """The slots in the database; they are taken and freed with the moves of jobs (`runs.py`, `moves.py`)."""

    def __init__(self, db: Database, *, now: Callable[[], float] = time.time) -> None:
        self._db = db
        self._now = now

    async def all(self, *, with_unused: bool = False) -> list[Slot]:
        """Every slot that there is or that a job still holds, in their order; `with_unused`: the switched-off too."""
        which = "" if with_unused else "WHERE is_enabled OR job_id IS NOT NULL"
        rows = await self._db.all(f"SELECT * FROM slot {which} ORDER BY position")
        return [
            Slot(
                id=row["id"],
                device=row["device"],
                name=row["name"],
                memory_bytes=row["memory_bytes"],
                job_id=row["job_id"],
                is_enabled=bool(row["is_enabled"]),
            )
            for row in rows
        ]

    async def set(self, slots: Sequence[Slot]) -> None:
        """What there is from now on; slots that are gone or switched off are given to nobody; their jobs keep them."""
        async with self._db.transaction() as connection:
            await connection.execute_fetchall("UPDATE slot SET is_enabled = 0")
            for position, slot in enumerate(slots, start=1):
                await connection.execute_fetchall(
                    """INSERT INTO slot (id, device, name, memory_bytes, position) VALUES (?, ?, ?, ?, ?)
                       ON CONFLICT (id) DO UPDATE SET device = excluded.device, name = excluded.name,
                           memory_bytes = excluded.memory_bytes, position = excluded.position,
                           is_enabled = NOT is_off""",
                    (slot.id, slot.device, slot.name, slot.memory_bytes, position),
                )
            await connection.execute_fetchall("DELETE FROM slot WHERE NOT is_enabled AND NOT is_off AND job_id IS NULL")
        log.info("slots: %s", ", ".join(slot.name for slot in slots) or "none")

    async def switch(
        self, slot_id: str, *, is_enabled: bool, by: int | None = None, guild_id: int | None = None
    ) -> bool:
        """Give a slot to nobody any more, or again; False if there is none of that id, or it was so already."""
        async with self._db.transaction() as connection:
            rows = list(
                await connection.execute_fetchall(
                    """UPDATE slot SET is_enabled = :on, is_off = NOT :on
                       WHERE id = :id AND is_enabled != :on RETURNING name""",
                    {"on": int(is_enabled), "id": slot_id},
                )
            )
            for row in rows:
                verb = f"slot {'on' if is_enabled else 'off'}"
                await write_entry(connection, at=self._now(), verb=verb, guild_id=guild_id, by=by, why=str(row["name"]))
        return bool(rows)
