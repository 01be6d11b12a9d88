"""How sure it is that one run is better than another: both were asked the same, picture by picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, TypeAdapter

from trainer.studies.stories import Story
from trainer.training.intervals import Interval, interval, paired


class _Triple(BaseModel):
    """What a comparison needs of a frozen triple."""

    image: int
    pixels_sha256: str
    timestep: int


class _Losses(BaseModel):
    """What an epoch was measured at: the plain loss of each triple, in their order."""

    validation: list[float]


_triples: TypeAdapter[list[_Triple]] = TypeAdapter(list[_Triple])


def compare_best(a: Story, b: Story, groups: Mapping[str, int], *, until_epoch: int) -> Interval | None:
    """The ratio of a's loss over b's, each at its best epoch up to one: below 1 with all of its interval, a is better.

    `groups` has the group of near duplicates of a picture by the hash of its pixels; a group counts as one observation.
    None where the two were not asked the same, or there are too few pictures.
    """
    bests = [(story, story.best_until(until_epoch)) for story in (a, b)]
    if a.base is None:
        return None
    triples = _read_triples(a.job_dir)
    if not triples or triples != _read_triples(b.job_dir):
        return None
    losses = [_read_losses(story.job_dir, best.epoch) if best else () for story, best in bests]
    if any(len(one) != len(triples) for one in losses):
        return None
    firsts = [band.first_timestep for band in a.base.validation.bands]
    return interval(
        paired(
            units=[groups.get(triple.pixels_sha256, triple.pixels_sha256) for triple in triples],
            bands=[sum(first <= triple.timestep for first in firsts) for triple in triples],
            model=losses[0],
            base=losses[1],
        )
    )


def _read_triples(job_dir: Path) -> Sequence[_Triple]:
    path = job_dir / "validation" / "validation-triples.json"
    return _triples.validate_json(path.read_bytes()) if path.exists() else ()


def _read_losses(job_dir: Path, epoch: int) -> Sequence[float]:
    """The plain loss of each triple, in their order; empty where the trainer kept none."""
    path = job_dir / "validation" / f"epoch-{epoch:03d}.json"
    return _Losses.model_validate_json(path.read_bytes()).validation if path.exists() else ()
