"""What somebody asks for becomes the spec that they meant."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from bot.cogs.wishes import Wishes, make_spec
from bot.config import Config
from bot.errors import JobRefused
from trainer.protocol.settings import TaskKind
from trainer.protocol.spec import SpecError


def wishes(**said: Any) -> Wishes:
    nothing = {field.name: None for field in dataclasses.fields(Wishes)}
    return Wishes(**{**nothing, "preset": "lora", **said})


def spec(**said: Any) -> Any:
    return make_spec(wishes(**said), Config(), dataset_name="fox", folder="/data")


def test_a_class_prompt_turns_class_pictures_on() -> None:
    assert spec(class_prompt=" a photo of a fox ").prior.class_prompt == "a photo of a fox"
    assert not spec().prior.is_on


def test_a_preset_for_one_kind_of_model_brings_its_own_base() -> None:
    classifier = spec(preset="classifier")

    assert classifier.task is TaskKind.CLASSIFICATION
    assert classifier.base.source == "microsoft/resnet-18"
    assert spec(preset="lora").base.source == "tiny"


def test_an_unknown_base_is_refused_for_every_preset() -> None:
    for preset in ("lora", "classifier"):
        with pytest.raises(JobRefused, match="There is no base model"):
            spec(preset=preset, base="sd9")


def test_the_epochs_of_a_staged_preset_are_those_of_its_stages() -> None:
    assert spec(preset="staged").training.epochs == 20

    with pytest.raises(SpecError, match="contradicts the stages, which have 20 epochs"):
        spec(preset="staged", epochs=3)


def test_a_draft_of_a_bot_that_knew_less_can_still_be_read() -> None:
    assert Wishes.from_json('{"preset": "lora", "epochs": 3}').class_prompt is None
