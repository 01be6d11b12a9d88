"""The nightly copy of the database; a night without one is news."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from bot.config import BackupSettings, WindowSettings
from bot.db import Database, back_up
from bot.db.setting import write_setting
from bot.errors import DarkroomError
from bot.scheduled.due import is_due, last_daily
from bot.scheduled.news import News
from bot.ui.text import size

log = logging.getLogger(__name__)

_SETTING = "backup.last"


class NightlyBackup:
    """Makes the copy of a night once, at its hour or as soon after it as the machine is awake."""

    def __init__(
        self,
        db: Database,
        news: News,
        *,
        settings: BackupSettings,
        windows: WindowSettings,
        folder: Path,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._db = db
        self._news = news
        self._settings = settings
        self._zone = windows.zone
        self._folder = folder
        self._now = now

    async def look(self) -> Path | None:
        """Make the copy if it is due; None if not, or if it failed, which is told once a night and tried again."""
        clock = self._settings.clock
        if clock is None:
            return None
        night = f"{last_daily(self._now(), clock, self._zone):%Y-%m-%d}"
        if not await is_due(self._db, _SETTING, night):
            return None
        try:
            copy = await back_up(self._db.path, self._folder, keep=self._settings.keep, now=self._now)
        except (DarkroomError, OSError) as error:
            text = f"The nightly copy of the database failed: {error} It is tried again within the hour."
            await self._news.tell(text, key=f"backup:{night}:failed", level=logging.ERROR)
            return None
        await write_setting(self._db, _SETTING, night)
        log.info("database copied to %s (%s), opened and found sound", copy.path, size(copy.bytes))
        return copy.path
