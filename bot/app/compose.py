"""The composition root: every service is made here, beside the Discord client, and owned by one task group.

Services are older than the client and outlive it: it may reconnect, or be made anew, while trainings are heard,
cards are redrawn and posts wait for their turn.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import discord

from bot.app.client import Darkroom
from bot.app.poster import Poster
from bot.cogs.downloads import Download, streamed
from bot.cogs.services import Services, standing_of
from bot.config import Config
from bot.datasets import DatasetStore
from bot.db import Database, hold_data_folder, open_db
from bot.outbox import Notice, Outbox, Sender
from bot.queue import Dispatcher, DraftStore, JobStore
from bot.runners import LocalRunner, WarmTrainer
from bot.schedule import Schedule
from bot.ui.layout import MessageContent
from bot.ui.notices import notice_message

log = logging.getLogger(__name__)

DATABASE_FILE = "darkroom.db"


class App:
    """The running bot: its services, and the client that is connected at the moment."""

    def __init__(self, services: Services, db: Database, outbox: Outbox) -> None:
        self.services = services
        self.db = db
        self.outbox = outbox
        self._client: Darkroom | None = None

    def __repr__(self) -> str:
        return f"App({self.db!r}, {'connected' if self._client and self._client.is_ready() else 'not connected'})"

    def client(self) -> discord.Client | None:
        return self._client

    def new_client(self) -> Darkroom:
        """A client that takes the place of the one before it (a closed client cannot be started again)."""
        self._client = Darkroom(self.services, self.db)
        return self._client

    async def render(self, notice: Notice, marker: str) -> MessageContent:
        """The message of a notice, from how its job stands now."""
        job = await self.services.jobs.get(notice.job_id)
        standing = await standing_of(job, self.services, self._client, marker)
        # A post tells of the attempt that caused it, a card (0) of the newest.
        return notice_message(notice, dataclasses.replace(job, attempt=notice.attempt or job.attempt), standing)


@asynccontextmanager
async def compose(
    config: Config, *, trainer: Sequence[str] | None = None, download: Download = streamed
) -> AsyncIterator[App]:
    """The services of a bot, made and running, without a connection to Discord.

    `trainer` takes the place of the configured command (a stand-in for tests), `download` that of the way to an
    attachment's bytes (a simulated Discord has no addresses).

    Raises:
        FolderInUse: another bot works on the data folder.
        SchemaTooNew, DatabaseDamaged: the database cannot be used.
    """
    async with AsyncExitStack() as stack:
        data_dir = stack.enter_context(hold_data_folder(config.storage.data_dir))
        db = await stack.enter_async_context(open_db(data_dir / DATABASE_FILE))
        outbox = Outbox(db)
        jobs = JobStore(db, outbox, data_dir=data_dir, limits=config.limits, queue=config.queue)
        environment = config.trainer_environment()
        datasets = DatasetStore(
            db,
            data_dir=data_dir,
            limits=config.limits,
            prepare=config.prepare,
            command=trainer or config.trainer.command,
            env=environment,
        )
        drafts = DraftStore(db)
        services = Services(config=config, jobs=jobs, datasets=datasets, drafts=drafts, download=download)
        app = App(services, db, outbox)
        is_warm = config.trainer.warm and trainer is None
        warm = WarmTrainer(command=config.trainer.command, env=environment) if is_warm else None
        runner = LocalRunner(command=trainer or config.trainer.command, env=environment, warm=warm)
        dispatcher = Dispatcher(jobs, runner, settings=config.queue)
        sender = Sender(outbox, Poster(app.client), app.render, settings=config.cards)
        schedule = Schedule(db=db, datasets=datasets, drafts=drafts, jobs=jobs, silence_s=config.queue.silence_s)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        schedule.start()
        tasks = [
            group.create_task(dispatcher.run(), name="dispatcher"),
            group.create_task(sender.run(), name="sender"),
        ]
        if warm is not None:
            tasks.append(group.create_task(warm.run(), name="warm trainer"))
        try:
            yield app
        finally:
            schedule.stop()
            # Trainings are no children of these: they go on.
            for task in tasks:
                task.cancel()
