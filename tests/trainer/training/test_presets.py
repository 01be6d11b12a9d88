"""Every preset fits the base that ships; presets with a method or task that no other test trains are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.drawn_classes import draw_class_folders
from tests.trainer.fork_server import ForkServer
from tests.trainer.job_events import events_of
from tests.trainer.random_classifier import make_random_resnet
from trainer.dataset.preparing.prepare import prepare
from trainer.exchange.job_dir import write_spec
from trainer.models.base import load_base
from trainer.models.methods import attach
from trainer.protocol.events import EXIT_FINISHED, Exported, StageBegan
from trainer.protocol.presets import preset_named, presets, spec_from_preset
from trainer.protocol.settings import TaskKind
from trainer.training.optimizers import check_optimizer_arguments
from trainer.training.schedules import check_schedule_arguments
from trainer.training.stages import check_patterns, parameter_groups, plan_stages

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
