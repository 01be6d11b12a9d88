"""Health of the GPUs: one that is too hot, makes errors or has vanished gets no new training until it is well again.

A job that holds the slot of a sick GPU keeps it: switching a slot off only keeps the next one away.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from bot.config import HealthSettings
from bot.db import Database
from bot.db.setting import put_setting, read_setting
from bot.queue.store.slots import Slot, Slots
from bot.scheduled.news import News
from trainer.protocol.devices import Devices, Gpu

log = logging.getLogger(__name__)

_SETTING = "health.gpus"
_COOLER_C = 10
#: A GPU is gone when it was not there so many looks in a row.
_LOOKS_BEFORE_GONE = 2


class Known(BaseModel):
    """What was found out about one slot's GPU, kept over restarts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Why its slot is switched off; empty while it is well.
    trouble: str = ""
    #: Newest count of memory errors, and that at which the slot was switched off.
    ecc_errors: int = 0
    sick_ecc_errors: int | None = None
    #: Looks in a row at which it was not there.
    missed: int = 0


class _Book(BaseModel):
    """All that is known, by slot."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slots: dict[str, Known] = {}


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A GPU that fell sick, or is well again."""

    slot_id: str
    text: str
    is_well: bool


def judge(
    slots: Sequence[Slot], known: Mapping[str, Known], devices: Devices, settings: HealthSettings
) -> tuple[dict[str, Known], list[Turn]]:
    """What is known after a look, and what has changed; slots that are no GPU of this machine are left out."""
    gpus = {gpu.id: gpu for gpu in devices.gpus}
    after: dict[str, Known] = {}
    turns: list[Turn] = []
    for slot in slots:
        if not _is_gpu(slot):
            continue
        before = known.get(slot.id, Known(ecc_errors=_errors(gpus.get(slot.device))))
        now = after[slot.id] = _looked_at(before, gpus.get(slot.device), settings)
        if now.trouble and not before.trouble:
            text = f"{slot.name} {now.trouble}: it gets no new training until it is well again."
            turns.append(Turn(slot_id=slot.id, text=text, is_well=False))
        elif before.trouble and not now.trouble:
            turns.append(Turn(slot_id=slot.id, text=f"{slot.name} is well again and takes trainings.", is_well=True))
    return after, turns


def _is_gpu(slot: Slot) -> bool:
    """Whether it is a GPU of this machine: a cluster looks after its own."""
    return slot.id.startswith("gpu:")


def _errors(gpu: Gpu | None) -> int:
    return 0 if gpu is None or gpu.ecc_errors is None else gpu.ecc_errors


def _looked_at(before: Known, gpu: Gpu | None, settings: HealthSettings) -> Known:
    if gpu is None:
        missed = before.missed + 1
        trouble = before.trouble or ("is no longer there" if missed >= _LOOKS_BEFORE_GONE else "")
        return before.model_copy(update={"missed": missed, "trouble": trouble})
    errors = _errors(gpu)
    after = before.model_copy(update={"missed": 0, "ecc_errors": errors, "trouble": "", "sick_ecc_errors": None})
    sick_at = before.sick_ecc_errors
    if errors > before.ecc_errors or (sick_at is not None and errors >= sick_at):
        # The count begins anew with the driver: only that says that somebody has seen to it.
        trouble = f"has made {errors} memory errors that could not be corrected (reset it, or restart the machine)"
        return after.model_copy(update={"trouble": trouble, "sick_ecc_errors": min(errors, sick_at or errors)})
    limit = settings.max_temperature_c - (_COOLER_C if before.trouble else 0)
    if gpu.temperature_c is not None and gpu.temperature_c > limit:
        return after.model_copy(update={"trouble": f"is too hot ({gpu.temperature_c} °C)"})
    return after


class GpuWatch:
    """Asks the GPUs how they are, through a process that a hanging driver may hang."""

    def __init__(
        self,
        db: Database,
        slots: Slots,
        news: News,
        ask: Callable[[], Awaitable[Devices]],
        *,
        settings: HealthSettings | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._db = db
        self._slots = slots
        self._news = news
        self._ask = ask
        self._settings = settings or HealthSettings()
        self._now = now

    async def look(self) -> None:
        """Look once; a machine without GPUs is not asked."""
        slots = await self._slots.all(with_unused=True)
        if not any(_is_gpu(slot) for slot in slots):
            return
        devices = await self._ask()
        if devices.problem:
            log.warning("GPUs: %s", devices.problem)
        value = await read_setting(self._db, _SETTING)
        known = _Book.model_validate_json(value).slots if value else {}
        after, turns = judge(slots, known, devices, self._settings)
        for slot_id, one in after.items():
            # Each time: somebody may have switched it on meanwhile.
            if one.trouble or known.get(slot_id, one).trouble:
                await self._slots.switch(slot_id, is_enabled=not one.trouble)
        async with self._db.transaction() as connection:
            for turn in turns:
                level = logging.INFO if turn.is_well else logging.WARNING
                await self._news.put(connection, turn.text, key=f"gpu:{turn.slot_id}:{self._now():.0f}", level=level)
            await put_setting(connection, _SETTING, _Book(slots=after).model_dump_json())
