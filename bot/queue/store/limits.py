"""Limits of roles, and the GPU hours that a member has left this week."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from math import inf
from typing import Any

from pydantic import Field

from bot.clock import SYSTEM_CLOCK, Clock
from bot.config import LimitSettings
from bot.db import Database
from bot.db.audit import write_entry
from bot.errors import DarkroomError, Explained, JobRefused
from bot.queue.domain.job import LIVING, Priority
from bot.queue.store.job_sql import listed
from bot.queue.store.transitions import first
from trainer.protocol.frozen import Frozen
from trainer.protocol.text import N_, _

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

#: GPU seconds of this week. An attempt that began in the week before counts from Monday on; one that is older would
#: have run for more than a week.
_USED = f"""
SELECT COALESCE(SUM(gpus * MAX(0, MIN(COALESCE(ended_at, :now), :now) - MAX(started_at, :monday))), 0) AS seconds
FROM attempt INDEXED BY attempt_by_owner
WHERE owner_id = :owner_id AND started_at >= :monday - {_WEEK_S} AND guild_id = :guild_id
"""

#: Expected GPU seconds that a job still needs; NULL: unknown. The estimate of a study is of all its runs, one GPU each.
_REMAINING = """MAX(gpus, 1) * MAX(0, estimate_s - COALESCE((
    SELECT SUM(COALESCE(ended_at, :now) - started_at) FROM attempt WHERE attempt.gpus > 0
        AND attempt.job_id IN (SELECT run.id FROM job AS run WHERE run.id = job.id OR run.parent_id = job.id)), 0))"""

_NEEDED = f"SELECT {_REMAINING} AS seconds FROM job WHERE id = :id"

#: Expected GPU seconds that all of a member's jobs still need.
_RESERVED = f"""
SELECT COALESCE(SUM({_REMAINING}), 0) AS seconds
FROM job INDEXED BY job_by_owner
WHERE owner_id = :owner_id AND state IN {listed(LIVING)} AND guild_id = :guild_id AND estimate_s IS NOT NULL
"""


class NotEnoughGpus(Explained, JobRefused):
    """The job needs more GPUs than the machine has."""

    wanted: int
    available: int
    sentence = N_("You asked for {wanted} GPUs; this machine has {available}. Nothing was queued.")


class PriorityNotAllowed(Explained, JobRefused):
    """High priority, for a member who may not manage the server."""

    sentence = N_(
        "Only managers of the server can use high priority. Ask one of them to bump your job; nothing was queued."
    )


class UnknownHours(JobRefused):
    """The GPU hours of the week are limited, and how many a study needs is not known."""

    def __init__(self, *, left_h: float) -> None:
        self.left_h = left_h
        super().__init__(
            _(
                "You have {left} GPU hours left until Monday. Nothing like this was trained here before, so I cannot "
                "tell whether all runs of the study fit. Nothing was queued. Train one job with these settings first "
                "(`/finetune`).",
                left=hours_words(left_h),
            )
        )


class AboveCeiling(DarkroomError):
    """A limit of a role would be above the one that the operator configured."""

    def __init__(self, *, setting: str, wanted: float, ceiling: float) -> None:
        self.setting, self.wanted, self.ceiling = setting, wanted, ceiling
        super().__init__(
            _(
                "The operator of this bot allows {ceiling} ({setting} in its configuration), and this would be "
                "{wanted}. Nothing was changed.",
                ceiling=f"{ceiling:g}",
                setting=setting,
                wanted=f"{wanted:g}" if wanted else _("any number"),
            )
        )


class OverBudget(JobRefused):
    """The job needs more GPU hours than its owner has left this week."""

    def __init__(self, *, needed_h: float | None, left_h: float, allowed_h: float) -> None:
        self.needed_h, self.left_h, self.allowed_h = needed_h, left_h, allowed_h
        if needed_h is None or left_h <= 0:
            text = _(
                "Your {allowed} GPU hours of this week are used or reserved by your other jobs. Wait until Monday, "
                "or cancel one of your waiting jobs; nothing was queued.",
                allowed=f"{allowed_h:g}",
            )
        else:
            text = _(
                "This needs about {needed} GPU hours; you have {left} left until Monday. Take fewer epochs, or wait "
                "until then; nothing was queued.",
                needed=hours_words(needed_h),
                left=hours_words(left_h),
            )
        super().__init__(text)


class RoleLimit(Frozen):
    """Limits for the members of a role, none above the configured ones; None: as configured."""

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
    """The limits of one member."""

    #: Jobs that are queued at the same time.
    max_waiting: int
    #: Jobs that run at the same time; None: any number.
    max_running: int | None
    #: Epochs of one job.
    max_epochs: int
    #: All uploaded files of one dataset together.
    max_dataset_mib: int
    #: From Monday to Monday; None: any number.
    gpu_hours_per_week: float | None

    @property
    def max_dataset_bytes(self) -> int:
        return self.max_dataset_mib * _MIB


#: The limits of a role, and the configured ones, above which no role's may be; and whether 0 stands for any number.
_CEILINGS = {
    "max_waiting": ("max_jobs_per_user", False),
    "max_running": ("max_running_per_user", True),
    "max_epochs": ("max_epochs", False),
    "max_dataset_mib": ("max_dataset_mib", False),
    "gpu_hours_per_week": ("gpu_hours_per_week", True),
}


def allowance_of(configured: LimitSettings, role_limits: Iterable[RoleLimit], role_ids: Collection[int]) -> Allowance:
    """Return, for each limit, the most generous of a member's roles that set it, else the configured one.

    Never more than the configured one, which may have been lowered since a role got its own.
    """
    own = [limit for limit in role_limits if limit.role_id in role_ids]

    def limit_of(name: str) -> Any:
        setting, is_open_at_0 = _CEILINGS[name]
        given = [value for limit in own if (value := getattr(limit, name)) is not None]
        ceiling = _number(getattr(configured, setting), is_open_at_0)
        allowed = min(ceiling, max((_number(value, is_open_at_0) for value in given), default=ceiling))
        return None if allowed == inf else allowed

    return Allowance(**{name: limit_of(name) for name in _CEILINGS})


def require_below_ceilings(configured: LimitSettings, limit: RoleLimit) -> None:
    """Raise unless a role gets no more than the operator of the machine allows.

    Raises:
        AboveCeiling: It would.
    """
    for name, (setting, is_open_at_0) in _CEILINGS.items():
        wanted, ceiling = getattr(limit, name), getattr(configured, setting)
        if wanted is not None and _number(wanted, is_open_at_0) > _number(ceiling, is_open_at_0):
            raise AboveCeiling(setting=setting, wanted=wanted, ceiling=ceiling)


def _number(limit: float, is_open_at_0: bool) -> float:
    return inf if is_open_at_0 and limit == 0 else limit


def require_gpus(wanted: int, available: int) -> None:
    """Raise unless a job that needs `wanted` GPUs can ever start.

    Raises:
        NotEnoughGpus: The machine has fewer.
    """
    if wanted > max(1, available):
        raise NotEnoughGpus(wanted=wanted, available=available)


def require_priority(priority: Priority, *, can_manage: bool) -> None:
    """Raise unless a member may use that priority.

    Raises:
        PriorityNotAllowed: It is high, and they may not manage the server.
    """
    if priority is Priority.HIGH and not can_manage:
        raise PriorityNotAllowed


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A member's GPU hours of this week."""

    #: None: any number.
    allowed_h: float | None
    used_h: float
    #: Expected need of their jobs that have not ended.
    reserved_h: float

    @property
    def left_h(self) -> float | None:
        """Hours that a further job may need; None: any number."""
        return None if self.allowed_h is None else max(0.0, self.allowed_h - self.used_h - self.reserved_h)


def require_budget(budget: Budget, needed_h: float | None, *, is_study: bool = False) -> None:
    """Raise unless a job that needs `needed_h` GPU hours (None: unknown) fits into the budget.

    Raises:
        OverBudget: It does not.
        UnknownHours: It is a study, whose runs may take any number of hours, and nothing tells how many.
    """
    left_h = budget.left_h
    if left_h is None or budget.allowed_h is None:
        return
    if is_study and needed_h is None and left_h > 0:
        raise UnknownHours(left_h=left_h)
    if left_h <= 0 or (needed_h is not None and needed_h > left_h):
        raise OverBudget(needed_h=needed_h, left_h=left_h, allowed_h=budget.allowed_h)


def week_of(now: float, zone: tzinfo) -> tuple[float, float]:
    """Return the first moment of the week's Monday and of the next one, in a time zone; seconds since the epoch."""
    day = datetime.fromtimestamp(now, zone).date()
    monday = day - timedelta(days=day.weekday())
    midnight = datetime.min.time()
    first, last = (datetime.combine(each, midnight, zone) for each in (monday, monday + timedelta(days=7)))
    return first.timestamp(), last.timestamp()


class RoleLimits:
    """Limits of roles in the database, and the budgets that follow from them."""

    def __init__(self, db: Database, *, configured: LimitSettings | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        self._db = db
        self._configured = configured or LimitSettings()
        self._clock = clock

    async def set(self, guild_id: int, limit: RoleLimit, *, by: int) -> None:
        """Set the limits of a role, replacing earlier ones.

        Raises:
            AboveCeiling: One is above the configured one; nothing is changed.
        """
        require_below_ceilings(self._configured, limit)
        values = {"guild_id": guild_id, **limit.model_dump()}
        async with self._db.transaction() as connection:
            await connection.execute_fetchall(_SET, values)
            after = limit.model_dump_json(exclude_none=True)
            await write_entry(
                connection, at=self._clock.time(), verb="limit role", guild_id=guild_id, by=by, after=after
            )

    async def clear(self, guild_id: int, role_id: int, *, by: int) -> bool:
        """Remove the limits of a role; False if it had none."""
        async with self._db.transaction() as connection:
            row = await first(connection, _CLEAR, {"guild_id": guild_id, "role_id": role_id})
            if row is None:
                return False
            before = _limit_of(row).model_dump_json(exclude_none=True)
            await write_entry(
                connection, at=self._clock.time(), verb="limit role", guild_id=guild_id, by=by, before=before
            )
            return True

    async def list(self, guild_id: int) -> list[RoleLimit]:
        """Return the limits of a server's roles."""
        rows = await self._db.all("SELECT * FROM role_limit WHERE guild_id = ? ORDER BY role_id", (guild_id,))
        return [_limit_of(row) for row in rows]

    async def allowance(self, guild_id: int, role_ids: Collection[int]) -> Allowance:
        """Return the limits of a member with these roles."""
        return allowance_of(self._configured, await self.list(guild_id), role_ids)

    async def dataset_bytes_of_roles(self, guild_id: int, role_ids: Collection[int]) -> int | None:
        """Return what a dataset may have by the limits of a member's roles; None: none of them has one."""
        own = [limit.max_dataset_mib for limit in await self.list(guild_id) if limit.role_id in role_ids]
        return max((mib * _MIB for mib in own if mib is not None), default=None)

    async def budget(self, guild_id: int, owner_id: int, allowed_h: float | None, *, zone: tzinfo = UTC) -> Budget:
        """Return a member's GPU hours of this calendar week; running jobs count up to now."""
        now = self._clock.time()
        values = {"guild_id": guild_id, "owner_id": owner_id, "now": now, "monday": week_of(now, zone)[0]}
        used, reserved = await self._db.one(_USED, values), await self._db.one(_RESERVED, values)
        assert used is not None
        assert reserved is not None
        return Budget(allowed_h=allowed_h, used_h=used["seconds"] / _HOUR_S, reserved_h=reserved["seconds"] / _HOUR_S)

    async def needed_h(self, job_id: int) -> float | None:
        """Return the GPU hours that a job still needs, its earlier attempts deducted; None: unknown."""
        row = await self._db.one(_NEEDED, {"id": job_id, "now": self._clock.time()})
        return None if row is None or row["seconds"] is None else row["seconds"] / _HOUR_S


def _limit_of(row: Any) -> RoleLimit:
    return RoleLimit(**{name: row[name] for name in RoleLimit.model_fields})


def hours_words(hours: float) -> str:
    """GPU hours, exact enough for few of them."""
    return f"{hours:.1f}" if hours >= 1 else f"{hours:.2g}"
