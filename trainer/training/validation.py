"""The honest loss: frozen (image, timestep, noise) triples, the same before the first step and after each epoch.

The triples are chosen once, by seed, and written to `validation/triples.json`. Each is a function of its own line:
no shared random stream, so neither batch size nor order nor device changes what is measured. A plain mean over
timesteps is dominated by those with the largest loss, so what early stopping looks at is the mean over bands of
timesteps of (loss / base model's loss).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from trainer.dataset.seeds import derive_seed
from trainer.protocol.events import BandLoss, ValidationLoss
from trainer.protocol.settings import Validation
from trainer.tasks.task import FrozenLoss
from trainer.training.batches import chunks
from trainer.training.intervals import PairedLosses, interval, paired, ratio_of, unit_ratios


class Triple(BaseModel):
    """One frozen question to the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Index of the picture in its split, and the hash of its pixels.
    image: int
    pixels_sha256: str
    timestep: int
    noise_seed: int


def probe_images(pixels_sha256: Sequence[str], count: int, seed: int) -> tuple[int, ...]:
    """At most `count` pictures (by place), chosen by hash: the others that are there hardly change the choice."""
    by_hash = sorted(range(len(pixels_sha256)), key=lambda i: derive_seed("pick", seed, pixels_sha256[i]))
    return tuple(sorted(by_hash[:count]))


def freeze_triples(
    pixels_sha256: Sequence[str], settings: Validation, schedule_steps: int, *, images: Sequence[int] | None = None
) -> tuple[Triple, ...]:
    """The triples of a split, in the order of its pictures; of `images` alone where they are given (by place).

    Within its band each triple has a timestep of its own, so that all of the band is measured; which one, and the
    noise, follow from the picture's hash: they stay the same when other pictures come or go. Where there is no noise
    (`schedule_steps` 1), each picture is asked once.
    """
    chosen = probe_images(pixels_sha256, settings.max_images, settings.seed) if images is None else images
    bands = band_count(settings, schedule_steps)
    draws = 1 if schedule_steps == 1 else settings.draws
    width = schedule_steps / bands
    triples = []
    for image in chosen:
        for band in range(bands):
            for draw in range(draws):
                seed = derive_seed("triple", settings.seed, pixels_sha256[image], band, draw)
                # Draws are spread evenly within the band, from a start of the picture's own.
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
    """How many bands the schedule is parted into: one where there is no noise."""
    return min(settings.timesteps, schedule_steps)


def keep_triples(path: Path, triples: Sequence[Triple]) -> tuple[Triple, ...]:
    """Write the triples, or, where a file lies there already, read those: they never change within a job."""
    if path.exists():
        return tuple(Triple.model_validate(item) for item in json.loads(path.read_text(encoding="utf-8")))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text("[\n" + ",\n".join(triple.model_dump_json() for triple in triples) + "\n]\n", encoding="utf-8")
    part.replace(path)
    return tuple(triples)


def measure(
    triples: Sequence[Triple],
    *,
    size_of: Mapping[int, Hashable] | Sequence[Hashable],
    batch_size: int,
    losses: Callable[[Sequence[Triple]], list[FrozenLoss]],
    between_batches: Callable[[], None] = lambda: None,
    shard: tuple[int, int] = (0, 1),
) -> dict[int, FrozenLoss]:
    """The loss of each triple by its place; pictures of one size go through the model together.

    `shard` is (which process, of how many): each takes every so-many-th batch. `merge` puts their parts together.
    """
    by_size: dict[Hashable, list[int]] = defaultdict(list)
    for index, triple in enumerate(triples):
        by_size[size_of[triple.image]].append(index)
    batches = [chunk for indices in by_size.values() for chunk in chunks(indices, batch_size)]
    process, processes = shard
    measured: dict[int, FrozenLoss] = {}
    for batch in batches[process::processes]:
        between_batches()
        measured.update(zip(batch, losses([triples[index] for index in batch]), strict=True))
    return measured


def merge(parts: Iterable[Mapping[int, FrozenLoss]], count: int) -> list[FrozenLoss]:
    """The losses of all `count` triples, in their order, from what each process measured."""
    together = {index: loss for part in parts for index, loss in part.items()}
    assert len(together) == count, f"{count} triples, but {len(together)} were measured."
    return [together[index] for index in range(count)]


def summarize(
    triples: Sequence[Triple],
    measured: Sequence[FrozenLoss],
    base: Sequence[FrozenLoss],
    bands: int,
    schedule_steps: int,
    *,
    groups: Sequence[Hashable] | None = None,
) -> ValidationLoss:
    """Plain and training loss, each band beside the base model's, and how sure the ratio is.

    Pictures of one of `groups` (by the picture's place) are near duplicates, and count as one observation for the
    interval.
    """
    bands = min(bands, schedule_steps)
    losses = _paired(triples, measured, base, bands, schedule_steps, groups)
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
    sure = interval(losses)
    return ValidationLoss(
        loss=_mean([loss.plain for loss in measured]),
        ratio=ratio_of(losses),
        bands=summaries,
        training_loss=_mean([loss.training for loss in measured]),
        ratio_low=sure.low if sure else None,
        ratio_high=sure.high if sure else None,
    )


def picture_ratios(
    triples: Sequence[Triple],
    measured: Sequence[FrozenLoss],
    base: Sequence[FrozenLoss],
    bands: int,
    schedule_steps: int,
) -> dict[int, float]:
    """The ratio of each picture by itself, by its place."""
    losses = _paired(triples, measured, base, min(bands, schedule_steps), schedule_steps, None)
    pictures = dict.fromkeys(triple.image for triple in triples)
    return dict(zip(pictures, unit_ratios(losses), strict=True))


def _paired(
    triples: Sequence[Triple],
    model: Sequence[FrozenLoss],
    base: Sequence[FrozenLoss],
    bands: int,
    schedule_steps: int,
    groups: Sequence[Hashable] | None,
) -> PairedLosses:
    return paired(
        units=[triple.image if groups is None else groups[triple.image] for triple in triples],
        bands=[_band(triple, bands, schedule_steps) for triple in triples],
        model=[loss.plain for loss in model],
        base=[loss.plain for loss in base],
    )


def _band(triple: Triple, bands: int, schedule_steps: int) -> int:
    return min(bands - 1, int(triple.timestep * bands / schedule_steps))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
