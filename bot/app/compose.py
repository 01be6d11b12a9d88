"""The composition root: makes every service, and runs them in one task group beside the Discord client.

Services are older than the client and outlive it: it may reconnect or be replaced while trainings are monitored, cards
are redrawn and messages wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import discord

from bot.access import Access
from bot.app.client import Darkroom
from bot.app.message_renderer import MessageRenderer
from bot.app.poster import Poster
from bot.cogs.attachments import stream_attachment
from bot.cogs.interaction_gate import InteractionGate
from bot.cogs.services import Download, Services
from bot.config import Config
from bot.datasets import DatasetStore, HubDatasets, PendingUploads, ResumableUploads
from bot.db import DATABASE_FILE, Database, hold_data_folder, open_db
from bot.errors import DarkroomError, RunnerUnreachable
from bot.health import ConnectionMonitor, read_health
from bot.languages import Languages
from bot.operations.metrics import serve_metrics
from bot.outbox import Notification, Outbox, Sender
from bot.predictions import MemoryPredictions
from bot.publishing import Publisher
from bot.queue import Dispatcher, DraftStore, JobStore, Slot, slots_of
from bot.queue.planning.estimates import Estimates
from bot.queue.planning.forecast import Forecaster
from bot.queue.planning.retention import Storage
from bot.queue.planning.windows import windows_of
from bot.queue.store.limits import RoleLimits
from bot.queue.store.preset_store import PresetStore
from bot.runners import LocalRunner, Runner, WarmSamplers, WarmTrainer
from bot.runners.local import query_devices
from bot.runners.ray import RayRunner, count_cluster_slots
from bot.scheduled import AdmissionControl, DiskMonitor, InterruptedUploads, plan_tasks
from bot.scheduled.cleanup import RetentionRunner
from bot.studies import StudyService
from bot.ui.admin_pages import health_page
from bot.ui.layout import MessageContent
from bot.web import WebLinks
from bot.web.pages import page_routes
from bot.web.server import make_application, serve_pages
from bot.web.site import Site
from bot.web.visitors import Visitors

log = logging.getLogger(__name__)

#: One transition redraws many cards, and each needs a forecast.
_FORECAST_CACHE_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the services share."""

    config: Config
    data_dir: Path
    db: Database
    outbox: Outbox
    languages: Languages
    access: Access
    connection: ConnectionMonitor
    admission: AdmissionControl
    #: How trainer processes are started.
    command: tuple[str, ...]
    environment: Mapping[str, str]
    download: Download

    @classmethod
    def of(
        cls,
        config: Config,
        db: Database,
        *,
        trainer: Sequence[str] | None = None,
        download: Download = stream_attachment,
    ) -> Self:
        """Make the parts with an open database; `trainer` and `download` stand in for the real ones in tests."""
        data_dir = config.storage.data_dir
        disk = DiskMonitor(data_dir, min_free_bytes=config.health.min_free_bytes)
        return cls(
            config=config,
            data_dir=data_dir,
            db=db,
            outbox=Outbox(db),
            languages=Languages(db),
            access=Access(db, config.access),
            connection=ConnectionMonitor(),
            admission=AdmissionControl(windows_of(config.windows), disk),
            command=tuple(trainer or config.trainer.command),
            environment=config.trainer_environment(),
            download=download,
        )

    async def health(self, guild_id: int | None) -> MessageContent:
        """The page of `/admin health` for the managers of a server, or for operators (None)."""
        least = self.config.health.min_free_bytes
        health = await read_health(self.db.path, connection=self.connection.stats, min_free_bytes=least)
        return health_page(health, guild_id=guild_id)

    async def post(self, notification: Notification, channel_id: int) -> None:
        """Post a notification that no transition causes."""
        async with self.db.transaction() as connection:
            await self.outbox.put(connection, notification, channel_id=channel_id)


def make_services(parts: Parts) -> tuple[Services, InterruptedUploads]:
    """Make everything that commands and buttons use, and what finishes uploads without them; nothing runs yet."""
    config, db, data_dir = parts.config, parts.db, parts.data_dir
    limits, queue = config.limits, config.queue
    jobs = JobStore(db, parts.outbox, data_dir=data_dir, limits=limits, queue=queue, sampling=config.sampling)
    datasets = DatasetStore(
        db,
        data_dir=data_dir,
        limits=limits,
        web=config.web,
        prepare=config.prepare,
        command=parts.command,
        env=config.confined_environment(),
        download_env=parts.environment,
        cpu_slots=queue.cpu_slots,
        min_free_bytes=config.health.min_free_bytes,
    )
    estimates, uploads = Estimates(db), PendingUploads(db)
    drafts = DraftStore(db, max_waiting=limits.max_drafts_per_user)
    hub_datasets = HubDatasets(datasets, prepare=config.prepare, web=config.web, incoming=data_dir / "incoming")
    resumable = ResumableUploads(db, parts.outbox, uploads, datasets, data_dir=data_dir, settings=config.web)
    interrupted = InterruptedUploads(
        db,
        parts.outbox,
        uploads=uploads,
        resumable=resumable,
        datasets=datasets,
        hub_datasets=hub_datasets,
        drafts=drafts,
        captions=config.captions,
    )
    services = Services(
        config=config,
        gate=InteractionGate(parts.post, parts.languages, parts.access),
        languages=parts.languages,
        access=parts.access,
        jobs=jobs,
        outbox=parts.outbox,
        datasets=datasets,
        uploads=uploads,
        resumable=resumable,
        hub_datasets=hub_datasets,
        finish_upload=interrupted.finish,
        drafts=drafts,
        presets=PresetStore(db),
        limits=RoleLimits(db, configured=limits),
        estimates=estimates,
        predictions=MemoryPredictions(config, command=parts.command, env=parts.environment),
        forecaster=Forecaster(db, jobs.control, estimates, windows=parts.admission.windows, cache_s=_FORECAST_CACHE_S),
        publisher=Publisher(db, jobs, settings=config.hub, command=parts.command, env=parts.environment),
        studies=StudyService(jobs, command=parts.command, env=parts.environment, limits=limits),
        storage=Storage(db, data_dir=data_dir, settings=config.retention),
        delete_files=RetentionRunner(db, data_dir=data_dir, settings=config.retention).delete,
        health=parts.health,
        why_closed=parts.admission.hold_reason,
        trainer_command=parts.command,
        download=parts.download,
        links=WebLinks(db, config.web),
    )
    return services, interrupted


class App:
    """The running bot: its services, and the client that is connected at the moment."""

    def __init__(self, parts: Parts) -> None:
        config, db, outbox = parts.config, parts.db, parts.outbox
        self.parts = parts
        self.services, self._uploads = make_services(parts)
        services = self.services
        self._client: Darkroom | None = None
        # A stand-in for the trainer cannot wait for jobs, and a cluster starts its own processes.
        is_warm = config.trainer.warm and parts.command == config.trainer.command and not config.ray.address
        self._warm = WarmTrainer(command=parts.command, env=parts.environment) if is_warm else None
        self._samplers = WarmSamplers() if is_warm and config.sampling.keep_warm_s else None
        self._dispatcher = Dispatcher(
            services.jobs,
            make_runner(parts, self._warm, self._samplers),
            settings=config.queue,
            admission=parts.admission,
            advance=services.studies.advance,
            language_of=parts.languages.of_server,
            sampling_stay_s=config.sampling.keep_warm_s,
        )
        #: Set when Discord refuses the token: no message can be sent, and no connection be kept.
        self.token_refused = asyncio.Event()
        renderer = MessageRenderer(services, self.client)
        self._sender = Sender(
            outbox,
            Poster(self.client, on_token_refused=self.token_refused.set),
            renderer.render,
            name_thread=renderer.name_thread,
            settings=config.cards,
            log_channel_id=config.discord.log_channel,
        )
        self._scheduler = plan_tasks(
            config,
            db=db,
            outbox=outbox,
            datasets=services.datasets,
            uploads=services.resumable,
            links=services.links,
            drafts=services.drafts,
            jobs=services.jobs,
            admission=parts.admission,
            query_gpus=partial(query_devices, parts.command, parts.environment),
            data_dir=parts.data_dir,
        )

    def __repr__(self) -> str:
        is_connected = self._client is not None and self._client.is_ready()
        return f"App({self.db!r}, {'connected' if is_connected else 'not connected'})"

    def site(self) -> Site:
        """The services of the web pages."""
        services = self.services
        return Site(
            config=services.config,
            links=services.links,
            visitors=Visitors(self.client, services.access),
            languages=services.languages,
            access=services.access,
            jobs=services.jobs,
            datasets=services.datasets,
            uploads=services.uploads,
            resumable=services.resumable,
            finish_upload=self._uploads.page_closed,
            limits=services.limits,
            outbox=services.outbox,
        )

    @property
    def db(self) -> Database:
        """The open database."""
        return self.parts.db

    @property
    def outbox(self) -> Outbox:
        """The messages to be sent."""
        return self.parts.outbox

    def client(self) -> discord.Client | None:
        """The newest client."""
        return self._client

    def new_client(self) -> Darkroom:
        """Replace the client: a closed client cannot be started again."""
        self._client = Darkroom(self.services, self.parts.db, self.parts.connection, self.parts.outbox)
        return self._client

    async def startup(self) -> None:
        """Record what an earlier bot left, before a service or a client changes it."""
        await self._scheduler.record_start()
        await self._uploads.record()

    def services_to_run(self) -> list[Coroutine[Any, Any, None]]:
        """The loops of all services."""
        loops = [self._run_queue(), self._sender.run(), self._scheduler.run()]
        loops += [self._uploads.run(), self._uploads.run_closed()]
        loops += [self.services.publisher.run(), self.services.predictions.run()]
        return [*loops, *(waiting.run() for waiting in (self._warm, self._samplers) if waiting is not None)]

    async def _run_queue(self) -> None:
        """Find the slots (querying the GPUs takes seconds), then run the queue."""
        await self.services.jobs.slots.set(await find_slots(self.parts))
        await self._dispatcher.step_safely()
        self._scheduler.first_pass_done.set()
        await self._dispatcher.run()


@asynccontextmanager
async def compose(
    config: Config, *, trainer: Sequence[str] | None = None, download: Download = stream_attachment
) -> AsyncIterator[App]:
    """Make and run the services of a bot, without a connection to Discord.

    Args:
        config: All settings.
        trainer: Replaces the configured command (a stand-in for tests).
        download: Replaces the way to an attachment's bytes (a simulated Discord has no URLs).

    Raises:
        FolderInUse: Another bot uses the data folder.
        SchemaTooNew, DatabaseDamaged: The database cannot be used.
    """
    async with AsyncExitStack() as stack:
        data_dir = stack.enter_context(hold_data_folder(config.storage.data_dir))
        db = await stack.enter_async_context(open_db(data_dir / DATABASE_FILE))
        parts = Parts.of(config, db, trainer=trainer, download=download)
        app = App(parts)
        stack.push_async_callback(app.services.studies.close)
        await stack.enter_async_context(
            serve_metrics(
                config.metrics,
                db.path,
                parts.connection,
                min_free_bytes=config.health.min_free_bytes,
                events_ingested=lambda: app.services.jobs.attempts.events_ingested,
            )
        )
        await parts.languages.load()
        await parts.access.load()
        await app.startup()
        await stack.enter_async_context(serve_pages(config.web, make_application(app.site(), page_routes())))
        async with _task_group(app.services_to_run()):
            yield app


@asynccontextmanager
async def _task_group(loops: Sequence[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run the loops while the body runs; trainings are not children of these tasks and continue."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(loop, name=getattr(loop, "__qualname__", "service")) for loop in loops]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
    except BaseExceptionGroup as group:
        raise _cause_of(group) from None


def _cause_of(group: BaseExceptionGroup) -> BaseException:
    """Return the error that explains why the bot ends, and log the others."""
    first, *others = sorted(_flat(group), key=lambda error: not isinstance(error, DarkroomError))
    for error in others:
        log.error("another error while the bot ends", exc_info=error)
    return first


def _flat(group: BaseExceptionGroup) -> Iterator[BaseException]:
    for error in group.exceptions:
        yield from _flat(error) if isinstance(error, BaseExceptionGroup) else (error,)


# -- where trainings run -------------------------------------------------------------------------------------------


def make_runner(parts: Parts, warm: WarmTrainer | None, samplers: WarmSamplers | None) -> Runner:
    """Make the runner of a Ray cluster if one is configured, else of this machine."""
    config = parts.config
    if not config.ray.address:
        return LocalRunner(command=parts.command, env=parts.environment, warm=warm, samplers=samplers)
    return RayRunner(
        config.ray, data_dir=parts.data_dir, env=config.trainer.env, stop_grace_s=config.queue.stop_grace_s
    )


async def find_slots(parts: Parts) -> list[Slot]:
    """Return one slot for each GPU of the machine or the cluster, or as many as are configured."""
    config = parts.config
    if config.ray.address:
        number = config.queue.slots or await _count_cluster_slots(config)
        # The cluster chooses the GPU when it starts a job; the device only says that there is one.
        device = "cluster:{}" if config.ray.gpus else ""
        return [
            Slot(id=f"cluster:{index}", device=device.format(index), name=f"cluster {index}")
            for index in range(1, number + 1)
        ]
    devices = await query_devices(parts.command, parts.environment)
    if devices.problem:
        log.warning("GPUs: %s", devices.problem)
    return slots_of(devices, config.queue.slots or None)


async def _count_cluster_slots(config: Config) -> int:
    try:
        return await count_cluster_slots(config.ray)
    except RunnerUnreachable as error:
        log.warning("%s One slot is assumed until the bot restarts; queue.slots sets their number.", error)
        return 1
