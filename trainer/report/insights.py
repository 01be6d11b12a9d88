"""What a job found out about its model at the end, as `insight.json` in its folder: what it learnt by heart, what it
forgot, and which pictures it never learnt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

INSIGHT_FILE = "insight.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NearPicture(_Frozen):
    """A sample of the best epoch and the training picture that is nearest to it."""

    prompt: str
    #: Paths relative to the job folder.
    sample: str
    thumbnail: str
    #: The picture's number in its dataset's report, from 1, and the file it was handed in as.
    number: int
    name: str
    #: The dataset that it is of; empty where a job has one.
    dataset: str = ""
    #: Whether a copy: as near-duplicates of a dataset are told.
    is_same: bool
    is_mirrored: bool
    #: Largest mean difference of any 6x6 block of the 64x64 thumbnails, 0 to 255.
    difference: float
    #: Distance of the 251-number features to the nearest training picture: unrelated pictures are about 2 apart.
    distance: float
    #: Cosine to the nearest training picture by the similarity model.
    similarity: float | None = None
    #: The same of the base model's sample of this prompt and seed.
    base_is_same: bool
    base_distance: float
    base_similarity: float | None = None


class Memorization(_Frozen):
    """How near the samples are to what was trained on."""

    sentence: str
    #: The samples above, the nearest training pictures below (PNG).
    sheet: str
    pictures: tuple[NearPicture, ...]


class PromptLikeness(_Frozen):
    """Cosine of samples and their prompts by CLIP, before and after, the mean over pictures."""

    before: float
    after: float


class Forgetting(_Frozen):
    """What became of pictures that have nothing to do with the data: same prompts and seeds, before and after."""

    sentence: str
    #: The base model above, the trained one below (PNG).
    sheet: str
    prompts: tuple[str, ...]
    #: Mean absolute difference of the pixels, as a share of their range.
    moved_pixels: float
    #: Mean distance of the features, and what another seed makes of the base's; None with one picture a prompt.
    moved_features: float
    another_seed: float | None
    #: Mean feature distance to the nearest training picture, before and after.
    distance_before: float
    distance_after: float
    likeness: PromptLikeness | None = None


class NeverLearnt(_Frozen):
    """A training picture whose loss never fell while that of the others did."""

    number: int
    name: str
    dataset: str = ""
    thumbnail: str
    #: Loss over the base's, by epoch.
    ratios: Mapping[int, float]


class Insight(_Frozen):
    """Everything; what could not be found out is None."""

    version: Literal[1] = 1
    memorization: Memorization | None = None
    forgetting: Forgetting | None = None
    #: Of samples and their prompts; only with a CLIP.
    likeness: PromptLikeness | None = None
    never_learnt: tuple[NeverLearnt, ...] = ()
    never_learnt_sentence: str = ""
    #: The median ratio of the measured training pictures, by epoch.
    usual_ratios: Mapping[int, float] = {}
    #: What the similarities are of: folder of the model.
    similarity_model: str = ""


def write_insight(insight: Insight, job_dir: Path) -> Path:
    """Write `insight.json` by rename, and return its path."""
    path = job_dir / INSIGHT_FILE
    part = path.with_suffix(".part")
    part.write_text(insight.model_dump_json(indent=1) + "\n", encoding="utf-8")
    part.replace(path)
    return path


def read_insight(job_dir: Path) -> Insight:
    """What was found out so far; an empty one where nothing was."""
    path = job_dir / INSIGHT_FILE
    return Insight.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else Insight()
