"""The composition root: every service is made here, beside the Discord client, and owned by one task group.

Services are older than the client and outlive it: it may reconnect, or be made anew, while trainings are heard,
cards are redrawn and posts wait for their turn.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import discord

from bot.app.assembling import assemble
from bot.app.client import Darkroom
from bot.app.machine import find_slots, make_runner
from bot.app.poster import Poster
from bot.cogs.downloads import Download, streamed
from bot.cogs.services import Services, standing_of
from bot.config import Config
from bot.db import DATABASE_FILE, Database, hold_data_folder, open_db
from bot.health import Counters, examine_health
from bot.operations.metrics import serve_metrics
from bot.outbox import Notice, NoticeKind, Outbox, Sender
from bot.queue import Dispatcher, Slot
from bot.queue.planning.windows import windows_of
from bot.runners import WarmTrainer
from bot.runners.asking import ask_devices
from bot.scheduled import Chores, Disk, Gates, LeftUploads, plan_chores
from bot.ui.health import health_message
from bot.ui.layout import MessageContent
from bot.ui.news import news_post
from bot.ui.notices import notice_message
from bot.ui.uploads import upload_post
from trainer.protocol.devices import Devices

log = logging.getLogger(__name__)


class App:
    """The running bot: its services, and the client that is connected at the moment."""

    def __init__(self, services: Services, db: Database, outbox: Outbox, counters: Counters) -> None:
        self.services = services
        self.db = db
        self.outbox = outbox
        self.counters = counters
        self._client: Darkroom | None = None

    def __repr__(self) -> str:
        return f"App({self.db!r}, {'connected' if self._client and self._client.is_ready() else 'not connected'})"

    def client(self) -> discord.Client | None:
        return self._client

    def new_client(self) -> Darkroom:
        """A client that takes the place of the one before it (a closed client cannot be started again)."""
        self._client = Darkroom(self.services, self.db, self.counters)
        return self._client

    async def render(self, notice: Notice, marker: str) -> MessageContent:
        """The message of a notice, from how its job stands now."""
        if notice.kind is NoticeKind.NEWS:
            return news_post(notice, marker)
        if notice.kind is NoticeKind.UPLOAD:
            return upload_post(notice, marker)
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
        outbox, counters = Outbox(db), Counters()
        command, environment = tuple(trainer or config.trainer.command), config.trainer_environment()
        gates = Gates(windows_of(config.windows), Disk(data_dir, min_free_bytes=config.health.min_free_bytes))
        services = assemble(
            config,
            db,
            outbox,
            data_dir=data_dir,
            command=command,
            environment=environment,
            health=partial(_health, config, db, counters),
            why_closed=gates.reason,
            download=download,
        )
        stack.push_async_callback(services.studies.close)
        is_warm = config.trainer.warm and trainer is None and not config.ray.address
        warm = WarmTrainer(command=command, env=environment) if is_warm else None
        dispatcher = Dispatcher(
            services.jobs,
            make_runner(config, command=command, environment=environment, warm=warm),
            settings=config.queue,
            gate=gates,
            advance=services.studies.advance,
        )
        ask = partial(ask_devices, command, environment)
        chores = _plan(config, services, db, outbox, gates, ask, data_dir)
        app = App(services, db, outbox, counters)
        sender = Sender(outbox, Poster(app.client), app.render, settings=config.cards)
        await stack.enter_async_context(
            serve_metrics(
                config.metrics,
                db.path,
                counters,
                min_free_bytes=config.health.min_free_bytes,
                heard=lambda: services.jobs.runs.events_heard,
            )
        )
        # Before anything changes: what the boot message compares with.
        await chores.remember()
        # Before a client connects: what comes later is this bot's own.
        left = _left_uploads(config, services, db, outbox)
        await left.remember()
        looking = partial(find_slots, config, command=command, environment=environment)
        runs = [_work_the_queue(services, dispatcher, looking, chores.looked), sender.run(), chores.run(), left.run()]
        async with _tasks([*runs, warm.run()] if warm is not None else runs):
            yield app


async def _health(config: Config, db: Database, counters: Counters) -> MessageContent:
    found = await examine_health(db.path, counters=counters, min_free_bytes=config.health.min_free_bytes)
    return health_message(found)


def _left_uploads(config: Config, services: Services, db: Database, outbox: Outbox) -> LeftUploads:
    return LeftUploads(
        db,
        outbox,
        uploads=services.uploads,
        datasets=services.datasets,
        drafts=services.drafts,
        captions=config.captions,
    )


def _plan(
    config: Config,
    services: Services,
    db: Database,
    outbox: Outbox,
    gates: Gates,
    ask: Callable[[], Awaitable[Devices]],
    data_dir: Path,
) -> Chores:
    return plan_chores(
        config,
        db=db,
        outbox=outbox,
        datasets=services.datasets,
        drafts=services.drafts,
        jobs=services.jobs,
        gates=gates,
        ask=ask,
        data_dir=data_dir,
    )


async def _work_the_queue(
    services: Services, dispatcher: Dispatcher, find: Callable[[], Awaitable[list[Slot]]], looked: asyncio.Event
) -> None:
    """First where trainings may run (a look at the GPUs takes seconds), then the queue."""
    await services.jobs.slots.set(await find())
    await dispatcher.step_safely()
    looked.set()
    await dispatcher.run()


@asynccontextmanager
async def _tasks(runs: Sequence[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Services at work; trainings are no children of these: they go on."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run, name=getattr(run, "__qualname__", "service")) for run in runs]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
