"""The real runner and the real trainer, warmed: a job that is handed over is trained to its end, as a cold one is."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from bot.runners import Launch, LocalRunner, Status, WarmTrainer, read_events
from tests.bot.fakes import eventually
from tests.trainer.conftest import draw_pictures
from trainer.dataset.preparing.prepare import prepare
from trainer.protocol.events import Exported, Finished
from trainer.protocol.order import LOG_FILE
from trainer.protocol.presets import spec_from_preset

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
TRAINER = (sys.executable, "-m", "trainer")


@pytest.fixture
def job_dir(tmp_path: Path) -> Path:
    """A job of one epoch on twelve pictures."""
    prepare([draw_pictures(tmp_path / "pictures")], tmp_path / "dataset", resolution=64)
    changes = {"training": {"epochs": 1, "repeats": 1}, "samples": {"steps": 2}, "validation": {"draws": 1}}
    spec = spec_from_preset("lora", dataset=str(tmp_path / "dataset"), base="tiny", changes=changes)
    spec.write(tmp_path / "job")
    return tmp_path / "job"


async def test_a_job_is_trained_by_the_one_that_waited(job_dir: Path) -> None:
    warm = WarmTrainer(command=TRAINER, env=os.environ, first_pause_s=0)
    runner = LocalRunner(command=TRAINER, warm=warm)
    keeping = asyncio.create_task(warm.run())

    async def is_ready() -> bool:
        return warm.is_ready

    await eventually(is_ready, within_s=120)
    pid = warm.pid
    handle = await runner.launch(Launch(job_id=1, attempt=1, job_dir=job_dir))
    # What follows is the training's alone.
    keeping.cancel()

    async def is_gone() -> bool:
        return await runner.poll(handle) is Status.GONE

    await eventually(is_gone, within_s=240)
    events = [line.event for line in read_events(job_dir, 0).lines]
    assert isinstance(events[-1], Finished)
    assert any(isinstance(event, Exported) for event in events)
    assert json.loads(handle)["process"] == json.loads((job_dir / "process.json").read_bytes())
    assert json.loads(handle)["process"]["pid"] == pid
    assert "finished" in (job_dir / LOG_FILE).read_text(encoding="utf-8")
