"""The frozen questions put to the model: which pictures are measured, their losses, and what is kept of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from trainer.dataset.split.overlap import Member
from trainer.device import is_out_of_memory
from trainer.protocol.events import Phase, ValidationLoss
from trainer.protocol.mix import MixRole
from trainer.protocol.report import Split
from trainer.tasks.examples import Examples
from trainer.tasks.task import FrozenLoss
from trainer.training.image_history import read_history
from trainer.training.session import Session
from trainer.training.validation import (
    Triple,
    freeze_triples,
    keep_triples,
    measure,
    merge,
    picture_ratios,
    probe_images,
    summarize,
)

#: Pictures that are measured at once.
_TOGETHER = 8
HISTORY_FILE = "images.json"


class Measured(StrEnum):
    """Pictures that are measured by frozen triples."""

    VALIDATION = "validation"
    #: Some of those that are trained on: the gap to these is what was learnt by heart.
    TRAIN = "train"
    TEST = "test"

    @staticmethod
    def of(session: Session) -> tuple[Measured, ...]:
        """What is measured at the end of an epoch."""
        has_validation = bool(session.examples[Split.VALIDATION].images)
        probes = session.spec.validation.train_images > 0 and has_validation
        return (Measured.VALIDATION, Measured.TRAIN) if probes else (Measured.VALIDATION,)


def examples_of(session: Session, measured: Measured) -> Examples:
    """The pictures that triples point into. Without validation pictures (split all), training pictures stand in."""
    if measured is Measured.VALIDATION and not session.examples[Split.VALIDATION].images:
        return session.examples[Split.TRAIN]
    return session.examples[Split(measured.value)]


def triples(session: Session, measured: Measured) -> tuple[Triple, ...]:
    """The frozen triples, the same for the whole life of the job."""
    examples, settings = examples_of(session, measured), session.spec.validation
    images = _probes(session, measured) if examples is session.examples[Split.TRAIN] else None
    fresh = freeze_triples(examples.contents, settings, session.task.schedule_steps, images=images)
    path = session.job_dir / "validation" / f"{measured}-triples.json"
    return keep_triples(path, fresh) if session.processes.is_main else fresh


def _probes(session: Session, measured: Measured) -> list[int]:
    """Places of the training pictures that are measured; class pictures are no measure of what is learnt."""
    examples, settings = session.examples[Split.TRAIN], session.spec.validation
    taught = [
        place
        for place, member in enumerate(examples.members)
        if session.mixture.source_of(member).role is MixRole.TRAIN
    ]
    count = settings.train_images if measured is Measured.TRAIN else settings.max_images
    chosen = probe_images([examples.contents[place] for place in taught], count, settings.seed)
    return [taught[index] for index in chosen]


def measure_split(session: Session, measured: Measured) -> list[FrozenLoss]:
    """The losses of each frozen triple with the model as it is now, dropout off; every process takes its share."""
    session.begin(Phase.TESTING if measured is Measured.TEST else Phase.VALIDATING)
    session.task.train_mode(False)
    batch_size = _TOGETHER
    while True:
        try:
            return _measure(session, measured, batch_size)
        except Exception as error:
            if not is_out_of_memory(error) or batch_size == 1 or session.processes.count > 1:
                raise
            batch_size //= 2


def _measure(session: Session, measured: Measured, batch_size: int) -> list[FrozenLoss]:
    examples = examples_of(session, measured)
    processes = session.processes

    def losses(chunk: Sequence[Triple]) -> list[FrozenLoss]:
        return session.task.frozen_losses(
            examples,
            [triple.image for triple in chunk],
            [triple.timestep for triple in chunk],
            [triple.noise_seed for triple in chunk],
        )

    found = measure(
        triples(session, measured),
        size_of=examples.sizes,
        batch_size=batch_size,
        losses=losses,
        between_batches=session.check,
        shard=(processes.index, processes.count),
    )
    return merge(processes.gather([found]), len(triples(session, measured)))


def base_losses(session: Session, measured: Measured) -> list[FrozenLoss]:
    """The base model's losses on each frozen triple, measured once for a job; the first call is every process's."""
    if (known := session.base_losses.get(measured)) is None:
        known = session.base_losses[measured] = _base_losses(session, measured)
    return known


def _base_losses(session: Session, measured: Measured) -> list[FrozenLoss]:
    path = session.job_dir / "validation" / f"{measured}-base.json"
    kept = session.processes.agree(path.read_text(encoding="utf-8") if path.exists() else None)
    if kept is not None:
        return [FrozenLoss(plain=plain, training=training) for plain, training in json.loads(kept)]
    with session.task.base_only():
        losses = measure_split(session, measured)
    if session.processes.is_main:
        _write(path, [[loss.plain, loss.training] for loss in losses])
    return losses


def summarize_split(session: Session, measured: Measured, losses: Sequence[FrozenLoss]) -> ValidationLoss:
    """Per band and as a ratio to the base model."""
    steps = session.task.schedule_steps
    return summarize(
        triples(session, measured),
        losses,
        base_losses(session, measured),
        bands=session.spec.validation.timesteps,
        schedule_steps=steps,
        groups=[group_of(member, place) for place, member in enumerate(examples_of(session, measured).members)],
    )


def group_of(member: Member, place: int) -> tuple[int, int]:
    """Pictures of one group show the same, and are one observation; those of no group stand for themselves."""
    return (member.source, -1 - place if member.image.group is None else member.image.group)


def keep_losses(session: Session, epoch: int, losses: Mapping[Measured, Sequence[FrozenLoss]]) -> None:
    """Write the plain loss of each triple to `validation/epoch-003.json`, for whoever compares runs."""
    if session.processes.is_main:
        content = {measured.value: [loss.plain for loss in each] for measured, each in losses.items()}
        _write(session.job_dir / "validation" / f"epoch-{epoch:03d}.json", content)


def keep_history(session: Session, epoch: int, losses: Mapping[Measured, Sequence[FrozenLoss]]) -> None:
    """Add each measured picture's ratio to `validation/images.json`."""
    if not session.processes.is_main:
        return
    path = session.job_dir / "validation" / HISTORY_FILE
    history = read_history(path)
    for measured, each in losses.items():
        examples = examples_of(session, measured)
        ratios = picture_ratios(
            triples(session, measured),
            each,
            base_losses(session, measured),
            bands=session.spec.validation.timesteps,
            schedule_steps=session.task.schedule_steps,
        )
        split = Split.TRAIN if examples is session.examples[Split.TRAIN] else Split.VALIDATION
        by_content = {examples.contents[place]: ratio for place, ratio in ratios.items()}
        names = {examples.contents[place]: examples.images[place].source for place in ratios}
        history = history.after(epoch, split, by_content, names)
    history.write(path)


def _write(path: Path, content: object) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content), encoding="utf-8")
    part.replace(path)
