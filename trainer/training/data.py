"""What a job tells of its data before it trains: warnings, how often pictures are seen, variants beside originals."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from trainer.dataset.split.mixing import overlap_in_words, seen_as_table, seen_in_words, seen_per_epoch
from trainer.protocol.checks import doubtful_settings, idle_settings
from trainer.protocol.events import Warned
from trainer.protocol.report import Split
from trainer.tasks.preview import draw_preview
from trainer.training.session import Session


def say_warnings(session: Session) -> None:
    """Settings that do nothing or are seldom meant, and pictures that were left out because another dataset measures
    with them."""
    for sentence in idle_settings(session.spec):
        session.reporter.say(Warned, kind="idle_setting", message=sentence)
    for sentence in doubtful_settings(session.spec):
        session.reporter.say(Warned, kind="doubtful_setting", message=sentence)
    model = session.spec.samples.similarity_model
    if model is not None and not Path(model).expanduser().is_dir():
        message = f"There is no folder {model} (samples.similarity_model): likeness will not be measured at the end."
        session.reporter.say(Warned, kind="no_similarity_model", message=message)
    if (overlap := overlap_in_words(session.mixture)) is not None:
        session.reporter.say(Warned, kind="mix_overlap", message=overlap)


def write_seen(session: Session) -> str:
    """Write `data.json` and `data.md`, how often the pictures of each dataset are seen in the first stage; the same as
    a sentence."""
    rows = seen_per_epoch(session.mixture, session.repeats(session.stages[0]))
    if not session.processes.is_main:
        return seen_in_words(rows)
    content = [{**asdict(row), "per_picture": row.per_picture} for row in rows]
    for name, text in (("data.json", json.dumps(content, indent=1) + "\n"), ("data.md", seen_as_table(rows))):
        part = session.job_dir / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(session.job_dir / name)
    return seen_in_words(rows)


def draw_augmentation(session: Session) -> str | None:
    """Draw `charts/augmentation.png`, unless an earlier run did; its path in the job folder, None if that is off."""
    if not session.spec.augmentation.is_on:
        return None
    path = session.job_dir / "charts" / "augmentation.png"
    if session.processes.is_main and not path.exists():
        examples = session.examples[Split.TRAIN]
        shown = [place for place, member in enumerate(examples.members) if member.source == 0]
        draw_preview(
            session.mixture.sources[0].folder,
            [examples.images[place] for place in shown],
            [examples.sizes[place] for place in shown],
            session.spec.augmentation,
            session.spec.training.seed,
            path,
        )
    return str(path.relative_to(session.job_dir))
