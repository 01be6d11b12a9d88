"""Every preset fits the base that ships; presets with a method or task that no other test trains are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.dataset.prepared_folders import drawn, write_dataset
from tests.trainer.drawn_classes import draw_class_folders
from tests.trainer.fork_server import ForkServer
from tests.trainer.job_events import events_of
from tests.trainer.random_classifier import make_random_resnet
from trainer.dataset.preparing.prepare import prepare
from trainer.dataset.split.mixing import plan_repeats, read_mixture
from trainer.exchange.job_dir import write_spec
from trainer.models.base import load_base
from trainer.models.methods import attach
from trainer.protocol.events import EXIT_FINISHED, Exported, StageBegan
from trainer.protocol.presets import Preset, preset_named, presets, spec_from_preset
from trainer.protocol.report import Split
from trainer.protocol.settings import MethodKind, TaskKind
from trainer.tasks.drawing import plan_samples
from trainer.training.optimizers import check_optimizer_arguments
from trainer.training.schedules import check_schedule_arguments
from trainer.training.stages import check_patterns, parameter_groups, plan_stages
from trainer.training.validation import freeze_triples

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
DIFFUSION_PRESETS = [name for name in presets() if name != "classifier"]


@pytest.mark.parametrize("preset", DIFFUSION_PRESETS)
def test_the_settings_of_a_preset_fit_the_tiny_base(preset: str) -> None:
    changes = {"training": {"trigger": "zkz"}, "prior": {"class_prompt": "a red egg"}}
    spec = spec_from_preset(preset, dataset="/dataset", base="tiny", changes=changes)

    for stage in spec.plan:
        assert stage.optimizer is not None
        assert stage.schedule is not None
        check_optimizer_arguments(stage.optimizer, stage.optimizer_arguments or {})
        check_schedule_arguments(
            stage.schedule, stage.schedule_arguments or {}, learning_rate=stage.learning_rate or 0.0
        )
    trained = attach(load_base(spec.base, spec.objective), spec)
    check_patterns(trained, plan_stages(spec.plan))
    assert all(parameter_groups(trained, stage) for stage in spec.plan)


#: Passes through the denoiser that decoding an image takes: SD 1.5 at 512 px, 2.5 TFLOP against 0.7.
_DECODING = 4


@pytest.mark.parametrize("images", [20, 38, 60])
def test_validation_and_samples_take_less_than_a_quarter_of_an_epoch(images: int, tmp_path: Path) -> None:
    measured = round(0.15 * images)
    splits = [Split.VALIDATION] * measured + [Split.TEST] * measured
    splits += [Split.TRAIN] * (images - len(splits))
    folder = write_dataset(tmp_path / "dataset", [drawn(number, split) for number, split in enumerate(splits, 1)])

    shares = {preset: _share_of_evaluation(preset, folder) for preset in DIFFUSION_PRESETS if preset != "demo"}

    assert {preset: share for preset, share in shares.items() if not 0.05 < share < 0.25} == {}


def _share_of_evaluation(preset: str, folder: Path) -> float:
    """The share of an epoch of SDXL that is no training, by passes of an image through the denoiser."""
    wants_class = "prior.class_prompt" in preset_named(preset).needs
    changes = {"training": {"trigger": "zkz"}, "prior": {"class_prompt": "a red egg" if wants_class else ""}}
    spec = spec_from_preset(preset, dataset=str(folder), base=SDXL, changes=changes)
    mixture = read_mixture(spec.model_copy(update={"training": spec.training.model_copy(update={"trigger": ""})}))
    views = plan_repeats(mixture, 0).views / (1 - (spec.prior.weight if spec.prior.is_on else 0))
    # Backward needs one more pass for activations, and one for the weights if all of them are trained.
    training = views * (3 if spec.method.kind is MethodKind.FULL else 2)
    probes = min(len(mixture.of(Split.TRAIN)), spec.validation.train_images)
    validation = sum(
        len(freeze_triples(["0" * 64] * count, spec.validation, 1000, images=range(count)))
        for count in (len(mixture.of(Split.VALIDATION)), probes)
    )
    drawn_images = len(plan_samples([f"caption {number}" for number in range(4)], spec.samples))
    samples = drawn_images * (2 * spec.samples.steps + _DECODING) / spec.samples.every_epochs
    return (validation + samples) / (training + validation + samples)


def test_a_preset_for_a_large_base_leaves_what_its_user_sets(tmp_path: Path) -> None:
    changes = {"training": {"repeats": 1}, "samples": {"every_epochs": 1, "steps": 30}}
    spec = spec_from_preset("lora", dataset="/dataset", base=SDXL, changes=changes)
    saved = Preset(name="mine", settings={"method": {"rank": 4}})

    assert (spec.training.repeats, spec.samples.every_epochs, spec.samples.steps) == (1, 1, 30)
    # *Compare epochs* finds every epoch, as far as their files are small.
    assert (spec.exports.every_epochs, spec.exports.keep_mib) == (1, 512)
    assert spec_from_preset("lora", dataset="/dataset", base="tiny").exports.every_epochs is None
    # What is saved from a training has all that differs from the defaults.
    assert saved.settings_for(SDXL) == {"method": {"rank": 4}}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_full_training_with_class_images_ends_with_exported_files(
    dataset: Path, random_base: Path, tmp_path: Path, fork_server: ForkServer
) -> None:
    changes: dict[str, Any] = {
        "training": {"epochs": 1, "repeats": 1, "trigger": "zkz"},
        "validation": {"timesteps": 1, "draws": 1, "train_images": 2},
        "samples": {"steps": 1, "prompts": ["a red egg"], "unrelated_prompts": []},
        "prior": {"class_prompt": "a red egg", "images": 2, "steps": 1},
    }
    job_dir = tmp_path / "job"
    spec = spec_from_preset("dreambooth_full", dataset=str(dataset), base=str(random_base), changes=changes)
    write_spec(job_dir, spec)

    assert fork_server.run("run", str(job_dir)).returncode == EXIT_FINISHED, events_of(job_dir)[-1]
    assert events_of(job_dir, Exported)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_classifier_preset_trains_the_head_and_then_deeper_blocks(tmp_path: Path, fork_server: ForkServer) -> None:
    base = make_random_resnet(tmp_path / "base")
    prepare(
        [draw_class_folders(tmp_path / "images", {"circle": 10, "square": 10})], tmp_path / "dataset", resolutions=(64,)
    )
    settings = preset_named("classifier").settings_for("microsoft/resnet-18")
    stages = [
        {**stage, "epochs": 1, "unfreeze": [{**each, "from_epoch": 1} for each in stage.get("unfreeze", ())]}
        for stage in settings["stages"]
    ]
    changes = {
        "training": {"epochs": len(stages), "repeats": 1},
        "stages": stages,
        "base": {"source": str(base)},
    }
    job_dir = tmp_path / "job"
    spec = spec_from_preset("classifier", dataset=str(tmp_path / "dataset"), changes=changes)
    write_spec(job_dir, spec)

    assert spec.task is TaskKind.CLASSIFICATION
    assert fork_server.run("run", str(job_dir)).returncode == EXIT_FINISHED, events_of(job_dir)[-1]
    first, second = ({part.name for part in event.parts if part.trainable} for event in events_of(job_dir, StageBegan))
    assert first == {"head"}
    assert second > {"head"}
