"""What goes from the object store after the retention, or beside it; told by a store that is a folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from bot.config import Config, RaySettings, RetentionSettings
from bot.datasets import DatasetStore
from bot.db import Database, Row
from bot.outbox import Outbox
from bot.queue import DraftStore, JobStore
from bot.queue.planning.windows import parse_windows
from bot.queue.store.audit import read_entries
from bot.runners.stored import StoredJobs, open_store
from bot.scheduled import Disk, Gates, plan_chores
from bot.scheduled.news import News
from bot.scheduled.retention import Retention
from bot.scheduled.store_sweep import StoreSweep
from tests.bot.conftest import Submit
from tests.bot.fakes import Clock, Killed
from trainer.protocol.devices import Devices
from trainer.protocol.objects import Objects
from trainer.protocol.store import Begin, JobPlace

DAY_S = 86_400


class Place:
    """The bot's disk, the store, and who makes room in both."""

    def __init__(self, db: Database, outbox: Outbox, clock: Clock, folder: Path) -> None:
        self.db, self.clock = db, clock
        self.data_dir, self.root = folder / "data", folder / "store"
        settings = RaySettings(address="http://head", store=f"file://{self.root}")
        objects = open_store(settings, self.data_dir)
        assert objects is not None
        self.objects = objects
        self.news = News(db, outbox, channel_id=900)
        self.restart()

    def restart(self, **retention: object) -> None:
        """A new bot."""
        settings = RetentionSettings.model_validate({"max_age_days": 30, "keep_newest": 0, **retention})
        self.sweep = StoreSweep(self.db, StoredJobs(self.objects), news=self.news, now=self.clock)
        self.retention = Retention(
            self.db, data_dir=self.data_dir, settings=settings, news=self.news, store=self.sweep, now=self.clock
        )

    async def round(self) -> None:
        await self.retention.run()
        await self.sweep.run()

    def fill(self, job_id: int) -> None:
        """Two attempts, both with a checkpoint, the first with one that the second does not begin with."""
        first, second = (JobPlace(job_id=job_id, attempt=number) for number in (1, 2))
        for place, name in ((first, "a"), (first, "late"), (second, "b")):
            self.objects.write(f"{place.checkpoints}/{name}.tar", b"packed")
        begin = Begin(spec="", checkpoints=(f"{first.checkpoints}/a.tar",))
        self.objects.write(first.begin, Begin(spec="").model_dump_json().encode())
        self.objects.write(second.begin, begin.model_dump_json().encode())
        output = self.data_dir / "jobs" / str(job_id) / "output"
        output.mkdir(parents=True, exist_ok=True)
        (output / "fox.safetensors").write_bytes(b"x" * 1000)

    def checkpoints(self, job_id: int) -> list[str]:
        names = [name for name in self.objects.names(f"jobs/{job_id}") if name.endswith(".tar")]
        return [name.rpartition("/")[2].removesuffix(".tar") for name in names]

    async def end(self, job_id: int, *, days: float, state: str = "succeeded") -> None:
        async with self.db.transaction() as connection:
            await connection.execute_fetchall(
                "UPDATE job SET state = ?, ended_at = ? WHERE id = ?", (state, self.clock.now - days * DAY_S, job_id)
            )


@pytest.fixture
def place(db: Database, outbox: Outbox, clock: Clock, tmp_path: Path) -> Place:
    return Place(db, outbox, clock, tmp_path)


async def test_the_store_loses_what_the_disk_loses(place: Place, submit: Submit) -> None:
    for number, days in ((1, 61), (2, 31), (3, 1)):
        await submit()
        await place.end(number, days=days)
        place.fill(number)
    place.objects.write("datasets/abc.tar", b"packed")
    await place.round()

    assert place.objects.names("jobs/1") == []
    assert place.checkpoints(2) == []
    assert place.objects.exists(JobPlace(job_id=2, attempt=2).begin)
    # Retention leaves it alone; but nobody would begin with that one.
    assert place.checkpoints(3) == ["a", "b"]
    assert place.objects.exists("datasets/abc.tar")
    why = {entry.job_id: entry.why for entry in await read_entries(place.db) if entry.verb == "delete checkpoints"}
    assert why == {
        2: "#2 fox: the checkpoints (0 MiB here, and what the object store has), because it ended 31 days ago"
        " (limit: 30)."
    }


async def test_it_is_planned_and_told_once(place: Place, submit: Submit) -> None:
    await submit()
    await place.end(1, days=31)
    place.fill(1)
    for _ in range(3):
        place.restart()
        await place.round()
    assert len([entry for entry in await read_entries(place.db) if entry.verb == "delete checkpoints"]) == 1
    told = [row["text"] for row in await place.db.all("SELECT json_extract(notice, '$.detail') AS text FROM outbox")]
    assert [text for text in told if text.startswith("Made room")] == [
        "Made room: in the object store, files of 1 job (/admin audit names them)."
    ]


@pytest.mark.parametrize("state", ["failed", "cancelled"])
async def test_what_a_retry_begins_with_stays_until_all_of_the_job_goes(
    place: Place, submit: Submit, state: str
) -> None:
    await submit()
    await place.end(1, days=31, state=state)
    place.fill(1)
    await place.round()
    assert place.checkpoints(1) == ["a", "b"]
    await place.end(1, days=61, state=state)
    await place.round()
    assert place.objects.names("jobs") == []


@pytest.mark.parametrize("state", ["queued", "paused", "running"])
async def test_a_job_that_goes_on_is_left_alone(place: Place, submit: Submit, state: str) -> None:
    await submit()
    place.fill(1)
    async with place.db.transaction() as connection:
        await connection.execute_fetchall("UPDATE job SET state = ? WHERE id = 1", (state,))
    await place.round()
    assert place.checkpoints(1) == ["a", "late", "b"]


@pytest.mark.parametrize("column", ["pinned_at", "shared_at"])
async def test_what_is_pinned_or_shared_is_left_alone_with_all_its_family(
    place: Place, submit: Submit, column: str
) -> None:
    for number in (1, 2, 3):
        await submit()
        await place.end(number, days=61)
        place.fill(number)
    async with place.db.transaction() as connection:
        await connection.execute_fetchall(
            "UPDATE job SET parent_id = 1, folder = '1/runs/' || id, child_name = 'run' || id WHERE id > 1"
        )
        await connection.execute_fetchall(f"UPDATE job SET {column} = 1 WHERE id = 2")
    await place.round()
    assert [place.checkpoints(number) for number in (1, 2, 3)] == [["a", "late", "b"]] * 3


async def test_a_job_pinned_after_its_checkpoints_went_here_keeps_those_in_the_store(
    place: Place, store: JobStore, submit: Submit
) -> None:
    await submit()
    await place.end(1, days=31)
    place.fill(1)
    await place.retention.run()
    await store.pin(1, by=1)
    await place.sweep.run()
    assert place.checkpoints(1) == ["a", "late", "b"]


async def test_a_job_that_is_pinned_while_the_round_goes_on_is_left_alone(
    place: Place, store: JobStore, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        await submit()
        await place.end(number, days=31)
        place.fill(number)
    await place.retention.run()
    take = place.sweep._take

    async def pin_the_next(row: Row, due: Any) -> None:
        await take(row, due)
        await store.pin(2, by=1)

    monkeypatch.setattr(place.sweep, "_take", pin_the_next)
    await place.sweep.run()
    assert place.checkpoints(1) == []
    assert place.checkpoints(2) == ["a", "late", "b"]


async def test_a_study_and_its_runs_lose_their_checkpoints_together(place: Place, submit: Submit) -> None:
    for number in (1, 2):
        await submit()
        await place.end(number, days=31)
    async with place.db.transaction() as connection:
        await connection.execute_fetchall(
            "UPDATE job SET parent_id = 1, folder = '1/runs/a', child_name = 'a' WHERE id = 2"
        )
    # A study itself runs on the bot's machine.
    place.fill(2)
    await place.round()
    assert place.checkpoints(2) == []


async def test_jobs_that_nobody_knows_are_left_alone(place: Place) -> None:
    place.fill(99)
    await place.round()
    assert place.checkpoints(99) == ["a", "late", "b"]


async def test_another_bots_jobs_are_left_alone(place: Place, submit: Submit, tmp_path: Path) -> None:
    await submit()
    await place.end(1, days=61)
    place.fill(1)
    theirs = open_store(RaySettings(address="http://head", store=f"file://{place.root}"), tmp_path / "other")
    assert theirs is not None
    theirs.write(JobPlace(job_id=1, attempt=1).begin, b"{}")
    await place.round()
    assert place.objects.names("jobs") == []
    assert theirs.names("jobs") == [JobPlace(job_id=1, attempt=1).begin]


async def test_a_store_out_of_reach_is_told_once_a_day_and_cleared_later(
    place: Place, submit: Submit, caplog: pytest.LogCaptureFixture
) -> None:
    place.clock.now -= place.clock.now % DAY_S
    for number in (1, 2):
        await submit()
        await place.end(number, days=61)
        place.fill(number)
    await place.retention.run()
    away = place.root.with_name("away")
    shutil.move(place.root, away)
    # A file where the folder was: whoever looks gets an error.
    place.root.write_text("")
    for _ in range(2):
        place.clock.now += 3600
        await place.round()
    assert "to be taken away later" in caplog.text
    told = await place.db.all("SELECT 1 FROM outbox WHERE dedupe_key LIKE 'store:%'")
    assert len(told) == 1
    assert not (place.data_dir / "jobs/1").exists()

    place.root.unlink()
    shutil.move(away, place.root)
    await place.sweep.run()
    assert place.objects.names("jobs") == []


@pytest.mark.parametrize("name", ["delete_folder", "delete"])
async def test_a_bot_that_is_killed_in_the_middle_does_the_rest_the_next_time(
    place: Place, submit: Submit, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for number, days in ((1, 61), (2, 31), (3, 31)):
        await submit()
        await place.end(number, days=days)
        place.fill(number)
    original = getattr(Objects, name)
    calls: list[str] = []

    def killed(self: Objects, of: str) -> None:
        calls.append(of)
        if len(calls) == (1 if name == "delete_folder" else 2):
            raise Killed
        original(self, of)

    with monkeypatch.context() as patched:
        patched.setattr(Objects, name, killed)
        with pytest.raises(Killed):
            await place.round()
    place.restart()
    await place.round()
    assert [name for name in place.objects.names("jobs") if name.endswith(".tar")] == []
    assert place.objects.names("jobs/1") == []


async def test_a_store_that_fails_in_the_middle_is_asked_again_by_the_same_bot(
    place: Place, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await submit()
    await place.end(1, days=31)
    place.fill(1)

    def fail(self: Objects, name: str) -> None:
        raise TimeoutError("the store is slow")

    with monkeypatch.context() as patched:
        patched.setattr(Objects, "delete", fail)
        await place.round()
    assert place.checkpoints(1) == ["a", "late", "b"]
    await place.sweep.run()
    assert place.checkpoints(1) == []


async def test_a_job_is_looked_at_once_a_bot_and_again_after_a_retry(
    place: Place, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await submit()
    await place.end(1, days=1, state="failed")
    place.fill(1)
    # One that never went through the store.
    await submit()
    await place.end(2, days=1, state="failed")
    looks: list[int] = []

    def look(stored: StoredJobs, job_id: int) -> int:
        looks.append(job_id)
        return 0

    monkeypatch.setattr(StoredJobs, "delete_stale_checkpoints", look)
    for _ in range(2):
        await place.sweep.run()
    assert looks == [1]
    async with place.db.transaction() as connection:
        await connection.execute_fetchall("UPDATE job SET attempt = attempt + 1 WHERE id = 1")
    await place.sweep.run()
    assert looks == [1, 1]


async def test_a_dry_run_plans_for_the_store_and_writes_nothing_down(
    place: Place, submit: Submit, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await submit()
    await place.end(1, days=31)
    place.fill(1)
    place.restart(dry_run=True)
    assert await place.retention.run() == 0
    assert "would delete #1 fox: the checkpoints (0 MiB here, and what the object store has)" in caplog.text
    assert [entry for entry in await read_entries(place.db) if entry.verb.startswith("delete")] == []


def test_without_a_cluster_or_a_store_there_is_nothing_to_sweep(tmp_path: Path) -> None:
    assert open_store(RaySettings(store=f"file://{tmp_path}"), tmp_path) is None
    assert open_store(RaySettings(address="http://head"), tmp_path) is None


@pytest.mark.parametrize(
    ("has_store", "dry_run", "planned"), [(False, False, False), (True, False, True), (True, True, False)]
)
async def test_the_store_is_swept_where_there_is_one_and_not_in_a_dry_run(
    db: Database,
    outbox: Outbox,
    store: JobStore,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    has_store: bool,
    dry_run: bool,
    planned: bool,
) -> None:
    # A file in its place: whoever looks into it gets an error.
    (tmp_path / "store").write_text("")
    ray = {"address": "http://head", "store": f"file://{tmp_path}/store"} if has_store else {}

    async def ask() -> Devices:
        return Devices()

    chores = plan_chores(
        Config.model_validate({"ray": ray, "retention": {"dry_run": dry_run}}),
        db=db,
        outbox=outbox,
        datasets=DatasetStore(db, data_dir=tmp_path / "data"),
        drafts=DraftStore(db),
        jobs=store,
        gates=Gates(parse_windows([], timezone="UTC"), Disk(tmp_path, min_free_bytes=0)),
        ask=ask,
        data_dir=tmp_path / "data",
    )
    assert ("store" in {job.id for job in chores.planned()}) is planned
    [retention] = [job.args[0] for job in chores.planned() if job.id == "retention"]
    await retention.run()
    assert ("stay in the store" in caplog.text) is has_store
