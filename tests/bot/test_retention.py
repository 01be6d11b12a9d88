"""What may be deleted, as a plan; and a deletion that is killed between any two of its steps."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from discord import ui
from hypothesis import given
from hypothesis import strategies as st

from bot.config import RetentionSettings
from bot.db import Database
from bot.errors import JobRefused
from bot.outbox import Outbox
from bot.queue import JobStore, State
from bot.queue.planning.retention import Holding, Plan, Totals, What, plan_retention, totals_of
from bot.queue.planning.storage import Storage, bytes_in
from bot.queue.store.audit import read_entries
from bot.scheduled import retention as module
from bot.scheduled.news import News
from bot.scheduled.retention import Retention
from bot.ui.layout import MessageContent, weight
from bot.ui.storage import storage_message
from tests.bot.conftest import Submit
from tests.bot.fakes import Clock, Killed

DAY_S, GIB = 86_400, 1024**3
NOW = 1_800_000_000.0


def holding(job_id: int, *, days: float = 100, owner: int = 1, gib: float = 2, **changes: object) -> Holding:
    """A job that succeeded so many days ago, half of it checkpoints."""
    values = {
        "job_id": job_id,
        "name": "fox",
        "owner_id": owner,
        "state": State.SUCCEEDED,
        "ended_at": NOW - days * DAY_S,
        "is_pinned": False,
        "is_shared": False,
        "is_busy": False,
        "checkpoint_bytes": int(gib * GIB / 2),
        "bytes": int(gib * GIB),
        **changes,
    }
    return Holding(**values)  # type: ignore[arg-type]


def planned(*holdings: Holding, days: int = 0, gib: float = 0, keep: int = 0) -> list[tuple[int, What]]:
    settings = RetentionSettings(max_age_days=days, max_gib_per_person=gib, keep_newest=keep)
    return [(each.job_id, each.what) for each in plan_retention(holdings, settings, NOW).deletions]


def test_nothing_goes_by_default() -> None:
    assert plan_retention([holding(1, days=10_000, gib=10_000)], RetentionSettings(), NOW) == Plan()


def test_checkpoints_go_by_age_and_all_files_after_twice_as_long() -> None:
    assert planned(holding(1, days=61), holding(2, days=31), holding(3, days=29), days=30) == [
        (1, What.EVERYTHING),
        (2, What.CHECKPOINTS),
    ]


def test_a_person_above_their_limit_loses_the_oldest_checkpoints_first_then_the_oldest_jobs() -> None:
    jobs = [holding(1, days=30), holding(2, days=20), holding(3, days=10), holding(4, owner=2, gib=1)]
    assert planned(*jobs, gib=5.5) == [(1, What.CHECKPOINTS)]
    assert planned(*jobs, gib=4) == [(1, What.CHECKPOINTS), (2, What.CHECKPOINTS)]
    assert planned(*jobs, gib=2.5) == [(2, What.CHECKPOINTS), (3, What.CHECKPOINTS), (1, What.EVERYTHING)]


def test_what_goes_by_age_counts_for_the_limit() -> None:
    assert planned(holding(1, days=70), holding(2, days=1), days=30, gib=2) == [(1, What.EVERYTHING)]


@pytest.mark.parametrize(
    "changes",
    [
        {"is_pinned": True},
        {"is_shared": True},
        {"is_busy": True},
        {"state": State.QUEUED, "ended_at": None},
        {"state": State.RUNNING, "ended_at": None},
        {"state": State.PAUSED, "ended_at": None},
        {"state": State.FAILED, "ended_at": NOW - 6 * DAY_S},
    ],
)
def test_what_is_needed_never_goes(changes: dict[str, object]) -> None:
    assert planned(holding(1, **changes), days=1, gib=0.001) == []  # type: ignore[arg-type]


def test_a_failed_job_that_nobody_tried_again_goes_whole_and_never_its_checkpoints_alone() -> None:
    assert planned(holding(1, days=8, state=State.FAILED), days=7) == []
    assert planned(holding(1, days=8, state=State.FAILED), gib=0.5) == [(1, What.EVERYTHING)]


def test_the_newest_results_of_each_person_stay() -> None:
    jobs = [holding(number, days=100 - number, owner=owner) for number, owner in ((1, 1), (2, 1), (3, 2), (4, 1))]
    # A cancelled one is no result, and keeps none from staying.
    cancelled = holding(5, days=1, state=State.CANCELLED)
    assert planned(*jobs, cancelled, days=30, keep=2) == [(1, What.EVERYTHING)]


def test_each_deletion_says_why() -> None:
    settings = RetentionSettings(max_age_days=30, max_gib_per_person=1.5, keep_newest=0)
    plan = plan_retention([holding(1, days=61), holding(2, days=3)], settings, NOW)
    assert [deletion.sentence for deletion in plan.deletions] == [
        "#1 fox: all files (2.0 GiB), because it ended 61 days ago (limit: 60).",
        "#2 fox: the checkpoints (1.0 GiB), because its owner's ended jobs take 2.0 GiB of 1.5 GiB.",
    ]
    assert plan.bytes == 3 * GIB


@st.composite
def _holdings(draw: st.DrawFn) -> list[Holding]:
    return [
        holding(
            number,
            days=draw(st.integers(0, 100)),
            owner=draw(st.integers(1, 2)),
            gib=draw(st.integers(0, 4)),
            state=draw(st.sampled_from([State.SUCCEEDED, State.FAILED, State.CANCELLED, State.RUNNING])),
            is_pinned=draw(st.booleans()),
        )
        for number in range(draw(st.integers(0, 8)))
    ]


@given(holdings=_holdings(), days=st.integers(0, 60), gib=st.integers(0, 6), keep=st.integers(0, 3))
def test_a_plan_frees_what_it_must_and_no_more_than_it_may(
    holdings: list[Holding], days: int, gib: int, keep: int
) -> None:
    settings = RetentionSettings(max_age_days=days, max_gib_per_person=gib, keep_newest=keep)
    plan = plan_retention(holdings, settings, NOW)
    by_id = {each.job_id: each for each in holdings}
    assert len({deletion.job_id for deletion in plan.deletions}) == len(plan.deletions)
    for deletion in plan.deletions:
        job = by_id[deletion.job_id]
        assert job.state.is_end
        assert not job.is_pinned
        assert 0 < deletion.bytes <= job.bytes
        assert job.state is not State.FAILED or job.age_days(NOW) >= 7
    freed = {deletion.job_id: deletion.bytes for deletion in plan.deletions}
    for owner in (1, 2) if gib else ():
        mine = [each for each in holdings if each.owner_id == owner and each.state.is_end]
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


def words(message: MessageContent) -> str:
    return "\n".join(part.content for part in message.layout.walk_children() if isinstance(part, ui.TextDisplay))


def test_the_message_shows_sums_and_reasons_within_discords_limits() -> None:
    holdings = [holding(number, owner=number) for number in range(1, 60)]
    plan = plan_retention(holdings, RetentionSettings(max_age_days=1, keep_newest=0), NOW)
    message = storage_message(plan, totals_of(holdings, free_bytes=7 * GIB))
    text = words(message)
    assert "Jobs take 118.0 GiB; 7.0 GiB are free." in text
    assert "Due to be deleted: files of 59 jobs, 118.0 GiB" in text
    assert "… and 44 more" in text
    assert weight(message.layout)[1] <= 3500
    empty = storage_message(Plan(), Totals(free_bytes=1, bytes_by_owner={}, held_bytes=0))
    assert "Nothing is due" in words(empty)


# -- on a disk -----------------------------------------------------------------------------------------------------


@pytest.fixture
def jobs_dir(tmp_path: Path) -> Path:
    return tmp_path / "data" / "jobs"


@pytest.fixture
def retention(db: Database, outbox: Outbox, clock: Clock, tmp_path: Path) -> Retention:
    news = News(db, outbox, channel_id=900)
    settings = RetentionSettings(max_age_days=30, keep_newest=0)
    return Retention(db, data_dir=tmp_path / "data", settings=settings, news=news, now=clock)


async def end(db: Database, job_id: int, clock: Clock, *, days: float = 0, state: str = "succeeded") -> None:
    async with db.transaction() as connection:
        await connection.execute_fetchall(
            "UPDATE job SET state = ?, ended_at = ? WHERE id = ?", (state, clock.now - days * DAY_S, job_id)
        )


def fill(folder: Path) -> Path:
    for name in ("spec.json", "output/fox.safetensors", "checkpoints/step-1/state.bin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * 1000)
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_files_go_as_planned_and_it_is_written_down(
    db: Database, store: JobStore, submit: Submit, clock: Clock, jobs_dir: Path, retention: Retention
) -> None:
    for number, days in ((1, 61), (2, 31), (3, 1)):
        await submit()
        await end(db, number, clock, days=days)
        fill(jobs_dir / str(number))
    assert await retention.run() == 2
    assert not (jobs_dir / "1").exists()
    assert files(jobs_dir / "2") == {"spec.json", "output/fox.safetensors"}
    assert len(files(jobs_dir / "3")) == 3
    assert [(await store.get(number)).are_files_deleted for number in (1, 2, 3)] == [True, False, False]
    entries = {entry.verb: entry.why for entry in await read_entries(db) if entry.verb.startswith("delete")}
    assert entries["delete everything"] == "#1 fox: all files (0 MiB), because it ended 61 days ago (limit: 60)."
    assert "delete checkpoints" in entries
    assert names(jobs_dir) == {"2", "3"}
    row = await db.one("SELECT json_extract(notice, '$.detail') AS text FROM outbox WHERE channel_id = 900")
    assert row is not None
    assert row["text"].startswith("Made room: 3.9 KiB, files of 2 jobs")
    assert await retention.run() == 0


async def test_a_dry_run_deletes_nothing_and_says_what_it_would(
    db: Database, submit: Submit, clock: Clock, jobs_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await submit()
    await end(db, 1, clock, days=61)
    fill(jobs_dir / "1")
    settings = RetentionSettings(max_age_days=30, keep_newest=0, dry_run=True)
    assert await Retention(db, data_dir=tmp_path / "data", settings=settings, now=clock).run() == 0
    assert len(files(jobs_dir / "1")) == 3
    assert "would delete #1 fox: all files" in caplog.text


async def test_a_job_that_is_wanted_again_since_the_plan_is_kept(
    db: Database, store: JobStore, submit: Submit, clock: Clock, jobs_dir: Path, retention: Retention, tmp_path: Path
) -> None:
    for number in (1, 2):
        await submit()
        await end(db, number, clock, days=61, state="failed")
        fill(jobs_dir / str(number))
    settings = RetentionSettings(max_age_days=30, keep_newest=0)
    plan, _ = await Storage(db, data_dir=tmp_path / "data", settings=settings, now=clock).survey()
    await store.retry(1, by=1)
    await store.pin(2, by=1)
    assert [await retention.free(deletion) for deletion in plan.deletions] == [False, False]
    assert len(files(jobs_dir)) == 6


async def test_a_job_whose_files_went_cannot_be_tried_again(
    db: Database, store: JobStore, submit: Submit, clock: Clock, jobs_dir: Path, retention: Retention
) -> None:
    await submit()
    await end(db, 1, clock, days=61, state="failed")
    fill(jobs_dir / "1")
    await retention.run()
    with pytest.raises(JobRefused):
        await store.retry(1, by=1)


async def test_a_study_and_its_children_go_together_or_not_at_all(
    db: Database, submit: Submit, clock: Clock, jobs_dir: Path, retention: Retention
) -> None:
    for number in (1, 2):
        await submit()
        await end(db, number, clock, days=61)
    async with db.transaction() as connection:
        await connection.execute_fetchall(
            "UPDATE job SET parent_id = 1, folder = '1/runs/a', child_name = 'a', state = 'paused', ended_at = NULL"
            " WHERE id = 2"
        )
    fill(jobs_dir / "1")
    fill(jobs_dir / "1/runs/a")
    assert await retention.run() == 0
    await end(db, 2, clock, days=31)
    assert await retention.run() == 1
    assert not (jobs_dir / "1").exists()
    rows = await db.all("SELECT files_deleted_at FROM job")
    assert all(row["files_deleted_at"] == clock.now for row in rows)


async def test_a_study_loses_the_checkpoints_of_all_its_children(
    db: Database, submit: Submit, clock: Clock, jobs_dir: Path, retention: Retention
) -> None:
    for number in (1, 2):
        await submit()
        await end(db, number, clock, days=31)
    async with db.transaction() as connection:
        await connection.execute_fetchall(
            "UPDATE job SET parent_id = 1, folder = '1/runs/a', child_name = 'a' WHERE id = 2"
        )
    fill(jobs_dir / "1/runs/a")
    assert await retention.run() == 1
    assert files(jobs_dir / "1/runs/a") == {"spec.json", "output/fox.safetensors"}


@pytest.mark.parametrize("step", ["_move", "_remove"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_bot_that_is_killed_in_the_middle_leaves_a_whole_folder_or_none(
    db: Database,
    store: JobStore,
    submit: Submit,
    clock: Clock,
    jobs_dir: Path,
    retention: Retention,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    when: str,
) -> None:
    await submit()
    await end(db, 1, clock, days=61)
    fill(jobs_dir / "1")
    original = getattr(module, step)

    def killed(*paths: Path) -> None:
        if paths[0].exists():
            if when == "after":
                original(*paths)
            raise Killed
        original(*paths)

    with monkeypatch.context() as patched:
        patched.setattr(module, step, killed)
        with pytest.raises(Killed):
            await retention.run()
    # Whatever is left is not the job's any more, and nobody is told that it is.
    assert (await store.get(1)).are_files_deleted
    assert not (jobs_dir / "1").exists() or len(files(jobs_dir / "1")) == 3
    await retention.sweep()
    assert names(jobs_dir) == set()
    assert len([entry for entry in await read_entries(db) if entry.verb == "delete everything"]) == 1


async def test_a_bot_that_is_killed_before_it_is_written_down_has_deleted_nothing(
    db: Database,
    store: JobStore,
    submit: Submit,
    clock: Clock,
    jobs_dir: Path,
    retention: Retention,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await submit()
    await end(db, 1, clock, days=61)
    fill(jobs_dir / "1")

    async def killed(*values: object, **more: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_entry", killed)
        with pytest.raises(Killed):
            await retention.run()
    assert not (await store.get(1)).are_files_deleted
    assert len(files(jobs_dir / "1")) == 3


async def test_links_are_not_followed(
    db: Database, submit: Submit, clock: Clock, jobs_dir: Path, retention: Retention, tmp_path: Path
) -> None:
    precious = fill(tmp_path / "elsewhere")
    for number in (1, 2):
        await submit()
        await end(db, number, clock, days=61)
    fill(jobs_dir / "1")
    (jobs_dir / "1" / "linked").symlink_to(precious, target_is_directory=True)
    (jobs_dir / "2").symlink_to(precious, target_is_directory=True)
    assert bytes_in(jobs_dir / "1") < 3100
    assert bytes_in(jobs_dir / "2") == 0
    await retention.run()
    assert not (jobs_dir / "1").exists()
    assert len(files(precious)) == 3
