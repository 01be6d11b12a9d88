"""The clock that calls the chores (APScheduler 3); each chore can be called without it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from apscheduler.job import Job
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger

from bot.scheduled.boot import Boot

log = logging.getLogger(__name__)

#: Pause between two comparisons of the clock with what is planned.
_MEND_S = 30.0
#: Longest wait for the dispatcher's first look, which comes after a look for GPUs.
_LOOK_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Chore:
    """What is done, and when, as fields of a cron line: `{"minute": "*/10"}`."""

    name: str
    run: Callable[[], Awaitable[object]]
    when: dict[str, str]
    #: Also as soon as the bot runs.
    at_start: bool = False


class Chores:
    """A plain service: `run()` in a task of its own.

    Every chore is planned by the clock on the wall, looks itself whether anything is due, and is called late rather
    than never: after a night that the machine slept through, once.
    """

    def __init__(
        self, chores: Sequence[Chore], *, timezone: str = "UTC", boot: Boot | None = None, mend_s: float = _MEND_S
    ) -> None:
        self._chores = chores
        #: Set by whoever runs the dispatcher, once it has looked at every training that was there at the start.
        self.looked = asyncio.Event()
        self._boot = boot
        self._mend_s = mend_s
        defaults = {"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
        self._scheduler = AsyncIOScheduler(timezone=timezone, job_defaults=defaults)
        for chore in chores:
            trigger = CronTrigger(timezone=timezone, **chore.when)
            self._scheduler.add_job(_safely, trigger, args=[chore], id=chore.name, name=chore.name)

    async def remember(self) -> None:
        """Note how things stand; before the dispatcher runs, which changes them."""
        if self._boot is not None:
            await self._boot.remember()

    async def run(self) -> None:
        """Work until cancelled; a chore that runs then is cancelled too."""
        self._scheduler.start()
        try:
            for chore in self._chores:
                if chore.at_start:
                    await _safely(chore)
            await self._tell_boot()
            while True:
                self.mend()
                await asyncio.sleep(self._mend_s)
        finally:
            self._scheduler.shutdown(wait=False)
            await self._say_goodbye()

    def planned(self) -> list[Job]:
        """What comes when."""
        return list(self._scheduler.get_jobs())

    def mend(self) -> None:
        """Plan anew what is planned later than its rule says: the clock was set back, and it would be missed."""
        for job in self.planned():
            planned = job.trigger.get_next_fire_time(None, datetime.now(job.trigger.timezone))
            if job.next_run_time is not None and planned is not None and planned < job.next_run_time:
                log.warning("the clock was set back: %s comes %s", job.name, planned)
                job.modify(next_run_time=planned)

    async def _tell_boot(self) -> None:
        if self._boot is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                await self.looked.wait()
        await _safely(Chore(name="boot", run=self._boot.tell, when={}))

    async def _say_goodbye(self) -> None:
        """A bot that is ended in peace was there until now, not until the last full minute."""
        if self._boot is not None:
            await _safely(Chore(name="goodbye", run=self._boot.seen, when={}))


async def _safely(chore: Chore) -> None:
    """One chore that fails is no reason to do no other."""
    try:
        await chore.run()
    except Exception:
        log.exception("the chore %r failed; it comes again", chore.name)
