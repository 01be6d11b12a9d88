"""`/sample` with the real trainer: a training of the toy model, then a grid of its epochs, and a second one at once."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import simcord

from bot.app.compose import compose
from bot.cogs.attachments import read_attachment
from bot.config import Config
from bot.queue import Job, State
from tests.bot.cogs.conftest import World, answer, config_for, kill_trainers, populate, text_of
from tests.trainer.conftest import draw_images
from tests.trainer.fork_server import QUICK_CHARTS_VARIABLE, ForkServer
from trainer.exchange.event_file import read_events
from trainer.protocol.events import ImageDrawn, SamplingStarted

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: Two epochs that are both kept, and little else.
SETTINGS: dict[str, dict[str, Any]] = {
    "training": {"epochs": 2, "keep_every_epochs": 1, "repeats": 1},
    "method": {"targets": "attention"},
    "samples": {"steps": 1, "prompts": ["a red egg"], "unrelated_prompts": [], "every_epochs": 9},
    "validation": {"timesteps": 2, "draws": 1},
    "early_stopping": {"enabled": False},
}


def toml() -> bytes:
    return "\n".join(
        f"[{group}]\n" + "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items())
        for group, values in SETTINGS.items()
    ).encode()


def images(folder: Path) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(draw_images(folder).iterdir()):
            archive.write(path, path.name)
    return packed.getvalue()


async def until_ended(lab: World, job_id: int) -> Job:
    while not (job := await lab.jobs.get(job_id)).state.is_end:  # noqa: ASYNC110 - no event is set.
        await asyncio.sleep(0.1)
    return job


def card_texts(lab: World, job_id: int) -> list[str]:
    return [text for text in map(text_of, lab.messages()) if text.startswith("### ") and f"#{job_id} " in text[:20]]


def config_of(data_dir: Path, server: ForkServer) -> Config:
    """Processes that wait for jobs need the configured command, which is a fork without its imports."""
    config = config_for(data_dir)
    python = server.write_script(data_dir.with_name("trainer"))
    return config.model_copy(update={"trainer": config.trainer.model_copy(update={"python": str(python)})})


async def test_a_grid_of_epochs_strengths_and_prompts_has_one_progress_bar(
    tmp_path: Path, fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(QUICK_CHARTS_VARIABLE, "1")
    data_dir = tmp_path / "data"
    try:
        async with (
            compose(config_of(data_dir, fork_server), download=read_attachment) as app,
            simcord.run(app.new_client(), settle_timeout=60) as env,
        ):
            lab = populate(app, env)
            dataset: Any = ("eggs.zip", images(tmp_path / "images"))
            settings: Any = ("settings.toml", toml())
            asked = await lab.ana.slash(
                lab.channel, "finetune", dataset=dataset, settings=settings, base="tiny", name="egg", confirm=False
            )
            assert "Queued #1" in answer(asked)
            assert (await until_ended(lab, 1)).state is State.SUCCEEDED, lab.texts()

            asked = await lab.ben.slash(
                lab.channel,
                "sample",
                job="egg",
                prompts="a red egg | a green circle",
                epochs="1-2",
                strengths="0, 0.7, 1.2",
                seeds="7",
                steps=2,
            )
            assert "#2: 12 images of “egg”" in answer(asked)
            shown: set[str] = set()
            while not (await lab.jobs.get(2)).state.is_end:
                shown.update(card_texts(lab, 2))
                await asyncio.sleep(0.05)
            job = await lab.jobs.get(2)
            await lab.until_sent()

            assert (job.state, job.progress.drawn, job.attempt) == (State.SUCCEEDED, 12, 1), job
            assert any("of 12" in text for text in shown), "the card shows how far it is"
            assert all(text.count(" %") <= 1 for text in shown), "in one bar"
            [card] = card_texts(lab, 2)
            assert "12 images" in card
            folder = lab.jobs.job_dir(job)
            events = [line.event for line in read_events(folder, 0).lines]
            assert sorted(event.cell for event in events if isinstance(event, ImageDrawn)) == list(range(12))
            assert all((folder / cell.path).is_file() for cell in job.sampling.cells)

            # The base is still loaded.
            asked = await lab.ana.slash(lab.channel, "sample", job="egg", prompts="a red egg", steps=2)
            assert "#3: 1 image" in answer(asked)
            again = await until_ended(lab, 3)
            assert again.state is State.SUCCEEDED
            [began] = [
                line.event
                for line in read_events(lab.jobs.job_dir(again), 0).lines
                if isinstance(line.event, SamplingStarted)
            ]
            assert began.was_warm
    finally:
        kill_trainers(data_dir)
