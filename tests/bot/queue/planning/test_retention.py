"""Which files of ended jobs are deleted, as a plan."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.config import RetentionSettings
from bot.queue import State
from bot.queue.planning.retention import DeletionReason, DeletionScope, RetentionPlan, StoredJob, plan_retention

DAY_S, GIB = 86_400, 1024**3
NOW = 1_800_000_000.0


def stored(job_id: int, *, days: float = 100, owner: int = 1, gib: float = 2, **changes: object) -> StoredJob:
    """A job that succeeded `days` ago; half of it is checkpoints."""
    values = {
        "job_id": job_id,
        "name": "fox",
        "owner_id": owner,
        "state": State.SUCCEEDED,
        "ended_at": NOW - days * DAY_S,
        "is_pinned": False,
        "is_shared": False,
        "is_active": False,
        "checkpoint_bytes": int(gib * GIB / 2),
        "bytes": int(gib * GIB),
        **changes,
    }
    return StoredJob(**values)  # type: ignore[arg-type]


def planned(*jobs: StoredJob, days: int = 0, gib: float = 0, keep: int = 0) -> list[tuple[int, DeletionScope]]:
    settings = RetentionSettings(max_age_days=days, max_gib_per_person=gib, keep_newest=keep)
    return [(each.job_id, each.scope) for each in plan_retention(jobs, settings, NOW).deletions]


def test_nothing_is_deleted_by_default() -> None:
    assert plan_retention([stored(1, days=10_000, gib=10_000)], RetentionSettings(), NOW) == RetentionPlan()


def test_checkpoints_are_deleted_by_age_and_all_files_after_twice_as_long() -> None:
    assert planned(stored(1, days=61), stored(2, days=31), stored(3, days=29), days=30) == [
        (1, DeletionScope.EVERYTHING),
        (2, DeletionScope.CHECKPOINTS),
    ]


def test_an_owner_above_the_limit_loses_the_oldest_checkpoints_first_then_the_oldest_jobs() -> None:
    jobs = [stored(1, days=30), stored(2, days=20), stored(3, days=10), stored(4, owner=2, gib=1)]
    assert planned(*jobs, gib=5.5) == [(1, DeletionScope.CHECKPOINTS)]
    assert planned(*jobs, gib=4) == [(1, DeletionScope.CHECKPOINTS), (2, DeletionScope.CHECKPOINTS)]
    assert planned(*jobs, gib=2.5) == [
        (2, DeletionScope.CHECKPOINTS),
        (3, DeletionScope.CHECKPOINTS),
        (1, DeletionScope.EVERYTHING),
    ]


def test_deletions_by_age_count_for_the_limit() -> None:
    assert planned(stored(1, days=70), stored(2, days=1), days=30, gib=2) == [(1, DeletionScope.EVERYTHING)]


@pytest.mark.parametrize(
    "changes",
    [
        {"is_pinned": True},
        {"is_shared": True},
        {"is_active": True},
        {"state": State.QUEUED, "ended_at": None},
        {"state": State.RUNNING, "ended_at": None},
        {"state": State.PAUSED, "ended_at": None},
        {"state": State.FAILED, "ended_at": NOW - 6 * DAY_S},
    ],
)
def test_needed_files_are_never_deleted(changes: dict[str, object]) -> None:
    assert planned(stored(1, **changes), days=1, gib=0.001) == []  # type: ignore[arg-type]


def test_a_failed_job_is_deleted_completely_and_never_its_checkpoints_alone() -> None:
    assert planned(stored(1, days=8, state=State.FAILED), days=7) == []
    assert planned(stored(1, days=8, state=State.FAILED), gib=0.5) == [(1, DeletionScope.EVERYTHING)]


def test_the_newest_results_of_each_owner_are_kept() -> None:
    jobs = [stored(number, days=100 - number, owner=owner) for number, owner in ((1, 1), (2, 1), (3, 2), (4, 1))]
    # A cancelled job is not a result, and does not count.
    cancelled = stored(5, days=1, state=State.CANCELLED)
    assert planned(*jobs, cancelled, days=30, keep=2) == [(1, DeletionScope.EVERYTHING)]


def test_each_deletion_has_its_reason() -> None:
    settings = RetentionSettings(max_age_days=30, max_gib_per_person=1.5, keep_newest=0)
    plan = plan_retention([stored(1, days=61), stored(2, days=3)], settings, NOW)
    assert [(each.reason, each.value, each.limit) for each in plan.deletions] == [
        (DeletionReason.AGE, 61, 60),
        (DeletionReason.SIZE, 2 * GIB, int(1.5 * GIB)),
    ]
    assert plan.bytes == 3 * GIB


@st.composite
def _jobs(draw: st.DrawFn) -> list[StoredJob]:
    return [
        stored(
            number,
            days=draw(st.integers(0, 100)),
            owner=draw(st.integers(1, 2)),
            gib=draw(st.integers(0, 4)),
            state=draw(st.sampled_from([State.SUCCEEDED, State.FAILED, State.CANCELLED, State.RUNNING])),
            is_pinned=draw(st.booleans()),
        )
        for number in range(draw(st.integers(0, 8)))
    ]


@given(jobs=_jobs(), days=st.integers(0, 60), gib=st.integers(0, 6), keep=st.integers(0, 3))
def test_a_plan_deletes_what_it_must_and_nothing_that_it_may_not(
    jobs: list[StoredJob], days: int, gib: int, keep: int
) -> None:
    settings = RetentionSettings(max_age_days=days, max_gib_per_person=gib, keep_newest=keep)
    plan = plan_retention(jobs, settings, NOW)
    by_id = {each.job_id: each for each in jobs}
    assert len({deletion.job_id for deletion in plan.deletions}) == len(plan.deletions)
    for deletion in plan.deletions:
        job = by_id[deletion.job_id]
        assert job.state.is_end
        assert not job.is_pinned
        assert 0 < deletion.bytes <= job.bytes
        assert job.state is not State.FAILED or job.age_days(NOW) >= 7
    freed = {deletion.job_id: deletion.bytes for deletion in plan.deletions}
    for owner in (1, 2) if gib else ():
        mine = [each for each in jobs if each.owner_id == owner and each.state.is_end]
        left = sum(each.bytes - freed.get(each.job_id, 0) for each in mine)
        results = sorted(
            (each for each in mine if each.state is State.SUCCEEDED and each.bytes),
            key=lambda each: (each.ended_at, each.job_id),
        )
        newest = {each.job_id for each in results[-keep:]} if keep else set()
        kept_by_rule = sum(
            each.bytes
            for each in mine
            if each.is_pinned or each.job_id in newest or (each.state is State.FAILED and each.age_days(NOW) < 7)
        )
        assert left <= max(gib * GIB, kept_by_rule)
