"""Files of jobs are deleted as planned; a kill between any two steps leaves a whole folder or none."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from bot.config import RetentionSettings
from bot.db import Database
from bot.db.audit import read_entries
from bot.errors import JobFilesDeleted
from bot.queue import JobStore, NewJob
from bot.queue.planning.retention import Storage, bytes_in
from bot.scheduled import cleanup as module
from bot.scheduled.alerts import AdminNotifier
from bot.scheduled.cleanup import RetentionRunner
from bot.ui.admin_news import FilesDeleted
from tests.bot.conftest import CHANNEL, GUILD, Submit
from tests.bot.fakes import FakeClock, Killed
from tests.bot.scheduled.conftest import LOG_CHANNEL, ReadNews
from trainer.protocol.sampling import make_sampling_spec
from trainer.protocol.spec import make_spec


@pytest.fixture
def jobs_dir(tmp_path: Path) -> Path:
    return tmp_path / "data" / "jobs"


@pytest.fixture
def retention(db: Database, notifier: AdminNotifier, clock: FakeClock, tmp_path: Path) -> RetentionRunner:
    settings = RetentionSettings(max_age_days=30, keep_newest=0)
    return RetentionRunner(db, data_dir=tmp_path / "data", settings=settings, notifier=notifier, clock=clock)


async def end(db: Database, job_id: int, clock: FakeClock, *, days: float = 0, state: str = "succeeded") -> None:
    async with db.transaction() as connection:
        await connection.execute_fetchall(
            "UPDATE job SET state = ?, ended_at = ? WHERE id = ?", (state, clock.at - days * 86_400, job_id)
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


Ended = Callable[..., Awaitable[Path]]


@pytest.fixture
def ended(db: Database, submit: Submit, clock: FakeClock, jobs_dir: Path) -> Ended:
    """`await ended(days=61)`: the folder of a new job that ended so long ago."""

    async def make(*, days: float, state: str = "succeeded", has_files: bool = True) -> Path:
        job = await submit()
        await end(db, job.id, clock, days=days, state=state)
        folder = jobs_dir / str(job.id)
        return fill(folder) if has_files else folder

    return make


async def test_files_are_deleted_as_planned_and_it_is_recorded(
    db: Database, store: JobStore, ended: Ended, jobs_dir: Path, retention: RetentionRunner, sent_news: ReadNews
) -> None:
    for days in (61, 31, 1):
        await ended(days=days)
    assert await retention.run() == 2
    assert not (jobs_dir / "1").exists()
    assert files(jobs_dir / "2") == {"spec.json", "output/fox.safetensors"}
    assert len(files(jobs_dir / "3")) == 3
    assert [(await store.get(number)).are_files_deleted for number in (1, 2, 3)] == [True, False, False]
    entries = {entry.verb: entry.why for entry in await read_entries(db) if entry.verb.startswith("delete")}
    assert "61 days" in (entries["delete everything"] or "")
    assert "delete checkpoints" in entries
    assert names(jobs_dir) == {"2", "3"}
    assert await sent_news() == [(LOG_CHANNEL, FilesDeleted(jobs=2, bytes=4000))]
    assert await retention.run() == 0


async def test_a_dry_run_deletes_nothing_and_logs_what_it_would(
    db: Database, ended: Ended, clock: FakeClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = await ended(days=61)
    settings = RetentionSettings(max_age_days=30, keep_newest=0, dry_run=True)
    assert await RetentionRunner(db, data_dir=tmp_path / "data", settings=settings, clock=clock).run() == 0
    assert len(files(folder)) == 3
    assert "would delete #1 fox" in caplog.text


async def test_a_job_that_is_needed_again_since_the_plan_is_kept(
    db: Database,
    store: JobStore,
    ended: Ended,
    clock: FakeClock,
    jobs_dir: Path,
    retention: RetentionRunner,
    tmp_path: Path,
) -> None:
    for _number in (1, 2):
        await ended(days=61, state="failed")
    settings = RetentionSettings(max_age_days=30, keep_newest=0)
    plan, _ = await Storage(db, data_dir=tmp_path / "data", settings=settings, clock=clock).survey()
    await store.retry(1, by=1)
    await store.pin(2, by=1)
    assert [await retention.delete(deletion) for deletion in plan.deletions] == [False, False]
    assert len(files(jobs_dir)) == 6


@pytest.mark.parametrize("waits", ["from a training", "from a run of a study"])
async def test_what_a_job_that_waits_starts_from_is_kept_until_it_has_ended(
    db: Database,
    store: JobStore,
    ended: Ended,
    clock: FakeClock,
    retention: RetentionRunner,
    tmp_path: Path,
    waits: str,
) -> None:
    for has_files in (True, False):
        await ended(days=61, has_files=has_files)
    async with db.transaction() as connection:
        await connection.execute_fetchall("UPDATE job SET parent_id = 1, child_name = 'a', folder = '1/a' WHERE id = 2")
    settings = RetentionSettings(max_age_days=30, keep_newest=0)
    plan, _ = await Storage(db, data_dir=tmp_path / "data", settings=settings, clock=clock).survey()
    source = 1 if waits == "from a training" else 2
    new = NewJob(
        interaction_id=99,
        guild_id=GUILD,
        channel_id=CHANNEL,
        owner_id=2,
        dataset_id=1,
        source_id=source,
        spec=make_spec({"name": "more", "dataset": "/nowhere"}),
    )
    following = await store.submit(new)
    # Also if it began to wait between plan and deletion.
    assert [await retention.delete(each) for each in plan.deletions] == [False]
    assert await retention.run() == 0
    await end(db, following.id, clock)
    assert await retention.run() == 1
    with pytest.raises(JobFilesDeleted):
        await store.submit(dataclasses.replace(new, interaction_id=100))


async def test_a_study_and_its_children_are_deleted_together_or_not_at_all(
    db: Database, ended: Ended, clock: FakeClock, jobs_dir: Path, retention: RetentionRunner
) -> None:
    for has_files in (True, False):
        await ended(days=61, has_files=has_files)
    async with db.transaction() as connection:
        await connection.execute_fetchall(
            "UPDATE job SET parent_id = 1, folder = '1/runs/a', child_name = 'a', state = 'paused', ended_at = NULL"
            " WHERE id = 2"
        )
    fill(jobs_dir / "1/runs/a")
    assert await retention.run() == 0
    await end(db, 2, clock, days=31)
    assert await retention.run() == 1
    assert not (jobs_dir / "1").exists()
    rows = await db.all("SELECT files_deleted_at FROM job")
    assert all(row["files_deleted_at"] == clock.at for row in rows)


async def test_a_study_loses_the_checkpoints_of_all_its_children(
    db: Database, ended: Ended, jobs_dir: Path, retention: RetentionRunner
) -> None:
    for _number in (1, 2):
        await ended(days=31, has_files=False)
    async with db.transaction() as connection:
        await connection.execute_fetchall(
            "UPDATE job SET parent_id = 1, folder = '1/runs/a', child_name = 'a' WHERE id = 2"
        )
    fill(jobs_dir / "1/runs/a")
    assert await retention.run() == 1
    assert files(jobs_dir / "1/runs/a") == {"spec.json", "output/fox.safetensors"}


@pytest.mark.parametrize("step", ["_move", "_remove"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_bot_killed_in_the_middle_leaves_a_whole_folder_or_none(
    db: Database,
    store: JobStore,
    ended: Ended,
    jobs_dir: Path,
    retention: RetentionRunner,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    when: str,
) -> None:
    folder = await ended(days=61)
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
    # What is left no longer belongs to the job.
    assert (await store.get(1)).are_files_deleted
    assert not folder.exists() or len(files(folder)) == 3
    await retention.empty_trash()
    assert names(jobs_dir) == set()
    assert len([entry for entry in await read_entries(db) if entry.verb == "delete everything"]) == 1


async def test_a_bot_killed_before_the_deletion_is_recorded_has_deleted_nothing(
    store: JobStore, ended: Ended, retention: RetentionRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = await ended(days=61)

    async def killed(*values: object, **more: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_entry", killed)
        with pytest.raises(Killed):
            await retention.run()
    assert not (await store.get(1)).are_files_deleted
    assert len(files(folder)) == 3


async def test_links_are_not_followed(ended: Ended, retention: RetentionRunner, tmp_path: Path) -> None:
    precious = fill(tmp_path / "elsewhere")
    folder, link = await ended(days=61), await ended(days=61, has_files=False)
    (folder / "linked").symlink_to(precious, target_is_directory=True)
    link.symlink_to(precious, target_is_directory=True)
    assert bytes_in(folder) < 3100
    assert bytes_in(link) == 0
    await retention.run()
    assert not folder.exists()
    assert len(files(precious)) == 3


async def test_a_brought_file_that_no_sampling_has_is_deleted_after_a_day(
    store: JobStore, retention: RetentionRunner, clock: FakeClock, jobs_dir: Path
) -> None:
    spec = make_sampling_spec({"models": [{"kind": "base"}], "prompts": [{"prompt": "a fox"}]})
    job = NewJob(
        interaction_id=1,
        guild_id=GUILD,
        channel_id=CHANNEL,
        owner_id=1,
        dataset_id=0,
        spec=spec,
        title="ink",
        folder="file-1",
    )
    await store.submit(job)
    for name, age_s in (("file-1", 100_000), ("file-2", 100_000), ("file-3", 10)):
        fill(jobs_dir / name)
        os.utime(jobs_dir / name, (clock.at - age_s, clock.at - age_s))

    await retention.empty_trash()

    assert names(jobs_dir) == {"file-1", "file-3"}, "of a job; the bot was killed; just being downloaded"
