"""The weekly digest: what was trained, who used the GPUs, what became best; read by one query, told once a week."""

from __future__ import annotations

import logging
import time as clock
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, time

from bot.db import Database, Row
from bot.db.setting import put_setting
from bot.queue.planning.retention import Totals
from bot.queue.planning.storage import Storage
from bot.queue.planning.windows import Windows, next_opening
from bot.scheduled.due import is_due, last_weekly
from bot.scheduled.news import News
from bot.ui.text import counted, plain, shorten, size

log = logging.getLogger(__name__)

MAX_CHARACTERS = 1500

_SETTING = "digest.last"
#: Monday morning, in the time zone of the windows.
_WEEKDAY, _AT = 0, time(9)
_WEEK_S = 7 * 86_400.0
_SHOWN = 5
_NAME_CHARACTERS = 60

#: Rows of three kinds, so that all of it is of one moment: ends by state, GPU seconds by person, the best results.
_WEEK = """
SELECT 'end' AS kind, state AS text, COUNT(*) AS number, NULL AS job_id, NULL AS value FROM job
    WHERE ended_at >= :since AND ended_at < :until AND parent_id IS NULL AND spec IS NOT NULL
      AND state IN ('succeeded', 'stopped', 'failed', 'cancelled') GROUP BY state
UNION ALL
SELECT 'gpu', NULL, owner_id, NULL, SUM(gpus * (MIN(COALESCE(ended_at, :until), :until) - MAX(started_at, :since)))
    FROM attempt WHERE started_at < :until AND COALESCE(ended_at, :until) > :since AND gpus > 0 GROUP BY owner_id
UNION ALL
SELECT * FROM (
    SELECT 'best', name, owner_id, id, json_extract(last_word, '$.best_ratio') AS ratio FROM job
    WHERE ended_at >= :since AND ended_at < :until AND state IN ('succeeded', 'stopped')
      AND json_extract(last_word, '$.best_ratio') IS NOT NULL
    ORDER BY ratio, id LIMIT 5)
"""


@dataclass(frozen=True, kw_only=True)
class Best:
    """One of the best results of a week."""

    job_id: int
    name: str
    owner_id: int
    #: Validation loss to the base model's; less is better.
    ratio: float


@dataclass(frozen=True, kw_only=True)
class Week:
    """What happened in seven days."""

    #: Jobs that ended, by state; a study counts as one.
    ends: dict[str, int]
    #: Seconds by person, a job on two GPUs counting twice.
    gpu_seconds: dict[int, float]
    best: tuple[Best, ...]


async def read_week(db: Database, since: float, until: float) -> Week:
    """The week's numbers."""
    rows = await db.all(_WEEK, {"since": since, "until": until})
    return week_of(rows)


def week_of(rows: Sequence[Row]) -> Week:
    """The rows of the query, by kind."""
    return Week(
        ends={row["text"]: row["number"] for row in rows if row["kind"] == "end"},
        gpu_seconds={row["number"]: row["value"] for row in rows if row["kind"] == "gpu"},
        best=tuple(
            Best(job_id=row["job_id"], name=row["text"], owner_id=row["number"], ratio=row["value"])
            for row in rows
            if row["kind"] == "best"
        ),
    )


def digest_text(week: Week, totals: Totals, *, title: str, opens_at: datetime | None = None) -> str:
    """The digest, at most 1,500 characters; `opens_at` is the next training window, None if it is always open."""
    hours = sum(week.gpu_seconds.values()) / 3600
    lines = [f"### {title}", _ends(week)]
    if hours:
        people = sorted(week.gpu_seconds.items(), key=lambda item: (-item[1], item[0]))
        shown = [f"<@{owner}> {seconds / 3600:.1f} h" for owner, seconds in people[:_SHOWN]]
        rest = [f"{counted(len(people) - _SHOWN, 'other')}"] if len(people) > _SHOWN else []
        lines.append(f"**GPUs** {hours:.1f} h: {', '.join(shown + rest)}")
    lines.append(f"**Storage** {size(sum(totals.bytes_by_owner.values()))} of jobs, {size(totals.free_bytes)} free")
    if opens_at is not None:
        lines.append(f"**Next training window** <t:{opens_at.timestamp():.0f}:F>")
    # Last: a line below a list is drawn as if it belonged to it.
    if week.best:
        lines.append("**Best results** (validation loss against the base model's)")
    lines += [f"- #{best.job_id} {_name(best)} <@{best.owner_id}> {best.ratio:.3f}×" for best in week.best[:_SHOWN]]
    text = "\n".join(lines)
    assert len(text) <= MAX_CHARACTERS, f"a digest of {len(text)} characters"
    return text


def _name(best: Best) -> str:
    # Escaping may double what it says.
    return plain(shorten(best.name, _NAME_CHARACTERS), 2 * _NAME_CHARACTERS)


def _ends(week: Week) -> str:
    if not week.ends:
        return "No job ended."
    words = {
        "succeeded": "finished",
        "stopped": "ended early by a person",
        "failed": "failed",
        "cancelled": "cancelled",
    }
    return "**Jobs** " + ", ".join(f"{week.ends[state]} {word}" for state, word in words.items() if state in week.ends)


class Digest:
    """Tells the digest of a week once, on Monday morning or as soon after it as the machine is awake."""

    def __init__(
        self, db: Database, news: News, storage: Storage, windows: Windows, *, now: Callable[[], float] = clock.time
    ) -> None:
        self._db = db
        self._news = news
        self._storage = storage
        self._windows = windows
        self._now = now

    async def look(self) -> None:
        """Tell it if it is due."""
        until = last_weekly(self._now(), _WEEKDAY, _AT, self._windows.zone)
        label = f"{until:%G-W%V}"
        if not await is_due(self._db, _SETTING, label):
            return
        week = await read_week(self._db, until.timestamp() - _WEEK_S, until.timestamp())
        _, totals = await self._storage.survey()
        opening = next_opening(self._windows, self._now())
        opens_at = None if opening is None else datetime.fromtimestamp(opening, self._windows.zone)
        text = digest_text(week, totals, title=f"The week until {until:%d %B}", opens_at=opens_at)
        async with self._db.transaction() as connection:
            await put_setting(connection, _SETTING, label)
            await self._news.put(connection, text, key=f"digest:{label}", level=logging.INFO)
