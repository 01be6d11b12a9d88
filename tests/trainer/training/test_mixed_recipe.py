"""A whole training with everything on that varies it: variants, shuffled tags, a weighted part, class pictures."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from tests.trainer.conftest import SMALL
from tests.trainer.dataset.drawn import drawn, write_dataset
from trainer.protocol.events import (
    EXIT_FINISHED,
    EXIT_STOPPED,
    EpochEnded,
    Event,
    Exported,
    Started,
    Stopped,
    Warned,
    parse_event,
)
from trainer.protocol.presets import spec_from_preset
from trainer.protocol.report import Split
from trainer.tasks.diffusion import DiffusionTask
from trainer.training.run import run

pytestmark = pytest.mark.timeout(600)

TAGS = ("red", "big", "round", "shiny", "old", "flat")


def events(job_dir: Path, kind: type[Any]) -> list[Any]:
    said: list[Event] = [parse_event(line) for line in (job_dir / "events.jsonl").read_bytes().splitlines()]
    return [event for event in said if isinstance(event, kind)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("data")
    caption = ", ".join(("momo", *TAGS))
    main = [drawn(seed, size=(96, 64) if seed % 2 else (64, 64), caption=caption) for seed in range(1, 7)]
    main += [drawn(7, Split.VALIDATION), drawn(8, Split.TEST)]
    styles = [drawn(seed, size=(64, 96) if seed % 2 else (64, 64)) for seed in range(21, 26)]
    classes = [drawn(seed) for seed in range(31, 34)] + [drawn(7)]
    return {
        "dataset": str(write_dataset(folder / "momo", main)),
        "changes": {
            **SMALL,
            "training": {**SMALL["training"], "tag_shuffle": True, "regularization_weight": 0.5},
            "augmentation": {"preset": "photo", "variants": 2},
            "mix": [
                {"dataset": str(write_dataset(folder / "style", styles)), "weight": 0.3, "trigger": "inky"},
                {"dataset": str(write_dataset(folder / "cats", classes)), "role": "regularization", "repeats": 2},
            ],
        },
    }


def make_job(settings: dict[str, Any], base: Path, job_dir: Path, **changes: Any) -> Path:
    merged = {**settings["changes"], **changes}
    spec_from_preset("lora", dataset=settings["dataset"], base=str(base), changes=merged).write(job_dir)
    return job_dir


@pytest.fixture(scope="module")
def finished_job(settings: dict[str, Any], random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    job_dir = make_job(settings, random_base, tmp_path_factory.mktemp("finished") / "job")
    assert run(job_dir) == EXIT_FINISHED, (job_dir / "events.jsonl").read_text(encoding="utf-8")[-600:]
    return job_dir


def test_it_tells_how_often_pictures_are_seen(finished_job: Path) -> None:
    (started,) = events(finished_job, Started)

    # 6 pictures twice and 3 class pictures twice are 18; 30 % of 26 are 8.
    assert started.data_words == (
        "An epoch shows 6 pictures of momo twice (46%), 5 pictures of style 1.6 times (31%) and "
        "3 class pictures of cats twice (23%)."
    )
    rows = json.loads((finished_job / "data.json").read_text(encoding="utf-8"))
    assert [(row["dataset"], row["role"], row["views"]) for row in rows] == [
        ("momo", "train", 12),
        ("style", "train", 8),
        ("cats", "regularization", 6),
    ]
    assert (finished_job / "data.md").read_text(encoding="utf-8").count("\n") == 5


def test_it_counts_the_pictures_that_it_uses(finished_job: Path) -> None:
    (started,) = events(finished_job, Started)

    assert (started.train_images, started.validation_images, started.test_images) == (14, 1, 1)
    assert started.total_steps == events(finished_job, EpochEnded)[-1].step


def test_it_says_what_it_left_out(finished_job: Path) -> None:
    (warned,) = events(finished_job, Warned)

    assert warned.kind == "mix_overlap"
    assert warned.message.startswith("1 picture of the train split left out")


def test_it_shows_originals_beside_variants(finished_job: Path) -> None:
    (started,) = events(finished_job, Started)

    assert started.augmentation_sheet == "charts/augmentation.png"
    with Image.open(finished_job / started.augmentation_sheet) as sheet:
        assert sheet.height > 6 * 100


def test_the_exported_file_says_what_it_was_trained_on(finished_job: Path) -> None:
    (kohya,) = [event for event in events(finished_job, Exported) if event.format == "kohya"]
    with safe_open(finished_job / kohya.path, "pt") as file:
        metadata = file.metadata()

    assert json.loads(metadata["ss_dataset_dirs"]) == {
        "momo": {"n_repeats": 2, "img_count": 6},
        "style": {"n_repeats": 1.6, "img_count": 5},
    }
    assert json.loads(metadata["ss_reg_dataset_dirs"]) == {"cats": {"n_repeats": 2, "img_count": 3}}
    assert (metadata["ss_num_train_images"], metadata["ss_num_reg_images"]) == ("20", "6")
    assert (metadata["ss_shuffle_caption"], metadata["ss_keep_tokens"]) == ("True", "1")
    assert metadata["ss_prior_loss_weight"] == "0.5"


def test_stopped_in_the_middle_and_resumed_it_equals_the_run_that_never_stopped(
    finished_job: Path, settings: dict[str, Any], random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after 3, 8 and 14 micro-batches, in three runs: the same variants, captions and class pictures follow."""
    job_dir = make_job(settings, random_base, tmp_path / "job")
    real = DiffusionTask.train_loss
    for left in (3, 8, 14):
        budget = [left]

        def until_stopped(self: DiffusionTask, *arguments: Any, budget: list[int] = budget) -> torch.Tensor:
            budget[0] -= 1
            if budget[0] == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(self, *arguments)

        monkeypatch.setattr(DiffusionTask, "train_loss", until_stopped)
        assert run(job_dir) == EXIT_STOPPED
    monkeypatch.setattr(DiffusionTask, "train_loss", real)
    assert run(job_dir) == EXIT_FINISHED

    stops = [event.step for event in events(job_dir, Stopped)]
    assert len(set(stops)) == 3
    assert len(events(job_dir, Warned)) == 1
    assert [(e.train_loss, e.validation.loss) for e in events(job_dir, EpochEnded)] == [
        (e.train_loss, e.validation.loss) for e in events(finished_job, EpochEnded)
    ]
    ours, theirs = (
        load_file(path / "output/diffusers/pytorch_lora_weights.safetensors") for path in (job_dir, finished_job)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_augmentation_and_shuffled_tags_change_the_training_and_not_the_base_that_is_measured(
    finished_job: Path, settings: dict[str, Any], random_base: Path, tmp_path: Path
) -> None:
    plain = {**settings["changes"]["training"], "tag_shuffle": False, "epochs": 1}
    job_dir = make_job(settings, random_base, tmp_path / "job", augmentation={"preset": "none"}, training=plain)
    assert run(job_dir) == EXIT_FINISHED

    (started,) = events(job_dir, Started)
    assert started.augmentation_sheet is None
    assert not (job_dir / "charts" / "augmentation.png").exists()
    assert events(job_dir, EpochEnded)[0].train_loss != events(finished_job, EpochEnded)[0].train_loss
    for name in ("validation/validation-base.json", "validation/test-triples.json"):
        assert (job_dir / name).read_bytes() == (finished_job / name).read_bytes()


def test_a_setting_that_does_nothing_is_warned_of(settings: dict[str, Any], random_base: Path, tmp_path: Path) -> None:
    training = {**settings["changes"]["training"], "tag_shuffle": False, "keep_tags": 3, "epochs": 1}
    job_dir = make_job(settings, random_base, tmp_path / "job", training=training)
    assert run(job_dir) == EXIT_FINISHED

    assert [event.kind for event in events(job_dir, Warned)] == ["idle_setting", "mix_overlap"]
