"""A request becomes the spec that the member meant, and survives being stored as JSON."""

from __future__ import annotations

from typing import Any

import pytest

from bot.cogs.job_request import (
    JobRequest,
    QueueOptions,
    make_draft,
    overrides,
    request_of_toml,
    slug,
    split_prompts,
)
from bot.config import Config, ModelSettings
from bot.errors import JobRefused
from bot.queue import Priority
from trainer.protocol.settings import TaskKind
from trainer.protocol.spec import SpecDraft, SpecError
from trainer.protocol.study import CompareRequest, KfoldRequest


def request(preset: str = "lora", **changes: Any) -> JobRequest:
    return JobRequest(preset=preset, **changes)


def draft(asked: JobRequest, max_epochs: int = 1000) -> SpecDraft:
    return make_draft(asked, Config(models=ModelSettings(default="tiny")), max_epochs=max_epochs)


def test_overrides_replace_settings_of_the_preset() -> None:
    asked = request(overrides=overrides({"training.epochs": 3, "method.rank": None, "prior.class_prompt": "a fox"}))

    made = draft(asked)

    assert asked.overrides == {"training.epochs": 3, "prior.class_prompt": "a fox"}
    assert (made.training.epochs, made.prior.class_prompt) == (3, "a fox")
    assert made.method.rank == draft(request()).method.rank
    assert not draft(request()).prior.is_on


def test_a_preset_for_one_kind_of_model_brings_its_own_base() -> None:
    classifier = draft(request("classifier"))

    assert classifier.task is TaskKind.CLASSIFICATION
    assert classifier.base.source == "microsoft/resnet-18"
    assert draft(request()).base.source == "tiny"


def test_a_base_brings_its_vae_and_no_member_another() -> None:
    models = ModelSettings(sources={"Own": "/own.safetensors", "Same": "/own.safetensors"}, vaes={"Own": "/vae"})
    own, same = (
        make_draft(request(base=label), Config(models=models), max_epochs=1000).base for label in ("Own", "Same")
    )

    assert (own.source, own.vae) == ("/own.safetensors", "/vae")
    assert (same.source, same.vae) == ("/own.safetensors", None)
    with pytest.raises(SpecError):
        draft(request(overrides={"base.vae": "/other"}))


@pytest.mark.parametrize("preset", ["lora", "classifier"])
def test_an_unknown_base_is_refused_for_every_preset(preset: str) -> None:
    with pytest.raises(JobRefused, match="sd9"):
        draft(request(preset, base="sd9"))


def test_more_epochs_than_allowed_are_refused() -> None:
    with pytest.raises(JobRefused, match=r"4 .* 3"):
        draft(request(overrides={"training.epochs": 4}), max_epochs=3)


def test_the_epochs_of_a_staged_preset_are_those_of_its_stages() -> None:
    assert draft(request("staged")).training.epochs == 20

    with pytest.raises(SpecError, match="20 epochs"):
        draft(request("staged", overrides={"training.epochs": 3}))


def test_a_draft_becomes_a_spec_with_its_dataset() -> None:
    made = draft(request(name="My Fox!"))

    assert made.with_dataset("/data").name == "my-fox"
    assert made.with_dataset("/data", name="momo").name == "momo"
    assert made.with_dataset("/data").dataset == "/data"
    assert made.with_dataset("/data").method == made.method


@pytest.mark.parametrize("study", [None, KfoldRequest(folds=3), CompareRequest(vary=("method.rank=8,32",))])
def test_a_request_is_the_same_after_it_was_stored(study: KfoldRequest | CompareRequest | None) -> None:
    asked = request(
        base="tiny",
        name="fox",
        overrides={
            "training.learning_rate": 1e-4,
            "samples.prompts": ["a fox", "a dog"],
            "early_stopping.enabled": False,
        },
        queue=QueueOptions(priority=Priority.HIGH, gpus=2, run_after=1.5),
        study=study,
    )

    assert JobRequest.model_validate_json(asked.model_dump_json()) == asked
    assert asked.gpus == (2 if study is None else 0)


@pytest.mark.parametrize("text", ["seed = " + "9" * 5000, "seed = " + "[" * 2000, "seed =", "seed = 1 \xff"])
def test_a_settings_file_that_cannot_be_parsed_is_refused(text: str) -> None:
    with pytest.raises(JobRefused):
        request_of_toml(text.encode("latin-1"))


def test_prompts_and_names_are_read_as_members_type_them() -> None:
    assert split_prompts("a fox | | a fox in snow ") == ["a fox", "a fox in snow"]
    assert [slug(name) for name in ("My Fox!", "!!!")] == ["my-fox", "!!!"]
