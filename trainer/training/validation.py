"""The validation loss on frozen (image, timestep, noise) triples, which never change within a job.

Triples are chosen once, by seed, and written to `validation/…-triples.json`. Each has its own noise seed, so neither
batch size nor order nor device changes what is measured. A plain mean over timesteps would be dominated by those with
the largest loss, so early stopping uses the mean over bands of timesteps of loss / base model's loss (docs/adr/0003).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from enum import StrEnum
from math import isfinite
from pathlib import Path

from trainer.dataset.seeds import derive_seed
from trainer.device import is_out_of_memory
from trainer.exchange.files import write_text
from trainer.protocol.events import BandLoss, Phase, ValidationLoss
from trainer.protocol.frozen import Frozen
from trainer.protocol.report import Split
from trainer.protocol.settings import MixRole, Validation
from trainer.tasks.examples import Examples
from trainer.tasks.task import FrozenLoss
from trainer.training.batches import chunks
from trainer.training.image_history import read_history
from trainer.training.intervals import PairedLosses, jackknife_interval, mean_band_ratio, pair_losses, unit_ratios
from trainer.training.session import Session

#: Images that are measured at once; halved if memory runs out.
_BATCH_SIZE = 8
HISTORY_FILE = "images.json"


# -- triples ----------------------------------------------------------------------------------------------------------


class Triple(Frozen):
    """One frozen (image, timestep, noise) of the validation."""

    #: Index of the image in its split, and the hash of its pixels.
    image: int
    pixels_sha256: str
    timestep: int
    noise_seed: int


def choose_probes(pixels_sha256: Sequence[str], count: int, seed: int) -> tuple[int, ...]:
    """Choose up to `count` images by hash, so that adding or removing others hardly changes the choice.

    Returns their indices, sorted.
    """
    by_hash = sorted(range(len(pixels_sha256)), key=lambda i: derive_seed("pick", seed, pixels_sha256[i]))
    return tuple(sorted(by_hash[:count]))


def freeze_triples(
    pixels_sha256: Sequence[str], settings: Validation, schedule_steps: int, *, images: Sequence[int] | None = None
) -> tuple[Triple, ...]:
    """Create the triples of a split, ordered by image.

    Timesteps and noise follow from the image's hash, so they stay the same when other images are added or removed.
    Within a band each image has timesteps of its own, so that together they cover the band.

    Args:
        schedule_steps: Number of timesteps; 1 if the task has no noise, then each image has a single triple.
        images: Indices of the images to use; None: up to `settings.max_images`, chosen by hash.
    """
    chosen = choose_probes(pixels_sha256, settings.max_images, settings.seed) if images is None else images
    bands = band_count(settings, schedule_steps)
    draws = 1 if schedule_steps == 1 else settings.draws
    width = schedule_steps / bands
    triples = []
    for image in chosen:
        for band in range(bands):
            for draw in range(draws):
                seed = derive_seed("triple", settings.seed, pixels_sha256[image], band, draw)
                # Draws are spaced evenly within the band, from an offset that differs between images.
                offset = (draw + (seed % 1024) / 1024) / draws
                triples.append(
                    Triple(
                        image=image,
                        pixels_sha256=pixels_sha256[image],
                        timestep=min(schedule_steps - 1, int((band + offset) * width)),
                        noise_seed=seed,
                    )
                )
    return tuple(triples)


def band_count(settings: Validation, schedule_steps: int) -> int:
    """Return the number of bands of timesteps; 1 if the task has no noise."""
    return min(settings.timesteps, schedule_steps)


def load_or_write_triples(path: Path, triples: Sequence[Triple]) -> tuple[Triple, ...]:
    """Return the triples in the file if there is one, else write `triples`; they never change within a job."""
    if path.exists():
        return tuple(Triple.model_validate(item) for item in json.loads(path.read_text(encoding="utf-8")))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "[\n" + ",\n".join(triple.model_dump_json() for triple in triples) + "\n]\n")
    return tuple(triples)


# -- losses -----------------------------------------------------------------------------------------------------------


def measure_losses(
    triples: Sequence[Triple],
    *,
    size_of: Mapping[int, Hashable] | Sequence[Hashable],
    batch_size: int,
    losses: Callable[[Sequence[Triple]], list[FrozenLoss]],
    shard: slice = slice(None),
) -> dict[int, FrozenLoss]:
    """Measure the triples in batches of images of one size; return the losses by index of the triple.

    Args:
        losses: Measures one batch.
        shard: The batches that this process measures; see `merge_shards`.
    """
    by_size: dict[Hashable, list[int]] = defaultdict(list)
    for index, triple in enumerate(triples):
        by_size[size_of[triple.image]].append(index)
    batches = [chunk for indices in by_size.values() for chunk in chunks(indices, batch_size)]
    measured: dict[int, FrozenLoss] = {}
    for batch in batches[shard]:
        measured.update(zip(batch, losses([triples[index] for index in batch]), strict=True))
    return measured


def merge_shards(shards: Iterable[Mapping[int, FrozenLoss]], count: int) -> list[FrozenLoss]:
    """Merge what the processes measured into the losses of all `count` triples, in order."""
    merged = {index: loss for shard in shards for index, loss in shard.items()}
    assert len(merged) == count, f"{count} triples, but {len(merged)} were measured"
    return [merged[index] for index in range(count)]


def summarize_losses(
    triples: Sequence[Triple],
    measured: Sequence[FrozenLoss],
    base: Sequence[FrozenLoss],
    bands: int,
    schedule_steps: int,
    *,
    groups: Sequence[Hashable] | None = None,
) -> ValidationLoss:
    """Summarize the losses per band and in total, as ratios to the base model's, with a confidence interval.

    Args:
        groups: The group of each image of the split. Near duplicates share a group and count as one observation.
    """
    bands = min(bands, schedule_steps)
    losses = _pair(triples, measured, base, bands, schedule_steps, groups)
    counts = Counter(_band(triple, bands, schedule_steps) for triple in triples)
    totals, base_totals = losses.model.sum(axis=0), losses.base.sum(axis=0)
    width = schedule_steps / bands
    summaries = tuple(
        BandLoss(
            first_timestep=int(band * width),
            last_timestep=int((band + 1) * width) - 1,
            loss=float(total / count),
            ratio=float(total / base_total),
        )
        for (band, count), total, base_total in zip(sorted(counts.items()), totals, base_totals, strict=True)
    )
    ratio = mean_band_ratio(losses)
    interval = jackknife_interval(losses) if isfinite(ratio) else None
    return ValidationLoss(
        loss=_mean([loss.plain for loss in measured]),
        ratio=ratio,
        bands=summaries,
        training_loss=_mean([loss.training for loss in measured]),
        ratio_low=interval.low if interval else None,
        ratio_high=interval.high if interval else None,
    )


def image_ratios(
    triples: Sequence[Triple],
    measured: Sequence[FrozenLoss],
    base: Sequence[FrozenLoss],
    bands: int,
    schedule_steps: int,
) -> dict[int, float]:
    """Return the ratio of each image, by its index in the split."""
    losses = _pair(triples, measured, base, min(bands, schedule_steps), schedule_steps, None)
    images = dict.fromkeys(triple.image for triple in triples)
    return dict(zip(images, unit_ratios(losses), strict=True))


def _pair(
    triples: Sequence[Triple],
    model: Sequence[FrozenLoss],
    base: Sequence[FrozenLoss],
    bands: int,
    schedule_steps: int,
    groups: Sequence[Hashable] | None,
) -> PairedLosses:
    return pair_losses(
        units=[triple.image if groups is None else groups[triple.image] for triple in triples],
        bands=[_band(triple, bands, schedule_steps) for triple in triples],
        model=[loss.plain for loss in model],
        base=[loss.plain for loss in base],
    )


def _band(triple: Triple, bands: int, schedule_steps: int) -> int:
    return min(bands - 1, int(triple.timestep * bands / schedule_steps))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# -- evaluation sets of a session -------------------------------------------------------------------------------------


class EvalSet(StrEnum):
    """A set of images that is evaluated on frozen triples."""

    VALIDATION = "validation"
    #: A sample of the training images; the gap to the validation ratio shows overfitting.
    TRAIN = "train"
    TEST = "test"


def epoch_eval_sets(session: Session) -> tuple[EvalSet, ...]:
    """Return what is evaluated at the end of an epoch."""
    has_validation = bool(session.examples[Split.VALIDATION].images)
    has_probes = session.spec.validation.train_images > 0 and has_validation
    return (EvalSet.VALIDATION, EvalSet.TRAIN) if has_probes else (EvalSet.VALIDATION,)


def eval_examples(session: Session, eval_set: EvalSet) -> Examples:
    """Return the images that the triples refer to; training images if the validation split is empty (split `all`)."""
    if eval_set is EvalSet.VALIDATION and not session.examples[Split.VALIDATION].images:
        return session.examples[Split.TRAIN]
    return session.examples[Split(eval_set.value)]


def frozen_triples(session: Session, eval_set: EvalSet) -> tuple[Triple, ...]:
    """Return the triples of an evaluation set, the same for the whole life of the job."""
    examples, settings = eval_examples(session, eval_set), session.spec.validation
    images = _train_probes(session, eval_set) if examples is session.examples[Split.TRAIN] else None
    triples = freeze_triples(examples.contents, settings, session.task.schedule_steps, images=images)
    path = session.job_dir / "validation" / f"{eval_set}-triples.json"
    return load_or_write_triples(path, triples) if session.processes.is_main else triples


def _train_probes(session: Session, eval_set: EvalSet) -> list[int]:
    """Choose training images to evaluate; not class images, which say nothing about what is learned."""
    examples, settings = session.examples[Split.TRAIN], session.spec.validation
    candidates = [
        index
        for index, member in enumerate(examples.members)
        if session.mixture.source_of(member).role is MixRole.TRAIN
    ]
    count = settings.train_images if eval_set is EvalSet.TRAIN else settings.max_images
    chosen = choose_probes([examples.contents[index] for index in candidates], count, settings.seed)
    return [candidates[index] for index in chosen]


def evaluate(session: Session, eval_set: EvalSet) -> list[FrozenLoss]:
    """Measure the current model on the triples of a set, without dropout; the ranks share the work."""
    session.begin_phase(Phase.TESTING if eval_set is EvalSet.TEST else Phase.VALIDATING)
    session.task.train_mode(False)
    batch_size = _BATCH_SIZE
    while True:
        try:
            return _evaluate(session, eval_set, batch_size)
        except Exception as error:
            # With several processes, the others would wait in the gather for one that starts again.
            if not is_out_of_memory(error) or batch_size == 1 or session.processes.count > 1:
                raise
            batch_size //= 2


def _evaluate(session: Session, eval_set: EvalSet, batch_size: int) -> list[FrozenLoss]:
    examples, triples = eval_examples(session, eval_set), frozen_triples(session, eval_set)
    own = len(triples[session.processes.shard])
    done = 0

    def losses(batch: Sequence[Triple]) -> list[FrozenLoss]:
        nonlocal done
        session.count(done, own)
        done += len(batch)
        return session.task.frozen_losses(
            examples,
            [triple.image for triple in batch],
            [triple.timestep for triple in batch],
            [triple.noise_seed for triple in batch],
        )

    measured = measure_losses(
        triples,
        size_of=examples.sizes,
        batch_size=batch_size,
        losses=losses,
        shard=session.processes.shard,
    )
    return merge_shards(session.processes.gather([measured]), len(triples))


def base_losses(session: Session, eval_set: EvalSet) -> list[FrozenLoss]:
    """Return the base model's losses, measured once per job. Every rank must make the first call for a set."""
    if (known := session.base_losses.get(eval_set)) is None:
        known = session.base_losses[eval_set] = _load_or_measure_base(session, eval_set)
    return known


def _load_or_measure_base(session: Session, eval_set: EvalSet) -> list[FrozenLoss]:
    path = session.job_dir / "validation" / f"{eval_set}-base.json"
    stored = session.processes.broadcast(path.read_text(encoding="utf-8") if path.exists() else None)
    if stored is not None:
        return [FrozenLoss(plain=plain, training=training) for plain, training in json.loads(stored)]
    with session.task.base_only():
        losses = evaluate(session, eval_set)
    if session.processes.is_main:
        write_text(path, json.dumps([[loss.plain, loss.training] for loss in losses]))
    return losses


def summarize_evaluation(session: Session, eval_set: EvalSet, losses: Sequence[FrozenLoss]) -> ValidationLoss:
    """Summarize the losses of an evaluation as ratios to the base model's."""
    members = eval_examples(session, eval_set).members
    return summarize_losses(
        frozen_triples(session, eval_set),
        losses,
        base_losses(session, eval_set),
        bands=session.spec.validation.timesteps,
        schedule_steps=session.task.schedule_steps,
        # An image without a group is a group of its own.
        groups=[
            (member.source, -1 - index if member.image.group is None else member.image.group)
            for index, member in enumerate(members)
        ],
    )


def write_losses(job_dir: Path, epoch: int, losses: Mapping[EvalSet, Sequence[FrozenLoss]]) -> None:
    """Write the plain loss of each triple to `validation/epoch-003.json`, from which studies compare runs."""
    content = {eval_set.value: [loss.plain for loss in each] for eval_set, each in losses.items()}
    write_text(job_dir / "validation" / f"epoch-{epoch:03d}.json", json.dumps(content))


def update_image_history(session: Session, epoch: int, losses: Mapping[EvalSet, Sequence[FrozenLoss]]) -> None:
    """Add the ratio of each evaluated image to `validation/images.json`."""
    path = session.job_dir / "validation" / HISTORY_FILE
    history = read_history(path)
    for eval_set, each in losses.items():
        examples = eval_examples(session, eval_set)
        ratios = image_ratios(
            frozen_triples(session, eval_set),
            each,
            base_losses(session, eval_set),
            bands=session.spec.validation.timesteps,
            schedule_steps=session.task.schedule_steps,
        )
        split = Split.TRAIN if examples is session.examples[Split.TRAIN] else Split.VALIDATION
        by_content = {examples.contents[index]: ratio for index, ratio in ratios.items() if isfinite(ratio)}
        names = {examples.contents[index]: examples.images[index].source for index in ratios}
        history = history.after(epoch, split, by_content, names)
    history.write(path)
