"""Runs the demo: simulates Discord, lets Ana upload her dataset, and shows the channel on a page or as text."""

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
from bot.cogs.attachments import read_attachment
from bot.config import CardSettings, Config, HealthSettings, ModelSettings, QueueSettings, StorageSettings
from bot.demo.simulation import Simulation, accept_late_presses, simulate
from bot.demo.transcript import Transcript, texts
from bot.errors import DarkroomError
from bot.log import setup_logging
from bot.queue import Job, State, StopIntent
from trainer.protocol.settings import TINY

_TICK_S = 1.0
#: At the end of the demo a stopped training finishes its step first.
_STOP_S = 20
_MOMO = "momo.zip"
_ABOUT_MOMO = {
    "trigger": "momo",
    # The last one shows what the training does to the rest of the model.
    "prompts": "momo on a yellow background | momo on a white background | a big momo on a blue background | "
    "a red star on a blue background",
}
_BLUEPRINT = "blueprint.zip"
_NEXT = """While momo trains: here is a second set, **blueprint**. Things that our little model knows, as blueprints.
• `/dataset inspect dataset:blueprint` shows what was found in it: one drawing is out of focus, one too small, …
• `/finetune from_dataset:blueprint base:tiny preset:demo trigger:blueprint` teaches the style, in about two minutes.
• Once momo is done, press **Try prompts** on its result, or let `/study compare` try several learning rates.
• Images of your own work too: `/finetune` with a zip. This toy model draws at 64 px, so expect simple shapes.
• `/help` has the rest."""
_HELLO = "Meet momo, our new mascot: here are its images, with captions. Let's teach it to our little model!"


def run_demo(*, data: Path, dataset: Path | None, port: int, is_headless: bool) -> int:
    """Return exit status 0 if Ana's job succeeded (with a page: once the page is left).

    Raises:
        DarkroomError: The dataset cannot be read.
    """
    setup_logging(logging.WARNING)
    archive = _archive(dataset)
    config = demo_config(data / time.strftime("%Y%m%d-%H%M%S"))
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
async def _opened(config: Config) -> AsyncIterator[tuple[App, Simulation]]:
    async with compose(config, download=read_attachment) as app, simulate(app.new_client()) as simulation:
        try:
            yield app, simulation
        finally:
            # The real bot leaves trainings running when it stops; a demo leaves nothing behind.
            await _stop_all(app, simulation)


async def _headless(config: Config, archive: tuple[str, bytes]) -> int:
    say("Darkroom demo: the real bot and the real trainer, in a simulated Discord. This is #lab:\n")
    async with _opened(config) as (app, simulation):
        transcript = _transcript(simulation)
        printing = asyncio.create_task(_print_channel(simulation, transcript))
        try:
            job = await _run_script(app, simulation, archive)
            if job is None:
                return 1
            job = await _wait_until_reported(app, job.id)
        finally:
            printing.cancel()
            await asyncio.gather(printing, return_exceptions=True)
            _print_new(simulation, transcript)
        _print_files(app, job)
        return 0 if job.state is State.SUCCEEDED else 1


async def _page(config: Config, archive: tuple[str, bytes], port: int) -> int:
    async with _opened(config) as (app, simulation):
        # Before the page opens: while a user acts, a page can do nothing.
        await _run_script(app, simulation, archive)
        preview = simulation.env.preview(
            simulation.channel, viewers=[simulation.ana, simulation.ben], layout="channel", port=port
        )
        async with preview as page:
            accept_late_presses(simulation.env, page)
            say(f"\n  Darkroom demo: open this page; Ctrl+C ends it\n\n    {page.url}\n")
            say("  You are Ana: press the buttons, or type /finetune and attach a zip of your own images.")
            say(f"  All files are in {config.storage.data_dir.resolve()}\n")
            refreshing = asyncio.create_task(_refresh(simulation, page))
            try:
                await _offer_more(simulation)
                await page.wait_closed()
            finally:
                refreshing.cancel()
                await asyncio.gather(refreshing, return_exceptions=True)
    return 0


async def _run_script(app: App, simulation: Simulation, archive: tuple[str, bytes]) -> Job | None:
    """Run Ana's script; None if her dataset was refused."""
    await simulation.ana.send(simulation.channel, _HELLO)
    options = {"preset": "demo", "base": "tiny", **(_ABOUT_MOMO if archive[0] == _MOMO else {})}
    typed = " ".join(f"{name}:{value}" for name, value in options.items())
    say(f"{time.strftime('%H:%M:%S')}  Ana\n  /finetune dataset:{archive[0]} {typed}\n")
    result = await simulation.ana.slash(simulation.channel, "finetune", dataset=archive, **options, confirm=False)
    jobs = await app.services.jobs.recent(simulation.channel.guild.id, limit=1)
    if not jobs:
        answer = "\n".join(texts(result.response.message.components)) if result.response else "no answer"
        say(f"Ana's dataset was refused: {answer}")
    return jobs[0] if jobs else None


async def _offer_more(simulation: Simulation) -> None:
    """Let Ben upload a second dataset, and say what to try."""
    form = await simulation.ben.slash(simulation.channel, "dataset upload")
    await simulation.ben.submit_modal(form, {"files": [_shipped(_BLUEPRINT)], "name": "blueprint"})
    await simulation.ben.send(simulation.channel, _NEXT)


async def _refresh(simulation: Simulation, page: Any) -> None:
    """Refresh the page when the channel changes."""
    shown = None
    while True:
        await asyncio.sleep(_TICK_S)
        await simulation.advance_clock()
        version = simulation.version()
        if version != shown:
            # SetupError: a user is pressing a button right now.
            with contextlib.suppress(SetupError):
                await page.refresh()
                shown = version


async def _print_channel(simulation: Simulation, transcript: Transcript) -> None:
    while True:
        _print_new(simulation, transcript)
        await asyncio.sleep(_TICK_S)
        await simulation.advance_clock()


def _print_new(simulation: Simulation, transcript: Transcript) -> None:
    for entry in transcript.new_entries(simulation.messages()):
        say(f"{time.strftime('%H:%M:%S')}  {entry}\n")


async def _wait_until_reported(app: App, job_id: int) -> Job:
    """Return the job once it has ended and its messages are sent."""
    while True:
        job = await app.services.jobs.get(job_id)
        if job.state.is_end and not await app.outbox.depth():
            return job
        await asyncio.sleep(_TICK_S / 2)


async def _stop_all(app: App, simulation: Simulation) -> None:
    guild_id = simulation.channel.guild.id
    active = await app.services.jobs.living(guild_id)
    for job in active:
        await app.services.jobs.request_stop(job.id, by=simulation.ben.id, intent=StopIntent.CANCEL)
    if not active:
        return
    say(f"Stopping {len(active)} of the demo's trainings …")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_STOP_S):
            while await app.services.jobs.living(guild_id):  # noqa: ASYNC110 - the dispatcher sets no event for us.
                await asyncio.sleep(0.2)


def _print_files(app: App, job: Job) -> None:
    folder = app.services.jobs.job_dir(job)
    say(f"#{job.id} {job.name}: {job.state}. Its files are in {folder}")
    for path in sorted((folder / "output").glob("*")):
        say(f"  {path.relative_to(folder)}  {path.stat().st_size:,} bytes")
    if job.state is not State.SUCCEEDED:
        say(f"  the trainer's log: {folder / 'trainer.log'}")


def _transcript(simulation: Simulation) -> Transcript:
    return Transcript(
        {simulation.ana.id: "Ana", simulation.ben.id: "Ben", simulation.env.backend.bot_user.id: "Darkroom"}
    )


def _archive(dataset: Path | None) -> tuple[str, bytes]:
    try:
        if dataset is not None:
            return dataset.name, dataset.read_bytes()
        return _shipped(_MOMO)
    except OSError as error:
        raise DarkroomError(f"The demo's dataset cannot be read: {error}. Name one with --dataset ZIP.") from error


def _shipped(name: str) -> tuple[str, bytes]:
    return name, (resources.files("bot.demo") / name).read_bytes()


def demo_config(data_dir: Path) -> Config:
    return Config(
        storage=StorageSettings(data_dir=data_dir),
        # A simulated Discord has no rate limit.
        cards=CardSettings(edit_interval_s=1.0, epoch_interval_s=5.0),
        queue=QueueSettings(poll_s=0.3, retry_pause_s=1.0),
        health=HealthSettings(min_free_gib=0.5),
        # Only here: the toy model is what the demo shows.
        models=ModelSettings(default=TINY),
    )
