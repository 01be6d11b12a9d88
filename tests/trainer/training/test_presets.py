"""Every preset that ships trains on the small model that ships, from its own settings to files that load back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.drawn_classes import draw_class_folders
from tests.trainer.random_classifier import make_random_resnet
from trainer.dataset.preparing.prepare import prepare
from trainer.protocol.events import EXIT_FINISHED, Exported, StageBegan, parse_event
from trainer.protocol.presets import preset_named, presets, spec_from_preset
from trainer.protocol.settings import TaskKind
from trainer.training.run import run

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

#: What makes a run short and changes nothing that a preset is about.
SHORT: dict[str, Any] = {
    "validation": {"timesteps": 1, "draws": 1, "train_images": 2},
    "samples": {"steps": 1, "prompts": ["a red egg"], "unrelated_prompts": []},
}


def one_epoch_each(preset: str, base: str) -> dict[str, Any]:
    """The stages of a preset cut to one epoch each, blocks joining at once; without stages one epoch."""
    settings = preset_named(preset).settings_for(base)
    if "stages" not in settings:
        return {"training": {"epochs": 1, "repeats": 1}}
    stages = [
        {**stage, "epochs": 1, "unfreeze": [{**each, "from_epoch": 1} for each in stage.get("unfreeze", ())]}
        for stage in settings["stages"]
    ]
    return {"training": {"epochs": len(stages), "repeats": 1}, "stages": stages}


@pytest.mark.parametrize("preset", [name for name in presets() if name != "classifier"])
def test_a_preset_trains_on_the_small_model(preset: str, dataset: Path, tmp_path: Path) -> None:
    prior = {"images": 2, "steps": 1} if "prior" in preset_named(preset).settings_for("tiny") else {}
    changes = {**SHORT, **one_epoch_each(preset, "tiny"), **({"prior": prior} if prior else {})}
    spec = spec_from_preset(preset, dataset=str(dataset), base="tiny", changes=changes)
    spec.write(tmp_path / "job")

    assert run(tmp_path / "job") == EXIT_FINISHED, said(tmp_path / "job")[-1]

    assert [event.format for event in said(tmp_path / "job") if isinstance(event, Exported)]


def test_the_classifier_preset_trains_head_and_last_blocks(tmp_path: Path) -> None:
    base = make_random_resnet(tmp_path / "base")
    prepare(
        [draw_class_folders(tmp_path / "pictures", {"circle": 10, "square": 10})], tmp_path / "dataset", resolution=64
    )
    changes = {**one_epoch_each("classifier", "microsoft/resnet-18"), "base": {"source": str(base)}}
    spec = spec_from_preset("classifier", dataset=str(tmp_path / "dataset"), changes=changes)
    spec.write(tmp_path / "job")

    assert spec.task is TaskKind.CLASSIFICATION
    assert run(tmp_path / "job") == EXIT_FINISHED, said(tmp_path / "job")[-1]

    first, second = (event for event in said(tmp_path / "job") if isinstance(event, StageBegan))
    trained = [{part.name for part in stage.parts if part.trainable} for stage in (first, second)]
    assert trained[0] == {"head"}
    assert trained[1] > {"head"}


def said(job_dir: Path) -> list[Any]:
    return [parse_event(line) for line in (job_dir / "events.jsonl").read_bytes().splitlines()]
