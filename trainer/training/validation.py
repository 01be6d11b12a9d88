"""The honest loss: frozen (image, timestep, noise) triples, the same before the first step and after each epoch.

The triples are chosen once, by seed, and written to `validation/triples.json`. Each is a function of its own line:
no shared random stream, so neither batch size nor order nor device changes what is measured. A plain mean over
timesteps is dominated by those with the largest loss, so what early stopping looks at is the mean over bands of
timesteps of (loss / base model's loss).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from trainer.dataset.seeds import derive_seed
from trainer.protocol.events import BandLoss, ValidationLoss
from trainer.protocol.spec import Validation
from trainer.training.batches import chunks


class Triple(BaseModel):
    """One frozen question to the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Index of the picture in its split, and the hash of its pixels.
    image: int
    pixels_sha256: str
    timestep: int
    noise_seed: int


def freeze_triples(pixels_sha256: Sequence[str], settings: Validation, schedule_steps: int) -> tuple[Triple, ...]:
    """The triples of a split, in the order of its pictures.

    Within its band each triple has a timestep of its own, so that all of the band is measured; which one, and the
    noise, follow from the picture's hash: they stay the same when other pictures come or go.
    """
    by_hash = sorted(range(len(pixels_sha256)), key=lambda i: derive_seed("pick", settings.seed, pixels_sha256[i]))
    chosen = sorted(by_hash[: settings.max_images])
    width = schedule_steps / settings.timesteps
    triples = []
    for image in chosen:
        for band in range(settings.timesteps):
            for draw in range(settings.draws):
                seed = derive_seed("triple", settings.seed, pixels_sha256[image], band, draw)
                # Draws are spread evenly within the band, from a start of the picture's own.
                offset = (draw + (seed % 1024) / 1024) / settings.draws
                triples.append(
                    Triple(
                        image=image,
                        pixels_sha256=pixels_sha256[image],
                        timestep=min(schedule_steps - 1, int((band + offset) * width)),
                        noise_seed=seed,
                    )
                )
    return tuple(triples)


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
    losses: Callable[[Sequence[Triple]], list[float]],
    between_batches: Callable[[], None] = lambda: None,
) -> list[float]:
    """The loss of each triple, in their order; pictures of one size go through the model together."""
    by_size: dict[Hashable, list[int]] = defaultdict(list)
    for index, triple in enumerate(triples):
        by_size[size_of[triple.image]].append(index)
    measured = [0.0] * len(triples)
    for indices in by_size.values():
        for chunk in chunks(indices, batch_size):
            between_batches()
            for index, loss in zip(chunk, losses([triples[i] for i in chunk]), strict=True):
                measured[index] = loss
    return measured


def summarize(
    triples: Sequence[Triple], measured: Sequence[float], base: Sequence[float], bands: int, schedule_steps: int
) -> ValidationLoss:
    """Plain mean, and each band beside the base model's, from the losses of single triples."""
    width = schedule_steps / bands
    of_band: dict[int, list[int]] = defaultdict(list)
    for index, triple in enumerate(triples):
        of_band[min(bands - 1, int(triple.timestep / width))].append(index)
    summaries = []
    for band, indices in sorted(of_band.items()):
        loss = _mean([measured[i] for i in indices])
        summaries.append(
            BandLoss(
                first_timestep=int(band * width),
                last_timestep=int((band + 1) * width) - 1,
                loss=loss,
                ratio=loss / _mean([base[i] for i in indices]),
            )
        )
    return ValidationLoss(
        loss=_mean(measured), ratio=_mean([summary.ratio for summary in summaries]), bands=tuple(summaries)
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
