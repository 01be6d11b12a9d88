"""The real runner and a real warm trainer: a job is trained to its end, as after a cold start."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from bot.runners import LocalRunner, RunStatus, WarmTrainer
from tests.bot.fakes import eventually
from tests.trainer.conftest import draw_images
from tests.trainer.random_base import make_random_base
from trainer.dataset.preparing.prepare import prepare
from trainer.exchange.event_file import read_events
from trainer.exchange.job_dir import LOG_FILE, write_spec
from trainer.protocol.events import Exported, Finished
from trainer.protocol.presets import spec_from_preset
from trainer.protocol.run_options import RunOptions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
#: `-m trainer`, which notes a question about GPUs: CUDA_VISIBLE_DEVICES would have no effect after it.
_NOTES_QUESTIONS = """
import os, sys, torch
def question(): open(os.environ["QUESTIONS"], "w").close(); return False
torch.cuda.is_available = torch.cuda.device_count = torch.cuda.init = question
from trainer.__main__ import main
sys.exit(main())
"""
TRAINER = (sys.executable, "-c", _NOTES_QUESTIONS)


@pytest.fixture
def job_dir(tmp_path: Path) -> Path:
    """A job of one epoch on twelve images."""
    prepare([draw_images(tmp_path / "images")], tmp_path / "dataset", resolutions=(64,))
    base = make_random_base(tmp_path / "base")
    changes = {
        "training": {"epochs": 1, "repeats": 1},
        "method": {"targets": "attention"},
        "samples": {"steps": 1, "unrelated_prompts": []},
        "validation": {"timesteps": 2, "draws": 1},
    }
    spec = spec_from_preset("lora", dataset=str(tmp_path / "dataset"), base=str(base), changes=changes)
    write_spec(tmp_path / "job", spec)
    return tmp_path / "job"


async def test_a_warm_trainer_asks_for_no_gpus_while_it_waits_and_trains_a_job_to_its_end(job_dir: Path) -> None:
    questions = job_dir / "questions"
    warm = WarmTrainer(command=TRAINER, env={**os.environ, "QUESTIONS": str(questions)}, first_pause_s=0)
    runner = LocalRunner(command=TRAINER, warm=warm)
    keeping = asyncio.create_task(warm.run())

    await eventually(lambda: warm.is_ready, within_s=120)
    assert not questions.exists()
    pid = warm.pid
    handle = await runner.launch(RunOptions(job_id=1, attempt=1, job_dir=job_dir))
    # The training must not depend on the task that keeps trainers warm.
    keeping.cancel()

    async def is_gone() -> bool:
        return await runner.poll(handle) is RunStatus.EXITED

    await eventually(is_gone, within_s=240)
    events = [line.event for line in read_events(job_dir, 0).lines]
    assert isinstance(events[-1], Finished)
    assert any(isinstance(event, Exported) for event in events)
    assert json.loads(handle)["process"] == json.loads((job_dir / "process.json").read_bytes())
    assert json.loads(handle)["process"]["pid"] == pid
    assert "finished" in (job_dir / LOG_FILE).read_text(encoding="utf-8")
