"""A whole training on a mix of datasets, with variants, shuffled tags and class images."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from tests.trainer.conftest import FEW_LAYERS, SMALL
from tests.trainer.dataset.prepared_folders import drawn, write_dataset
from tests.trainer.job_events import assert_same_checkpoints, curve_of, events_of
from tests.trainer.random_base import store_in_half
from trainer.dataset.split.mixing import read_mixture
from trainer.exchange.job_dir import write_spec
from trainer.protocol.events import (
    EXIT_FINISHED,
    EXIT_STOPPED,
    EpochEnded,
    Exported,
    Started,
    Warned,
)
from trainer.protocol.presets import spec_from_preset
from trainer.protocol.report import Split
from trainer.protocol.run_options import RunOptions
from trainer.protocol.settings import MethodKind, MixRole
from trainer.protocol.spec import make_spec
from trainer.tasks.diffusion import DiffusionTask
from trainer.training.run import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: Nothing is tested, diagnosed or exported at the end, which would take half of the time.
WITHOUT_END = {**SMALL["validation"], "test": False}
TAGS = ("red", "big", "round", "shiny", "old", "flat")


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
            "method": {**SMALL["method"], **FEW_LAYERS},
            "training": {**SMALL["training"], "epochs": 2, "tag_shuffle": True, "regularization_weight": 0.5},
            "augmentation": {"preset": "photo", "variants": 2},
            "mix": [
                {"dataset": str(write_dataset(folder / "style", styles)), "weight": 0.3, "trigger": "inky"},
                {"dataset": str(write_dataset(folder / "cats", classes)), "role": "regularization", "repeats": 2},
            ],
        },
    }


def make_job(settings: dict[str, Any], base: Path, job_dir: Path, **changes: Any) -> Path:
    merged = {**settings["changes"], **changes}
    write_spec(job_dir, spec_from_preset("lora", dataset=settings["dataset"], base=str(base), changes=merged))
    return job_dir


@pytest.fixture(scope="module")
def finished_job(settings: dict[str, Any], random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    job_dir = make_job(settings, random_base, tmp_path_factory.mktemp("finished") / "job")
    assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED, events_of(job_dir)[-1]
    return job_dir


def test_the_start_reports_how_often_images_are_seen(finished_job: Path) -> None:
    (started,) = events_of(finished_job, Started)

    # 6 images twice and 3 class images twice are 18; 30 % of 26 are 8.
    assert "momo" in started.data_summary
    rows = json.loads((finished_job / "data.json").read_text(encoding="utf-8"))
    assert [(row["dataset"], row["role"], row["views"]) for row in rows] == [
        ("momo", "train", 12),
        ("style", "train", 8),
        ("cats", "regularization", 6),
    ]
    assert (finished_job / "data.md").read_text(encoding="utf-8").count("\n") == 5


def test_the_start_reports_image_and_step_counts(finished_job: Path) -> None:
    (started,) = events_of(finished_job, Started)

    assert (started.train_images, started.validation_images, started.test_images) == (14, 1, 1)
    assert started.total_steps == events_of(finished_job, EpochEnded)[-1].step


def test_images_that_another_dataset_validates_with_are_left_out_with_a_warning(finished_job: Path) -> None:
    (warned,) = events_of(finished_job, Warned)

    assert warned.kind == "mix_overlap"


def test_variants_are_drawn_beside_their_originals(finished_job: Path) -> None:
    (started,) = events_of(finished_job, Started)

    assert started.augmentation_sheet == "charts/augmentation.png"
    with Image.open(finished_job / started.augmentation_sheet) as sheet:
        assert sheet.height > 6 * 100


def test_the_metadata_of_an_export_lists_its_datasets(finished_job: Path) -> None:
    (kohya,) = [event for event in events_of(finished_job, Exported) if event.format == "kohya"]
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


def test_a_stopped_run_resumes_bit_for_bit_with_the_same_variants_and_captions(
    finished_job: Path, settings: dict[str, Any], random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_dir = make_job(settings, random_base, tmp_path / "job", validation=WITHOUT_END)
    real = DiffusionTask.train_loss
    calls = []

    def stopped_in_the_middle(self: DiffusionTask, *arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionTask, "train_loss", stopped_in_the_middle)
        assert run(RunOptions(job_dir=job_dir)) == EXIT_STOPPED
    assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED

    assert len(events_of(job_dir, Warned)) == 1
    assert curve_of(job_dir) == curve_of(finished_job)
    assert_same_checkpoints(job_dir, finished_job)


@pytest.mark.parametrize("kind", [MethodKind.LORA, MethodKind.FULL])
def test_class_images_are_drawn_by_a_base_that_is_stored_in_half(
    settings: dict[str, Any], random_base: Path, tmp_path: Path, kind: MethodKind
) -> None:
    base = store_in_half(Path(shutil.copytree(random_base, tmp_path / "base")))
    # Prompts of their own: images of the same prompt would be found in the cache.
    prior = {"images": 1, "steps": 1, "class_prompt": f"a {kind} dog"}
    method = {"kind": kind, "rank": 16} if kind is MethodKind.FULL else {"kind": kind, "rank": 4, "alpha": 4}
    spec = make_spec({"dataset": settings["dataset"], "base": {"source": str(base)}, "prior": prior, "method": method})
    task = DiffusionTask(spec, read_mixture(spec), torch.device("cpu"))

    task.encode(task.resolution, lambda _done, _total: None)

    assert [source.role for source in task.mixture.sources] == [MixRole.TRAIN, MixRole.REGULARIZATION]


def test_augmentation_and_shuffled_tags_change_the_training_but_not_the_base_losses(
    finished_job: Path, settings: dict[str, Any], random_base: Path, tmp_path: Path
) -> None:
    plain = {**settings["changes"]["training"], "tag_shuffle": False, "keep_tags": 3, "epochs": 1}
    changes = {"augmentation": {"preset": "none"}, "training": plain, "validation": WITHOUT_END}
    job_dir = make_job(settings, random_base, tmp_path / "job", **changes)
    assert run(RunOptions(job_dir=job_dir)) == EXIT_FINISHED

    # Tags that are not shuffled are not kept in place either.
    assert [event.kind for event in events_of(job_dir, Warned)] == ["idle_setting", "mix_overlap"]
    (started,) = events_of(job_dir, Started)
    assert started.augmentation_sheet is None
    assert not (job_dir / "charts" / "augmentation.png").exists()
    assert events_of(job_dir, EpochEnded)[0].train_loss != events_of(finished_job, EpochEnded)[0].train_loss
    for name in ("validation/validation-base.json", "validation/validation-triples.json", "validation/train-base.json"):
        assert (job_dir / name).read_bytes() == (finished_job / name).read_bytes()
