"""Slots: where trainings run, one for each GPU, or for each place that the configuration names."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from bot.clock import SYSTEM_CLOCK, Clock
from bot.db import Database, Row, as_stored
from bot.db.audit import write_entry
from bot.queue.store.transitions import first
from trainer.protocol.devices import Devices

log = logging.getLogger(__name__)

_UPSERT = """
INSERT INTO slot (id, device, name, memory_bytes, position) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET device = excluded.device, name = excluded.name,
    memory_bytes = excluded.memory_bytes, position = excluded.position, is_enabled = NOT is_off
"""

_ENABLE = """
UPDATE slot SET is_enabled = :is_enabled, is_off = NOT :is_enabled
WHERE id = :id AND is_enabled != :is_enabled RETURNING name
"""


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Room for one training."""

    #: The same over restarts: `gpu:GPU-3f2a…`, `place:1`.
    id: str
    #: As in CUDA_VISIBLE_DEVICES; empty: whatever the machine or the cluster gives.
    device: str
    #: Shown to users: `GPU 0 · RTX 4090`.
    name: str
    memory_bytes: int | None = None
    #: The job that holds it; None: free.
    job_id: int | None = None
    is_enabled: bool = True

    @classmethod
    def from_row(cls, row: Row) -> Slot:
        return cls(**as_stored(cls, row) | {"is_enabled": bool(row["is_enabled"])})


def slots_of(devices: Devices, places: int | None) -> list[Slot]:
    """Return the slots of a machine: one for each GPU, or as many as the configuration says.

    Configured places are bound to the first GPUs if there are enough. On a machine with fewer GPUs (a CPU, or several
    trainings on one GPU) they are bound to none.
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
    """The slots in the database. `AttemptStore.claim` takes them; `Transitions.settle` frees them."""

    def __init__(self, db: Database, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._db = db
        self._clock = clock

    async def all(self, *, with_unused: bool = False) -> list[Slot]:
        """Return every slot that is enabled or held by a job, in order; `with_unused`: the disabled ones too."""
        which = "" if with_unused else "WHERE is_enabled OR job_id IS NOT NULL"
        return [Slot.from_row(row) for row in await self._db.all(f"SELECT * FROM slot {which} ORDER BY position")]

    async def set(self, slots: Sequence[Slot]) -> None:
        """Replace the slots. A job keeps a slot that is gone or switched off; no other job gets it."""
        async with self._db.transaction() as connection:
            await connection.execute_fetchall("UPDATE slot SET is_enabled = 0")
            for position, slot in enumerate(slots, start=1):
                await connection.execute_fetchall(
                    _UPSERT, (slot.id, slot.device, slot.name, slot.memory_bytes, position)
                )
            await connection.execute_fetchall("DELETE FROM slot WHERE NOT is_enabled AND NOT is_off AND job_id IS NULL")
        log.info("slots: %s", ", ".join(slot.name for slot in slots) or "none")

    async def set_enabled(
        self, slot_id: str, *, is_enabled: bool, by: int | None = None, guild_id: int | None = None
    ) -> bool:
        """Disable or enable a slot; False if unknown or unchanged."""
        async with self._db.transaction() as connection:
            row = await first(connection, _ENABLE, {"is_enabled": int(is_enabled), "id": slot_id})
            if row is None:
                return False
            verb = f"slot {'on' if is_enabled else 'off'}"
            await write_entry(
                connection, at=self._clock.time(), verb=verb, guild_id=guild_id, by=by, why=str(row["name"])
            )
        return True
