"""Sample pictures of an epoch, drawn into `samples/epoch-003/` with a sheet of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from trainer.protocol.events import Phase
from trainer.protocol.report import Split
from trainer.report.gallery import draw_gallery
from trainer.tasks.examples import Examples
from trainer.tasks.task import Shown
from trainer.training.session import Session


def draw_epoch_samples(session: Session, epoch: int) -> tuple[str, dict[str, Any]]:
    """Draw the samples of an epoch, every process its share; the event that tells of them."""
    session.begin(Phase.SAMPLING)
    folder = sample_folder(session.job_dir, epoch)
    folder.mkdir(parents=True, exist_ok=True)
    shown = session.task.draw(
        shown_examples(session), folder, shard=session.processes.share, between_steps=session.check
    )
    session.processes.wait()
    sheet = folder / "sheet.png"
    if session.processes.is_main:
        draw_gallery(sheet, open_shown(shown), [each.prompt for each in shown])
    samples = [
        {"path": str(each.path.relative_to(session.job_dir)), "prompt": each.prompt, "seed": each.seed}
        for each in shown
    ]
    return "sampled", {"epoch": epoch, "samples": samples, "sheet": str(sheet.relative_to(session.job_dir))}


def shown_examples(session: Session) -> Examples:
    """The pictures whose captions are drawn where a person gave no prompts."""
    validation = session.examples[Split.VALIDATION]
    return validation if validation.images else session.examples[Split.TRAIN]


def open_shown(shown: Sequence[Shown]) -> list[Image.Image]:
    pictures = []
    for each in shown:
        with Image.open(each.path) as opened:
            pictures.append(opened.convert("RGB"))
    return pictures


def sample_folder(job_dir: Path, epoch: int) -> Path:
    return job_dir / "samples" / f"epoch-{epoch:03d}"
