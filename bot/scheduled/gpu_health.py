"""GPU health: a GPU that is too hot, has memory errors or is missing gets no new training until it has recovered.

A job keeps the slot of such a GPU: disabling a slot only keeps the next job away.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter

from bot.clock import SYSTEM_CLOCK, Clock
from bot.config import HealthSettings
from bot.db import Database
from bot.db.database import put_setting, read_setting
from bot.queue.store.slots import Slot, Slots
from bot.scheduled.alerts import AdminNotifier
from bot.ui.admin_news import GpuHealth, GpuTrouble
from trainer.protocol.devices import Devices, Gpu
from trainer.protocol.frozen import Frozen

log = logging.getLogger(__name__)

_SETTING = "health.gpus"
#: A hot GPU has recovered when it is so much cooler than the limit.
_COOLER_C = 10
#: A GPU is missing when so many checks in a row did not find it.
_MISSED_CHECKS = 2


class GpuHealthState(Frozen):
    """What is known about one slot's GPU; it survives restarts."""

    #: Why its slot is disabled; None if it is healthy.
    trouble: GpuTrouble | None = None
    #: Its temperature or its number of memory errors.
    value: int = 0
    #: Newest count of memory errors, and the count at which the slot was disabled.
    ecc_errors: int = 0
    disabled_at_errors: int | None = None
    #: Checks in a row that did not find it.
    missed: int = 0


#: States by slot id, as they are stored.
_STATES = TypeAdapter(dict[str, GpuHealthState])


@dataclass(frozen=True, kw_only=True)
class HealthTransition:
    """A GPU that got into trouble, or recovered (`trouble` None)."""

    slot: Slot
    trouble: GpuTrouble | None
    value: int


def assess_gpus(
    slots: Sequence[Slot], states: Mapping[str, GpuHealthState], devices: Devices, settings: HealthSettings
) -> tuple[dict[str, GpuHealthState], list[HealthTransition]]:
    """Return the new states and what changed; slots that are no GPU of this machine are left out."""
    gpus = {gpu.id: gpu for gpu in devices.gpus}
    after: dict[str, GpuHealthState] = {}
    transitions: list[HealthTransition] = []
    for slot in filter(_is_gpu, slots):
        gpu = gpus.get(slot.device)
        before = states.get(slot.id, GpuHealthState(ecc_errors=_errors(gpu)))
        now = after[slot.id] = _assess(before, gpu, settings)
        if (now.trouble is None) is not (before.trouble is None):
            transitions.append(HealthTransition(slot=slot, trouble=now.trouble, value=now.value))
    return after, transitions


def _is_gpu(slot: Slot) -> bool:
    """Whether it is a GPU of this machine: a cluster monitors its own."""
    return slot.id.startswith("gpu:")


def _errors(gpu: Gpu | None) -> int:
    return 0 if gpu is None or gpu.ecc_errors is None else gpu.ecc_errors


def _assess(before: GpuHealthState, gpu: Gpu | None, settings: HealthSettings) -> GpuHealthState:
    if gpu is None:
        missed = before.missed + 1
        trouble = before.trouble or (GpuTrouble.MISSING if missed >= _MISSED_CHECKS else None)
        return before.model_copy(update={"missed": missed, "trouble": trouble})
    errors = _errors(gpu)
    disabled_at = before.disabled_at_errors
    if errors > before.ecc_errors or (disabled_at is not None and errors >= disabled_at):
        # The driver's count restarts when it is loaded again: only that shows that the GPU was reset.
        return GpuHealthState(
            trouble=GpuTrouble.MEMORY_ERRORS,
            value=errors,
            ecc_errors=errors,
            disabled_at_errors=min(errors, disabled_at or errors),
        )
    limit = settings.max_temperature_c - (_COOLER_C if before.trouble else 0)
    if gpu.temperature_c is not None and gpu.temperature_c > limit:
        return GpuHealthState(trouble=GpuTrouble.HOT, value=gpu.temperature_c, ecc_errors=errors)
    return GpuHealthState(ecc_errors=errors)


class GpuMonitor:
    """Checks the GPUs through `query`, a process of its own that a hanging driver may hang."""

    def __init__(
        self,
        db: Database,
        slots: Slots,
        notifier: AdminNotifier,
        query: Callable[[], Awaitable[Devices]],
        *,
        settings: HealthSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._db = db
        self._slots = slots
        self._notifier = notifier
        self._query = query
        self._settings = settings or HealthSettings()
        self._clock = clock

    async def check(self) -> None:
        """Check once; a machine without GPUs is not queried."""
        slots = await self._slots.all(with_unused=True)
        if not any(map(_is_gpu, slots)):
            return
        devices = await self._query()
        if devices.problem:
            log.warning("GPUs: %s", devices.problem)
        value = await read_setting(self._db, _SETTING)
        states = _STATES.validate_json(value) if value else {}
        after, transitions = assess_gpus(slots, states, devices, self._settings)
        for slot_id, state in after.items():
            # At each check: someone may have enabled it meanwhile.
            if state.trouble or states.get(slot_id, state).trouble:
                await self._slots.set_enabled(slot_id, is_enabled=not state.trouble)
        async with self._db.transaction() as connection:
            for each in transitions:
                news = GpuHealth(slot=each.slot.name, trouble=each.trouble, value=each.value)
                key = f"gpu:{each.slot.id}:{self._clock.time():.0f}"
                level = logging.WARNING if each.trouble else logging.INFO
                await self._notifier.put(connection, news, key=key, level=level)
            await put_setting(connection, _SETTING, _STATES.dump_json(after).decode())
