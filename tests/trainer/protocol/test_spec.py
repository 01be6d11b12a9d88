"""Settings are complete, checked, and refused in sentences; old files can still be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.trainer.protocol.golden_files import holds
from trainer.protocol.augmentation import FLIPS, RANGES, Augmenter, AugmenterName
from trainer.protocol.checks import doubtful_settings, idle_settings
from trainer.protocol.mix import parse_part
from trainer.protocol.presets import preset_named, presets, spec_from_preset
from trainer.protocol.spec import Spec, SpecError, allowed_range, known_settings, make_spec, read_spec

GOLDEN = Path(__file__).parent / "golden"


def test_every_preset_makes_a_valid_spec_for_every_base_it_knows() -> None:
    for preset in presets().values():
        for base in {"tiny", "owner/name", *preset.bases}:
            spec = spec_from_preset(preset.name, dataset="/data", base=base)
            assert spec.preset == preset.name
            assert spec.base.source == base


def test_the_default_preset_comes_first_and_each_has_a_sentence() -> None:
    assert next(iter(presets())) == "lora"
    assert all(preset.summary.endswith(".") for preset in presets().values())


def custom(*augmenters: dict[str, object]) -> dict[str, object]:
    return {"preset": "custom", "custom": list(augmenters)}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"training": {"epoch": 3}}, "training.epoch is not a setting; did you mean training.epochs?"),
        ({"training": {"learning_rate": 50}}, "training.learning_rate 50 is outside 1e-07 – 10."),
        ({"training": {"learning_rate": 0.5}}, "learning_rate 0.5 is too high for adamw; take 0.01 at most."),
        ({"training": {"epochs": 0}}, "training.epochs 0 is outside 1 – 1000."),
        ({"method": {"targets": "everything"}}, "is not one of 'attention', 'linear', 'conv', 'all' or 'pattern'."),
        ({"method": {"rank": "many"}}, "method.rank 'many'"),
        ({"name": "Fox LoRA!"}, "must be 1–40 small letters"),
        (
            {"augmentation": {"preset": "custom"}},
            "augmentation: the preset custom needs a list of augmenters in custom.",
        ),
        (
            {"augmentation": {"preset": "art", "custom": [{"name": "flip_vertical"}]}},
            "augmentation: custom is only for the preset custom, and the preset is art.",
        ),
        (
            {"augmentation": custom({"name": "rotate", "low": -200, "high": 5})},
            "augmentation.custom.0: rotate from -200 to 5 is not a range within -180 – 180 degrees.",
        ),
        ({"augmentation": custom({"name": "hue", "low": 5, "high": -5})}, "hue from 5 to -5 is not a range"),
        ({"augmentation": custom({"name": "jpeg"})}, "jpeg needs low and high, within 10 – 100 JPEG quality."),
        (
            {"augmentation": custom({"name": "flip_horizontal", "low": 0, "high": 1})},
            "flip_horizontal takes no low and high, only a probability.",
        ),
        (
            {"augmentation": custom({"name": "flip_vertical", "chance": 1})},
            "augmentation.custom.0.chance is not a setting",
        ),
        (
            {"augmentation": custom({"name": "flip_vertical", "probability": 3})},
            "augmentation.custom.0.probability 3 is outside 0 – 1.",
        ),
        ({"mix": [{"dataset": "/b", "repeats": 2, "weight": 0.5}]}, "mix.0: repeats and weight both say how often"),
        ({"mix": [{"dataset": "/b", "weight": 1}]}, "mix.0.weight 1 is outside 0 – 1."),
        (
            {"mix": [{"dataset": "/b", "weight": 0.5}, {"dataset": "/c", "weight": 0.6}]},
            "The weights of mix add up to 1.1; they must leave a share to /data.",
        ),
        ({"mix": [{"dataset": "/data"}]}, "/data is there twice; set its repeats instead."),
        ({"mix": [{"dataset": "/b", "repeat": 2}]}, "mix.0.repeat is not a setting; did you mean mix.0.repeats?"),
        ({"mix": [{"dataset": "/b", "role": "regularization", "trigger": "x"}]}, "take its trigger away."),
    ],
)
def test_a_bad_setting_is_named_with_what_is_allowed(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(SpecError) as refusal:
        spec_from_preset("lora", dataset="/data", base="tiny", changes=changes)

    assert sentence in str(refusal.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(SpecError) as refusal:
        make_spec({"dataset": "/d", "training": {"epochs": 0, "rate": 1}, "samples": {"steps": 999}})

    assert all(name in str(refusal.value) for name in ("training.epochs", "training.rate", "samples.steps"))


def test_an_unknown_preset_is_refused_with_the_nearest() -> None:
    with pytest.raises(SpecError, match="Did you mean lora"):
        preset_named("lorra")


@pytest.mark.parametrize("name", AugmenterName)
def test_every_augmenter_takes_its_whole_range(name: AugmenterName) -> None:
    lowest, highest, _ = RANGES.get(name, (None, None, ""))

    assert (name in FLIPS) == (lowest is None)
    assert Augmenter(name=name, low=lowest, high=highest).high == highest


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"augmentation": {"variants": 2}}, "augmentation.variants"),
        ({"augmentation": {"flip": "on"}}, "augmentation.flip"),
        ({"training": {"keep_tags": 2}}, "training.keep_tags"),
        ({"training": {"regularization_weight": 0.5}}, "training.regularization_weight"),
        ({"training": {"text_encoder_learning_rate": 1e-4}}, "training.text_encoder_learning_rate"),
    ],
)
def test_a_setting_that_does_nothing_is_told(changes: dict[str, object], words: str) -> None:
    (sentence,) = idle_settings(spec_from_preset("lora", dataset="/data", base="tiny", changes=changes))

    assert words in sentence


def test_settings_that_do_something_are_not_told() -> None:
    changes = {
        "augmentation": {"preset": "light", "flip": "on"},
        "training": {"tag_shuffle": True, "keep_tags": 2, "regularization_weight": 0.5},
        "mix": [{"dataset": "/b", "role": "regularization"}],
    }

    assert list(idle_settings(spec_from_preset("lora", dataset="/data", base="tiny", changes=changes))) == []


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("/data/cats", {"dataset": "/data/cats"}),
        ("/data/cats:repeats=3", {"dataset": "/data/cats", "repeats": "3"}),
        (
            "cats:weight=0.3:role=regularization",
            {"dataset": "cats", "weight": "0.3", "role": "regularization"},
        ),
        ("C:/cats:trigger=zork", {"dataset": "C:/cats", "trigger": "zork"}),
        ("/a=b/c:/d=e", {"dataset": "/a=b/c:/d=e"}),
    ],
)
def test_a_part_of_a_mix_can_be_written_in_one_word(text: str, part: dict[str, str]) -> None:
    assert parse_part(text) == part
    assert make_spec({"dataset": "/data", "mix": [part]}).mix[0].dataset == part["dataset"]


def test_a_spec_survives_its_file(tmp_path: Path) -> None:
    changes = {
        "samples": {"prompts": ["a", "b"]},
        "augmentation": custom({"name": "rotate", "low": -5, "high": 5, "probability": 0.5}),
        "mix": [{"dataset": "/b", "weight": 0.3, "trigger": "fox"}, {"dataset": "/c", "role": "regularization"}],
    }
    spec = spec_from_preset("lora", dataset="/data", base="tiny", changes=changes)

    spec.write(tmp_path)

    assert read_spec(tmp_path) == spec


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 99, "dataset": "/d"}', '{"dataset": ""}'])
def test_a_file_that_is_no_spec_is_refused_in_a_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "spec.json").write_text(content, encoding="utf-8")

    with pytest.raises(SpecError) as refusal:
        read_spec(tmp_path)

    assert str(refusal.value).endswith(".")


def test_numeric_settings_have_a_range_that_people_can_be_shown() -> None:
    assert allowed_range("training.epochs") == (1, 1000)
    assert allowed_range("training.learning_rate") == (1e-7, 10)
    assert allowed_range("method.alpha") == (0, 1024)
    assert allowed_range("mix.0.repeats") == (1, 1000)


def test_known_settings_are_dotted_names() -> None:
    assert {"training.epochs", "method.rank", "early_stopping.patience", "augmentation.custom", "mix", "name"} <= set(
        known_settings()
    )


def test_a_spec_of_version_2_can_still_be_read() -> None:
    content = json.loads((GOLDEN / "spec-v2.json").read_text(encoding="utf-8"))

    spec = make_spec(content)

    assert holds(json.loads(spec.model_dump_json()), content)
    assert set(content) <= set(Spec.model_fields)


def test_a_spec_of_version_1_means_the_same_under_its_new_names() -> None:
    content = json.loads((GOLDEN / "spec-v1.json").read_text(encoding="utf-8"))
    content["adapter"]["rank"] = 8
    content["training"]["snr_gamma"] = 5.0

    spec = make_spec(content)

    assert (spec.version, spec.method.kind, spec.method.rank, spec.objective.snr_gamma) == (2, "lora", 8, 5.0)
    same = {name: value for name, value in content.items() if name not in {"version", "adapter"}}
    del same["training"]["snr_gamma"]
    # Version 1 had four pictures in memory at most where nothing was said.
    same["training"]["micro_batch_size"] = 4
    assert holds(json.loads(spec.model_dump_json()), same)


def test_what_a_spec_of_version_1_did_not_know_is_off() -> None:
    spec = make_spec(json.loads((GOLDEN / "spec-v1.json").read_text(encoding="utf-8")))

    assert not spec.augmentation.is_on
    assert spec.mix == ()
    assert not spec.training.tag_shuffle
    assert spec.training.regularization_weight == 1
    assert spec.early_stopping.smoothing == 0
    assert spec.validation.train_images == 0
    assert spec.samples.unrelated_prompts == ()
    assert list(idle_settings(spec)) == []


def test_a_spec_without_stages_has_one_as_training_says() -> None:
    (stage,) = make_spec({"dataset": "/d", "training": {"epochs": 7, "learning_rate": 3e-4}}).plan

    assert (stage.epochs, stage.learning_rate, stage.optimizer, stage.schedule) == (7, 3e-4, "adamw", "cosine")


def test_a_stage_keeps_what_it_says_and_takes_the_rest_from_training() -> None:
    content = {
        "dataset": "/d",
        "training": {"learning_rate": 1e-4, "optimizer": "sgd", "optimizer_arguments": {"momentum": 0.8}},
        "stages": [{"epochs": 10}, {"epochs": 5, "learning_rate": 1e-5, "optimizer": "lion"}],
    }

    spec = make_spec(content)
    first, second = spec.plan

    assert spec.training.epochs == 15
    assert (first.learning_rate, first.optimizer, first.optimizer_arguments) == (1e-4, "sgd", {"momentum": 0.8})
    assert (second.learning_rate, second.optimizer, second.optimizer_arguments) == (1e-5, "lion", {})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {"epochs": 3}, "stages": [{"epochs": 4}]}, "training.epochs 3 contradicts the stages"),
        ({"stages": [{"epochs": 2, "unfreeze": [{"blocks": "mid_block", "from_epoch": 3}]}]}, "take 2 at most"),
        ({"stages": [{"epochs": 2, "shares": [0.5, 0.5]}]}, "Stage 1 has 2 shares for 1 datasets"),
        ({"stages": [{"epochs": 2, "learning_rate": 0.02}]}, "is too high for adamw; take 0.01 at most"),
        ({"method": {"targets": "pattern"}}, "go together"),
        ({"method": {"kind": "textual_inversion"}}, "set training.trigger"),
        ({"objective": {"debiased": True, "snr_gamma": 5}}, "give one of them"),
        ({"objective": {"noise_offset": 0.1, "pyramid_noise": 0.3}}, "give one of them"),
        ({"objective": {"zero_terminal_snr": True, "prediction": "epsilon"}}, "objective.prediction to v_prediction"),
        ({"task": "classification"}, "set method.kind to full"),
        ({"split": {"kind": "fold", "fold": 6}}, "split: there is no fold 6 of 5."),
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_what_to_set(
    changes: dict[str, object], words: str
) -> None:
    with pytest.raises(SpecError) as refusal:
        make_spec({"dataset": "/data", **changes})

    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": {"kind": "full", "rank": 8}}, "method.rank"),
        ({"method": {"kind": "ia3", "dropout": 0.1}}, "method.dropout"),
        ({"method": {"kind": "oft", "dropout": 0.1}}, "method.dropout"),
        ({"method": {"block_size": 16}}, "method.block_size"),
        ({"method": {"factor": 4}}, "method.factor"),
        ({"method": {"vectors": 2}}, "method.vectors"),
        ({"objective": {"huber_delta": 0.5}}, "objective.huber_delta"),
        ({"objective": {"mask_floor": 0.5}}, "objective.mask_floor"),
        ({"training": {"warmup_steps": 5, "warmup_share": 0.1}}, "training.warmup_share"),
        ({"prior": {"images": 5}}, "prior.images"),
        ({"split": {"folds": 4}}, "split.folds"),
        ({"split": {"kind": "all"}}, "early_stopping"),
        ({"early_stopping": {"enabled": False, "patience": 9}}, "early_stopping.patience"),
        ({"classifier": {"dropout": 0.5}}, "classifier"),
        ({"task": "classification", "method": {"kind": "full"}, "objective": {"loss": "l1"}}, "objective"),
    ],
)
def test_a_setting_that_does_nothing_for_a_method_is_told(changes: dict[str, object], words: str) -> None:
    (sentence,) = idle_settings(make_spec({"dataset": "/data", **changes}))

    assert words in sentence


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {"optimizer": "prodigy", "learning_rate": 1e-4}}, "1 is usual"),
        ({"method": {"kind": "full"}, "training": {"learning_rate": 1e-4}}, "1e-6 to 1e-5 is usual"),
    ],
)
def test_a_setting_that_is_seldom_meant_is_told(changes: dict[str, object], words: str) -> None:
    (sentence,) = doubtful_settings(make_spec({"dataset": "/data", **changes}))

    assert words in sentence
