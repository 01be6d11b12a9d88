"""Chores that are due once a day or once a week: what was done is remembered, so that none is lost or done twice.

A machine that slept through the hour does it when it wakes; a clock that jumps back finds it done.
"""

from __future__ import annotations

from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

from bot.db import Database
from bot.db.setting import read_setting, write_setting


def last_daily(now: float, clock: time, zone: ZoneInfo) -> datetime:
    """The newest moment, no later than `now`, at which the wall showed that time."""
    local = datetime.fromtimestamp(now, zone)
    today = datetime.combine(local.date(), clock, zone)
    return today if today <= local else datetime.combine(local.date() - timedelta(days=1), clock, zone)


def last_weekly(now: float, weekday: int, clock: time, zone: ZoneInfo) -> datetime:
    """As `last_daily`, on that day of the week (0 is Monday)."""
    day = last_daily(now, clock, zone)
    return datetime.combine(day.date() - timedelta(days=(day.weekday() - weekday) % 7), clock, zone)


async def is_due(db: Database, name: str, label: str) -> bool:
    """Whether the turn called `label` is still to be done; labels sort by time.

    On the very first look nothing is due: there is nothing yet to copy or to tell.
    """
    done = await read_setting(db, name)
    if done is None:
        await write_setting(db, name, label)
        return False
    return label > done
