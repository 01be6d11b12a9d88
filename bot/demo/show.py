"""Runs the demo: sets the stage, lets Ana drop her dataset, and shows the channel on a page or as text."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import AsyncIterator
from importlib import resources
from pathlib import Path
from typing import Any

from simcord.backend.errors import SetupError

from bot.app.compose import App, compose
from bot.cogs.downloads import read_whole
from bot.config import CardSettings, Config, HealthSettings, QueueSettings, StorageSettings
from bot.demo.patience import be_patient
from bot.demo.stage import Stage, set_stage
from bot.demo.transcript import Transcript, texts
from bot.errors import DarkroomError
from bot.log import setup_logging
from bot.queue import Job, State, StopIntent
from trainer.protocol.presets import presets

_TICK_S = 1.0
#: A training that was told to stop as the demo ends finishes its step first.
_STOP_S = 20
_MOMO = "momo.zip"
_HELLO = "Meet momo, our new mascot: here are its pictures, with captions. Let's teach it to our little model!"


def run_demo(*, data: Path, dataset: Path | None, port: int, is_headless: bool) -> int:
    """Exit status 0 if Ana's job succeeded (with a page: once the page was left).

    Raises:
        DarkroomError: there is no dataset to show.
    """
    setup_logging(logging.WARNING)
    archive = _archive(dataset)
    config = _config(data / time.strftime("%Y%m%d-%H%M%S"))
    show = _headless(config, archive) if is_headless else _page(config, archive, port)
    try:
        return asyncio.run(show)
    except KeyboardInterrupt:
        say("\nThe demo is over.")
        return 0


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextlib.asynccontextmanager
async def _opened(config: Config) -> AsyncIterator[tuple[App, Stage]]:
    async with compose(config, download=read_whole) as app, set_stage(app.new_client()) as stage:
        try:
            yield app, stage
        finally:
            # The real bot leaves trainings alone when it goes; a demo leaves nothing behind.
            await _stop_all(app, stage)


async def _headless(config: Config, archive: tuple[str, bytes]) -> int:
    say("Darkroom demo: the real bot and the real trainer, in a simulated Discord. This is #lab:\n")
    async with _opened(config) as (app, stage):
        transcript = _transcript(stage)
        telling = asyncio.create_task(_tell(stage, transcript))
        try:
            job = await _perform(app, stage, archive)
            if job is None:
                return 1
            job = await _until_told(app, job.id)
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
            _print_news(stage, transcript)
        _say_where(app, job)
        return 0 if job.state is State.SUCCEEDED else 1


async def _page(config: Config, archive: tuple[str, bytes], port: int) -> int:
    async with _opened(config) as (app, stage):
        # Before the page opens: while somebody acts, a page can do nothing.
        await _perform(app, stage, archive)
        preview = stage.env.preview(stage.channel, viewers=[stage.ana, stage.ben], layout="channel", port=port)
        async with preview as page:
            be_patient(stage.env, page)
            say(f"\n  Darkroom demo: open this page, and leave with Ctrl+C\n\n    {page.url}\n")
            say("  You are Ana. Press the buttons, or run /finetune with a zip of pictures of your own.")
            say(f"  Everything is kept in {config.storage.data_dir.resolve()}\n")
            refreshing = asyncio.create_task(_refresh(stage, page))
            try:
                await page.wait_closed()
            finally:
                refreshing.cancel()
                await asyncio.gather(refreshing, return_exceptions=True)
    return 0


async def _perform(app: App, stage: Stage, archive: tuple[str, bytes]) -> Job | None:
    """Ana's script; None if her dataset was refused."""
    await stage.ana.send(stage.channel, _HELLO)
    preset = "demo" if "demo" in presets() else next(iter(presets()))
    say(f"{time.strftime('%H:%M:%S')}  Ana\n  /finetune dataset:{archive[0]} preset:{preset} base:tiny\n")
    result = await stage.ana.slash(
        stage.channel, "finetune", dataset=archive, preset=preset, base="tiny", confirm=False
    )
    jobs = await app.services.jobs.recent(stage.channel.guild.id, limit=1)
    if not jobs:
        told = "\n".join(texts(result.response.message.components)) if result.response else "no answer"
        say(f"Ana's dataset was refused: {told}")
    return jobs[0] if jobs else None


async def _refresh(stage: Stage, page: Any) -> None:
    """The page follows the channel."""
    shown = None
    while True:
        await asyncio.sleep(_TICK_S)
        await stage.keep_time()
        version = stage.version()
        if version != shown:
            # SetupError: somebody is pressing a button at this very moment.
            with contextlib.suppress(SetupError):
                await page.refresh()
                shown = version


async def _tell(stage: Stage, transcript: Transcript) -> None:
    while True:
        _print_news(stage, transcript)
        await asyncio.sleep(_TICK_S)
        await stage.keep_time()


def _print_news(stage: Stage, transcript: Transcript) -> None:
    for entry in transcript.news(stage.messages()):
        say(f"{time.strftime('%H:%M:%S')}  {entry}\n")


async def _until_told(app: App, job_id: int) -> Job:
    """The job once it has ended and the channel knows."""
    while True:
        job = await app.services.jobs.get(job_id)
        if job.state.is_end and not await app.outbox.depth():
            return job
        await asyncio.sleep(_TICK_S / 2)


async def _stop_all(app: App, stage: Stage) -> None:
    guild_id = stage.channel.guild.id
    active = await app.services.jobs.active(guild_id)
    for job in active:
        await app.services.jobs.request_stop(job.id, by=stage.ben.id, intent=StopIntent.CANCEL)
    if not active:
        return
    say(f"Stopping {len(active)} of the demo's trainings …")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_STOP_S):
            while await app.services.jobs.active(guild_id):  # noqa: ASYNC110 - the dispatcher sets no event for us.
                await asyncio.sleep(0.2)


def _say_where(app: App, job: Job) -> None:
    folder = app.services.jobs.job_dir(job)
    say(f"#{job.id} {job.name}: {job.state}. Its files are in {folder}")
    for path in sorted((folder / "output").glob("*")):
        say(f"  {path.relative_to(folder)}  {path.stat().st_size:,} bytes")
    if job.state is not State.SUCCEEDED:
        say(f"  what the trainer said last: {folder / 'trainer.log'}")


def _transcript(stage: Stage) -> Transcript:
    return Transcript({stage.ana.id: "Ana", stage.ben.id: "Ben", stage.env.backend.bot_user.id: "Darkroom"})


def _archive(dataset: Path | None) -> tuple[str, bytes]:
    try:
        if dataset is not None:
            return dataset.name, dataset.read_bytes()
        return _MOMO, (resources.files("bot.demo") / _MOMO).read_bytes()
    except OSError as error:
        raise DarkroomError(f"The demo's dataset cannot be read: {error}. Name one with --dataset ZIP.") from error


def _config(data_dir: Path) -> Config:
    return Config(
        storage=StorageSettings(data_dir=data_dir),
        # Nobody limits the rate of a simulated Discord.
        cards=CardSettings(edit_interval_s=1.0),
        queue=QueueSettings(poll_s=0.3, retry_pause_s=1.0),
        health=HealthSettings(min_free_gib=0.5),
    )
