"""What the members of a role may ask for, and how much of this week's GPU time is left to somebody."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from bot.config import LimitSettings
from bot.db import Database
from bot.errors import JobRefused, OverBudget
from bot.queue.domain.job import LIVING, Priority
from bot.queue.store.audit import write_entry
from bot.queue.store.job_sql import listed

_MIB = 1024 * 1024
_HOUR_S = 3600.0
_WEEK_S = 7 * 86_400.0

_SET = """
INSERT INTO role_limit (guild_id, role_id, max_waiting, max_running, max_epochs, max_dataset_mib, gpu_hours_per_week)
VALUES (:guild_id, :role_id, :max_waiting, :max_running, :max_epochs, :max_dataset_mib, :gpu_hours_per_week)
ON CONFLICT (guild_id, role_id) DO UPDATE SET max_waiting = excluded.max_waiting, max_running = excluded.max_running,
    max_epochs = excluded.max_epochs, max_dataset_mib = excluded.max_dataset_mib,
    gpu_hours_per_week = excluded.gpu_hours_per_week
"""
_CLEAR = "DELETE FROM role_limit WHERE guild_id = :guild_id AND role_id = :role_id RETURNING *"

#: GPU seconds of this week. A start that began in the week before counts from Monday on; one that is older than that
#: and still runs would be one of more than a week.
_USED = f"""
SELECT COALESCE(SUM(gpus * MAX(0, MIN(COALESCE(ended_at, :now), :now) - MAX(started_at, :monday))), 0) AS seconds
FROM attempt INDEXED BY attempt_by_owner
WHERE owner_id = :owner_id AND started_at >= :monday - {_WEEK_S} AND guild_id = :guild_id
"""

#: GPU seconds that a job is believed to need yet; NULL: nobody knows.
_YET = """gpus * MAX(0, estimate_s - COALESCE((
    SELECT SUM(COALESCE(ended_at, :now) - started_at) FROM attempt WHERE attempt.job_id = job.id), 0))"""

_NEEDED = f"SELECT {_YET} AS seconds FROM job WHERE id = :id"

#: What somebody's jobs are believed to need yet.
_PROMISED = f"""
SELECT COALESCE(SUM({_YET}), 0) AS seconds
FROM job INDEXED BY job_by_owner
WHERE owner_id = :owner_id AND state IN {listed(LIVING)} AND guild_id = :guild_id AND estimate_s IS NOT NULL
"""


class RoleLimit(BaseModel):
    """What the members of a role may ask for; None: as the configuration says."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    role_id: int
    max_waiting: int | None = Field(default=None, ge=1, le=100)
    #: 0: any number.
    max_running: int | None = Field(default=None, ge=0, le=100)
    max_epochs: int | None = Field(default=None, ge=1, le=1000)
    max_dataset_mib: int | None = Field(default=None, ge=1, le=100_000)
    #: 0: any number.
    gpu_hours_per_week: float | None = Field(default=None, ge=0, le=10_000)


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What one member may ask for."""

    #: Jobs that wait at the same time.
    max_waiting: int
    #: Jobs that run at the same time; None: any number.
    max_running: int | None
    #: Epochs of one job.
    max_epochs: int
    #: All files of one dataset together, as handed in.
    max_dataset_mib: int
    #: From Monday to Monday; None: any number.
    gpu_hours_per_week: float | None

    @property
    def max_dataset_bytes(self) -> int:
        return self.max_dataset_mib * _MIB


def allowance_of(defaults: LimitSettings, role_limits: Iterable[RoleLimit], role_ids: Collection[int]) -> Allowance:
    """For each limit the most generous among a member's roles that set it, else the default."""
    own = [limit for limit in role_limits if limit.role_id in role_ids]

    def widest(name: str, default: float, *, is_open_at_0: bool = False) -> Any:
        said = [value for limit in own if (value := getattr(limit, name)) is not None] or [default]
        return None if is_open_at_0 and 0 in said else max(said)

    return Allowance(
        max_waiting=widest("max_waiting", defaults.max_jobs_per_user),
        max_running=widest("max_running", defaults.max_running_per_user, is_open_at_0=True),
        max_epochs=widest("max_epochs", defaults.max_epochs),
        max_dataset_mib=widest("max_dataset_mib", defaults.max_dataset_mib),
        gpu_hours_per_week=widest("gpu_hours_per_week", defaults.gpu_hours_per_week, is_open_at_0=True),
    )


def require_gpus(wanted: int, there: int) -> None:
    """Nothing, if a job that asks for so many GPUs can ever start.

    Raises:
        JobRefused: there are fewer.
    """
    if wanted > max(1, there):
        raise JobRefused(f"This asks for {wanted} GPUs, and there are {there}. Nothing was queued.")


def require_priority(priority: Priority, *, can_manage: bool) -> None:
    """Nothing, if somebody may ask for that priority.

    Raises:
        JobRefused: it is high, and they may not manage the server.
    """
    if priority is Priority.HIGH and not can_manage:
        raise JobRefused(
            "High priority is for those who may manage the server. Ask one of them to bump your job; "
            "nothing was queued."
        )


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Somebody's GPU hours of this week."""

    #: None: any number.
    allowed_h: float | None
    used_h: float
    #: What their jobs that wait or run are believed to need yet.
    promised_h: float

    @property
    def left_h(self) -> float | None:
        """What a further job may need; None: any number."""
        return None if self.allowed_h is None else max(0.0, self.allowed_h - self.used_h - self.promised_h)


def require_budget(budget: Budget, needed_h: float | None) -> None:
    """Nothing, if a job that is believed to need so many GPU hours (None: nobody knows) fits into a budget.

    Raises:
        OverBudget: it does not.
    """
    left_h = budget.left_h
    if left_h is None or budget.allowed_h is None:
        return
    if left_h <= 0 or (needed_h is not None and needed_h > left_h):
        raise OverBudget(needed_h=needed_h, left_h=left_h, allowed_h=budget.allowed_h)


def week_of(now: float, zone: tzinfo) -> tuple[float, float]:
    """Its Monday's first moment, and the next Monday's, by the clock of a time zone."""
    day = datetime.fromtimestamp(now, zone).date()
    monday = day - timedelta(days=day.weekday())
    midnight = datetime.min.time()
    first, last = (datetime.combine(each, midnight, zone) for each in (monday, monday + timedelta(days=7)))
    return first.timestamp(), last.timestamp()


class RoleLimits:
    """Limits of roles in the database, and what is left of somebody's."""

    def __init__(
        self, db: Database, *, defaults: LimitSettings | None = None, now: Callable[[], float] = time.time
    ) -> None:
        self._db = db
        self._defaults = defaults or LimitSettings()
        self._now = now

    async def set(self, guild_id: int, limit: RoleLimit, *, by: int) -> None:
        """Say what a role's members may ask for, in place of what was said before."""
        values = {"guild_id": guild_id, **limit.model_dump()}
        async with self._db.transaction() as connection:
            await connection.execute_fetchall(_SET, values)
            said = limit.model_dump_json(exclude_none=True)
            await write_entry(connection, at=self._now(), verb="limit role", guild_id=guild_id, by=by, after=said)

    async def clear(self, guild_id: int, role_id: int, *, by: int) -> bool:
        """Let the configuration hold for a role again; False if it did."""
        async with self._db.transaction() as connection:
            rows = list(await connection.execute_fetchall(_CLEAR, {"guild_id": guild_id, "role_id": role_id}))
            for row in rows:
                said = _limit_of(row).model_dump_json(exclude_none=True)
                await write_entry(connection, at=self._now(), verb="limit role", guild_id=guild_id, by=by, before=said)
            return bool(rows)

    async def list(self, guild_id: int) -> list[RoleLimit]:
        """All that is said about a server's roles."""
        rows = await self._db.all("SELECT * FROM role_limit WHERE guild_id = ? ORDER BY role_id", (guild_id,))
        return [_limit_of(row) for row in rows]

    async def allowance(self, guild_id: int, role_ids: Collection[int]) -> Allowance:
        """What a member with these roles may ask for."""
        return allowance_of(self._defaults, await self.list(guild_id), role_ids)

    async def budget(self, guild_id: int, owner_id: int, allowed_h: float | None, *, zone: tzinfo = UTC) -> Budget:
        """Somebody's GPU hours of this calendar week; those of running jobs are counted up to now."""
        now = self._now()
        values = {"guild_id": guild_id, "owner_id": owner_id, "now": now, "monday": week_of(now, zone)[0]}
        used, promised = await self._db.one(_USED, values), await self._db.one(_PROMISED, values)
        assert used is not None
        assert promised is not None
        return Budget(allowed_h=allowed_h, used_h=used["seconds"] / _HOUR_S, promised_h=promised["seconds"] / _HOUR_S)

    async def needed_h(self, job_id: int) -> float | None:
        """GPU hours that a job is believed to need yet, its earlier starts taken off; None: nobody knows."""
        row = await self._db.one(_NEEDED, {"id": job_id, "now": self._now()})
        return None if row is None or row["seconds"] is None else row["seconds"] / _HOUR_S


def _limit_of(row: Any) -> RoleLimit:
    return RoleLimit(**{name: row[name] for name in RoleLimit.model_fields})
