"""The bot's queue, runner and sender in a process that a test may kill, with a team that uses it.

python tests/e2e/team_bot.py DATA_DIR

Two users submit seven jobs for two GPUs. One is cancelled while it trains, one paused and resumed, one dies once, one
fails and is retried, one draws and dies once. The users act on the state they see, so they continue where they were
after the bot was killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bot.clock import SYSTEM_CLOCK, Clock
from bot.config import CardSettings, LimitSettings, QueueSettings
from bot.db import Database, database, hold_data_folder, open_db
from bot.db.copies import back_up
from bot.outbox import MessageForm, Notification, NotificationKind, Outbox, Sender
from bot.queue import Dispatcher, Job, JobStore, NewJob, State, StopIntent, slots_of
from bot.runners import LocalRunner
from tests.bot import fake_events
from tests.bot.conftest import CHANNEL, FAST_PRAGMAS, GUILD, add_dataset
from trainer.protocol.devices import Devices, Gpu
from trainer.protocol.sampling import make_sampling_spec
from trainer.protocol.spec import make_spec

QUICK_TRAINER = Path(__file__).with_name("quick_trainer.py")
#: Names of the jobs (how they go) and their owners.
JOBS = (("plain", 1), ("waits", 2), ("pauses", 1), ("dies", 2), ("fails", 1), ("plain", 2), ("draws", 2))
SAMPLING = make_sampling_spec({"models": [{"kind": "base"}], "prompts": [{"prompt": "a fox"}], "seeds": [1, 2, 3]})
SETTINGS = QueueSettings(poll_s=0.05, retry_pause_s=0, max_attempts=10, stop_grace_s=5)


class FileDiscord:
    """A `Transport` to a file, one line per message; the same nonce returns the existing message, as on Discord."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()
        #: Of the messages, whose IDs are 1, 2, 3 …
        self._nonces = [json.loads(line)["nonce"] for line in path.read_text(encoding="utf-8").splitlines()]

    def is_ready(self) -> bool:
        return True

    async def open_dm(self, user_id: int) -> int:
        return user_id

    async def send(self, channel_id: int, message: Any, nonce: str) -> int:
        if nonce not in self._nonces:
            self._nonces.append(nonce)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"nonce": nonce, "text": message}) + "\n")
        return self._nonces.index(nonce) + 1

    async def edit(self, channel_id: int, message_id: int, message: Any) -> None:
        assert 1 <= message_id <= len(self._nonces)

    async def delete(self, channel_id: int, message_id: int) -> None:
        raise AssertionError("no card is replaced")

    async def find(self, channel_id: int, nonce: str) -> int | None:
        return self._nonces.index(nonce) + 1 if nonce in self._nonces else None

    async def start_thread(self, channel_id: int, message_id: int, name: str) -> int:
        return message_id


async def render(notification: Notification, form: MessageForm) -> str:
    """One line that is unique to its notification: `#1 epoch 2`."""
    number = ""
    match notification.kind:
        case NotificationKind.EPOCH:
            number = f" {notification.dedupe_key.rpartition(':')[2]}"
        case NotificationKind.LOST | NotificationKind.PAUSED:
            number = f" {notification.attempt}"
    return f"#{notification.job_id} {notification.kind}{number}"


def write_event_samples(path: Path) -> Path:
    """Write the events that `quick_trainer.py` emits."""
    events = (
        fake_events.started(1), fake_events.step_done(1, 1), fake_events.epoch_ended(1, 1),
        fake_events.failed(1), fake_events.stopped(1), fake_events.finished(1),
        fake_events.sampling_started(1), fake_events.image_drawn(1), fake_events.sampling_finished(1),
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
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.outbox = Outbox(db, clock=clock)
        limits = LimitSettings(max_jobs_per_user=100)
        self.store = JobStore(db, self.outbox, data_dir=data_dir, limits=limits, queue=settings, clock=clock)
        # `site` would take longer than everything that it does.
        command = (sys.executable, "-S", "-E", str(QUICK_TRAINER), str(write_event_samples(data_dir / "samples.json")))
        self.runner = LocalRunner(command=command, env=dict(os.environ))
        self.dispatcher = Dispatcher(self.store, self.runner, settings=settings, clock=clock)
        post = FileDiscord(data_dir.with_suffix(".discord"))
        self.sender = Sender(
            self.outbox,
            post,
            render,
            settings=CardSettings(edit_interval_s=1.0, epoch_interval_s=0),
            poll_s=0.05,
            clock=clock,
        )


def new_job(number: int, name: str, owner: int) -> NewJob:
    is_sampling = name == "draws"
    return NewJob(
        interaction_id=number,
        guild_id=GUILD,
        channel_id=CHANNEL + owner,
        owner_id=owner,
        dataset_id=0 if is_sampling else 1,
        # Of the first training.
        source_id=1 if is_sampling else None,
        spec=SAMPLING if is_sampling else make_spec({"name": name, "dataset": "/nowhere"}),
        title=name,
    )


async def use(store: JobStore, job: Job) -> bool:
    """Do what a job's owner does now; True once nothing is left to do or to wait for."""
    is_training = job.state is State.RUNNING and job.progress.epoch is not None
    match job.name:
        case "waits" if is_training:
            await store.request_stop(job.id, by=job.owner_id, intent=StopIntent.CANCEL)
        case "pauses" if is_training and job.progress.epoch and job.progress.epoch.epoch < 5:
            await store.request_stop(job.id, by=job.owner_id, intent=StopIntent.PAUSE)
        case "pauses" if job.state is State.PAUSED:
            await store.resume(job.id, by=job.owner_id)
        case "fails" if job.state is State.FAILED and job.round == 1:
            await store.retry(job.id, by=job.owner_id)
            return False
    return job.state.is_end


async def _is_everything_sent(services: Services) -> bool:
    have_ended = [await use(services.store, job) for job in await services.store.recent(GUILD)]
    return all(have_ended) and not await services.outbox.depth()


async def work(data_dir: Path) -> None:
    """Run the bot and its users until every job has ended and every message is sent."""
    with hold_data_folder(data_dir):
        async with open_db(data_dir / "darkroom.db") as db, asyncio.TaskGroup() as group:
            await add_dataset(db)
            services = Services(db, data_dir)
            await services.store.slots.set(slots_of(two_gpus(), None))
            tasks = [group.create_task(services.dispatcher.run()), group.create_task(services.sender.run())]
            for number, (name, owner) in enumerate(JOBS, 1):
                await services.store.submit(new_job(number, name, owner))
            # The next bot may start within the same second, and copies are named by the second.
            if not list((data_dir / "backups").glob("*.db")):
                await back_up(db.path, data_dir / "backups", keep=2)
            while not await _is_everything_sent(services):  # noqa: ASYNC110 - the bot sets no event for a team.
                await asyncio.sleep(0.03)
            for task in tasks:
                task.cancel()


def main(arguments: Sequence[str]) -> int:
    setattr(database, "_PRAGMAS", FAST_PRAGMAS)  # noqa: B010
    asyncio.run(work(Path(arguments[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
