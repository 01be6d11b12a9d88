"""The diagnostics of a trained model, `insight.json`: what it memorized, what it forgot, and what it never learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from trainer.exchange.files import write_text
from trainer.protocol.frozen import Frozen

INSIGHT_FILE = "insight.json"


class TrainingImage(Frozen):
    """An image that was trained on, as a report names it."""

    #: Its number in the report of its dataset, from 1, and the name of its file.
    number: int
    name: str
    #: Its dataset; empty if the job has only one.
    dataset: str = ""
    #: Path relative to the job folder.
    thumbnail: str


class NearImage(TrainingImage):
    """A sample of the best epoch and the training image that is nearest to it."""

    prompt: str
    #: Path relative to the job folder.
    sample: str
    #: True for a copy, by the rule for near duplicates of a dataset.
    is_same: bool
    is_mirrored: bool
    #: Largest mean difference of any 6x6 block of the 64x64 thumbnails, 0 to 255.
    difference: float
    #: Distance of the 251 features to the nearest training image; unrelated images are about 2 apart.
    distance: float
    #: Cosine similarity to the nearest training image by the similarity model.
    similarity: float | None = None
    #: The same of the base model's sample with this prompt and seed.
    base_is_same: bool
    base_distance: float
    base_similarity: float | None = None


class Memorization(Frozen):
    """How near the samples are to the training images."""

    sentence: str
    #: The samples on the left, the nearest training images on the right (PNG).
    sheet: str
    images: tuple[NearImage, ...]


class PromptSimilarity(Frozen):
    """Cosine similarity of samples and their prompts by CLIP, before and after, the mean over images."""

    before: float
    after: float


class Forgetting(Frozen):
    """How samples of prompts that are unrelated to the data changed, with the same prompts and seeds."""

    #: What happened in one sentence, and how that was measured.
    sentence: str
    measured: str = ""
    #: What was learned shows up in prompts that do not ask for it.
    leaks: bool = False
    #: The base model on the left, the trained one on the right (PNG).
    sheet: str
    prompts: tuple[str, ...]
    #: Mean absolute difference of the pixels, as a share of their range.
    moved_pixels: float
    #: Mean distance of the features, and the distance that another seed makes with the base model; None with one
    #: image per prompt.
    moved_features: float
    another_seed: float | None
    #: Mean feature distance to the nearest training image, before and after.
    distance_before: float
    distance_after: float
    prompt_similarity: PromptSimilarity | None = None


class NeverLearned(TrainingImage):
    """A training image whose loss never fell while the loss of the others did."""

    #: Loss over the base model's, by epoch.
    ratios: Mapping[int, float]


class Insight(Frozen):
    """All diagnostics; None for those that could not be made."""

    version: Literal[1] = 1
    memorization: Memorization | None = None
    forgetting: Forgetting | None = None
    #: Of samples and their prompts; only with a CLIP model.
    prompt_similarity: PromptSimilarity | None = None
    never_learned: tuple[NeverLearned, ...] = ()
    never_learned_sentence: str = ""
    #: The median ratio of the measured training images, by epoch.
    usual_ratios: Mapping[int, float] = {}
    #: Folder of the similarity model.
    similarity_model: str = ""


def write_insight(insight: Insight, job_dir: Path) -> Path:
    """Write `insight.json` and return its path."""
    write_text(job_dir / INSIGHT_FILE, insight.model_dump_json(indent=1) + "\n")
    return job_dir / INSIGHT_FILE


def read_insight(job_dir: Path) -> Insight:
    """Read the diagnostics so far; empty if there are none."""
    path = job_dir / INSIGHT_FILE
    return Insight.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else Insight()
