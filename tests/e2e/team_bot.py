"""The bot's queue, runner and sender in a process that a test may kill, with a team that uses it.

python tests/e2e/team_bot.py DATA_DIR

Two people hand in six jobs for two GPUs; one is cancelled while it trains, one paused and resumed, one dies once, one
fails and is retried. What they do depends on what they see only, so a team whose bot was killed goes on where it was.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bot.config import CardSettings, LimitSettings, QueueSettings
from bot.db import Database, database, hold_data_folder, open_db
from bot.db.copies import back_up
from bot.outbox import Notice, NoticeKind, Outbox, Sender
from bot.queue import Dispatcher, Job, JobStore, NewJob, State, StopIntent, slots_of
from bot.queue.liveness import Pulse
from bot.runners import LocalRunner
from tests.bot import fakes
from tests.bot.conftest import CHANNEL, GUILD, add_dataset
from trainer.protocol.devices import Devices, Gpu
from trainer.protocol.events import EpochEnded
from trainer.protocol.spec import make_spec

QUICK_TRAINER = Path(__file__).with_name("quick_trainer.py")
#: Names of the jobs (how they go) and their owners.
JOBS = (("plain", 1), ("waits", 2), ("long", 1), ("dies", 2), ("fails", 1), ("plain", 2))
SETTINGS = QueueSettings(poll_s=0.05, retry_pause_s=0, max_attempts=10, stop_grace_s=5)


class FileDiscord:
    """`Post`: each message a line in a file; the same nonce again is the message already made, as on Discord."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def _lines(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    async def send(self, channel_id: int, message: Any, nonce: str) -> int:
        known = self._lines()
        for number, each in enumerate(known, 1):
            if each["nonce"] == nonce:
                return number
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"nonce": nonce, "text": message}) + "\n")
        return len(known) + 1

    async def edit(self, channel_id: int, message_id: int, message: Any) -> None:
        assert 1 <= message_id <= len(self._lines())

    async def find(self, channel_id: int, marker: str) -> int | None:
        return next((number for number, each in enumerate(self._lines(), 1) if marker in each["text"]), None)


async def render(notice: Notice, marker: str) -> str:
    """One line that is no other notice's: `#1 epoch 2 · 3fa8c1d2`."""
    epochs = "".join(f" {event.epoch}" for event in notice.events if isinstance(event, EpochEnded))
    attempt = f" {notice.attempt}" if notice.kind in {NoticeKind.LOST, NoticeKind.PAUSED} else ""
    return f"#{notice.job_id} {notice.kind}{epochs}{attempt} · {marker}"


def write_event_samples(path: Path) -> Path:
    """What `quick_trainer.py` says."""
    events = (
        fakes.started(1), fakes.step_done(1, 1), fakes.epoch_ended(1, 1), fakes.failed(1), fakes.stopped(1),
        fakes.finished(1),
    )  # fmt: skip
    path.write_text(json.dumps({event.type: event.model_dump(mode="json") for event in events}))
    return path


def two_gpus() -> Devices:
    return Devices(gpus=tuple(Gpu(id=f"GPU-{number}", name="Pretend", memory_bytes=2**30) for number in (0, 1)))


class Services:
    """Store, dispatcher and sender over one data folder."""

    def __init__(
        self,
        db: Database,
        data_dir: Path,
        *,
        settings: QueueSettings = SETTINGS,
        now: Callable[[], float] = time.time,
        pulse: Pulse | None = None,
    ) -> None:
        self.outbox = Outbox(db, now=now)
        limits = LimitSettings(max_jobs_per_user=100)
        self.store = JobStore(db, self.outbox, data_dir=data_dir, limits=limits, queue=settings, now=now)
        # No `site`, which takes longer than all that it does.
        command = (sys.executable, "-S", "-E", str(QUICK_TRAINER), str(write_event_samples(data_dir / "samples.json")))
        self.runner = LocalRunner(command=command, env=dict(os.environ))
        self.dispatcher = Dispatcher(self.store, self.runner, settings=settings, now=now, pulse=pulse)
        post = FileDiscord(data_dir.with_suffix(".discord"))
        self.sender = Sender(
            self.outbox, post, render, settings=CardSettings(edit_interval_s=1.0), poll_s=0.05, now=now
        )


def new_job(number: int, name: str, owner: int) -> NewJob:
    return NewJob(
        interaction_id=number,
        guild_id=GUILD,
        channel_id=CHANNEL + owner,
        owner_id=owner,
        dataset_id=1,
        spec=make_spec({"name": name, "dataset": "/nowhere"}),
    )


async def use(store: JobStore, job: Job) -> bool:
    """What its owner does about a job now; True once there is nothing left to do or to wait for."""
    is_training = job.state is State.RUNNING and job.progress.epoch is not None
    match job.name:
        case "waits" if is_training:
            await store.request_stop(job.id, by=job.owner_id, intent=StopIntent.CANCEL)
        case "long" if is_training and job.progress.epoch and job.progress.epoch.epoch < 5:
            await store.request_stop(job.id, by=job.owner_id, intent=StopIntent.PAUSE)
        case "long" if job.state is State.PAUSED:
            await store.resume(job.id, by=job.owner_id)
        case "fails" if job.state is State.FAILED and job.round == 1:
            await store.retry(job.id, by=job.owner_id)
            return False
    return job.state.is_end


async def _is_all_told(services: Services) -> bool:
    have_ended = [await use(services.store, job) for job in await services.store.recent(GUILD)]
    return all(have_ended) and not await services.outbox.depth()


async def work(data_dir: Path) -> None:
    """Be a team until every job has ended and all is told."""
    with hold_data_folder(data_dir):
        async with open_db(data_dir / "darkroom.db") as db, asyncio.TaskGroup() as group:
            await add_dataset(db)
            services = Services(db, data_dir)
            await services.store.slots.set(slots_of(two_gpus(), None))
            tasks = [group.create_task(services.dispatcher.run()), group.create_task(services.sender.run())]
            for number, (name, owner) in enumerate(JOBS, 1):
                await services.store.submit(new_job(number, name, owner))
            # The next bot may be here within the same second, and copies are named for theirs.
            if not list((data_dir / "backups").glob("*.db")):
                await back_up(db.path, data_dir / "backups", keep=2)
            while not await _is_all_told(services):  # noqa: ASYNC110 - the bot sets no event for a team.
                await asyncio.sleep(0.03)
            for task in tasks:
                task.cancel()


if __name__ == "__main__":
    # Only this process dies, not the machine: no need to wait for the disk at each of some hundred commits.
    setattr(database, "_PRAGMAS", ("journal_mode=WAL", "synchronous=OFF", "foreign_keys=ON"))  # noqa: B010
    asyncio.run(work(Path(sys.argv[1])))
