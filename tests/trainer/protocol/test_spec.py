"""Specs: complete, validated, and refused in sentences (golden files)."""

from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import trainer.protocol.presets
from tests.golden import check_sentences
from tests.trainer.protocol.golden_files import holds
from trainer.commands.training_commands import parse_mix_part
from trainer.exchange.job_dir import read_spec, write_spec
from trainer.protocol.advice import doubtful_settings, idle_settings
from trainer.protocol.augmentation import FLIPS, RANGES, Augmenter, AugmenterName
from trainer.protocol.presets import DEFAULT_PRESET, PresetAudience, preset_named, presets, spec_from_preset
from trainer.protocol.setting_problems import SHORT_NAMES, SettingProblem, dotted_names, nested, with_short_names
from trainer.protocol.settings import Method
from trainer.protocol.spec import (
    Spec,
    SpecError,
    allowed_range,
    at_resolution,
    make_spec,
    with_rates_divided,
)

GOLDEN = Path(__file__).parent / "golden"
#: What some presets need.
ABOUT_IMAGES: dict[str, Any] = {"training": {"trigger": "zkz"}, "prior": {"class_prompt": "a photo of an egg"}}


def test_every_preset_makes_a_valid_spec_for_every_base_it_knows() -> None:
    for preset in presets().values():
        for base in {"tiny", "owner/name", *preset.bases}:
            spec = spec_from_preset(preset.name, dataset="/data", base=base, changes=ABOUT_IMAGES)
            assert (spec.preset, spec.base.source) == (preset.name, base)


def test_no_preset_has_a_setting_that_gets_a_warning() -> None:
    for preset in presets().values():
        # What is asked of the user for some presets has no effect for others.
        changes = {group: settings for group, settings in ABOUT_IMAGES.items() if f"{group}." in " ".join(preset.needs)}
        spec = spec_from_preset(preset.name, dataset="/data", base="owner/name", changes=changes)
        assert [*idle_settings(spec), *doubtful_settings(spec)] == [], preset.name


def test_what_depends_on_the_images_is_left_to_the_user() -> None:
    for preset in presets().values():
        for base in {"tiny", "owner/name", *preset.bases}:
            settings = preset.settings_for(base)
            assert not settings.get("training", {}).get("trigger")
            assert not settings.get("prior", {}).get("class_prompt")
            assert not settings.get("samples", {}).get("prompts")


@pytest.mark.parametrize("name", ["dreambooth", "dreambooth_full", "textual_inversion"])
def test_a_preset_that_needs_to_know_about_the_images_asks(name: str) -> None:
    needs = preset_named(name).needs
    assert "training.trigger" in needs
    for need in needs:
        group, _, setting = need.partition(".")
        changes = {**ABOUT_IMAGES, group: {**ABOUT_IMAGES[group], setting: ""}}
        with pytest.raises(SpecError, match=re.escape(need)):
            spec_from_preset(name, dataset="/data", changes=changes)


def test_the_default_preset_comes_first_and_those_for_experts_after_those_for_designers() -> None:
    assert DEFAULT_PRESET == next(iter(presets())) == "lora"
    audiences = dict.fromkeys(preset.audience for preset in presets().values())
    assert list(audiences) == [PresetAudience.DESIGNERS, PresetAudience.EXPERTS, PresetAudience.DEMO]


def test_every_preset_file_is_offered() -> None:
    files = {path.stem for path in (Path(trainer.protocol.presets.__file__).parent / "presets").glob("*.toml")}
    assert files == set(presets())


@pytest.mark.parametrize("short", SHORT_NAMES)
def test_a_short_name_is_a_setting_and_stands_in_sentences_for_it(short: str) -> None:
    assert SHORT_NAMES[short] in dotted_names(Spec)
    assert with_short_names(f"{SHORT_NAMES[short]} 3 is wrong, and so is {SHORT_NAMES[short]}.") == (
        f"{short} 3 is wrong, and so is {short}."
    )
    assert with_short_names(f"stages.0.{SHORT_NAMES[short]} {SHORT_NAMES[short]}_x") == (
        f"stages.0.{SHORT_NAMES[short]} {SHORT_NAMES[short]}_x"
    )


#: Settings that are refused, and what could stand there instead.
PROBLEMS: list[tuple[dict[str, Any], SettingProblem]] = [
    ({"training": {"epochs": 0}}, SettingProblem(name="training.epochs", nearest=1)),
    ({"training": {"learning_rate": 0.5}}, SettingProblem(name="training.learning_rate", nearest=0.01)),
    ({"training": {"schedule": "cosin"}}, SettingProblem(name="training.schedule", nearest="cosine")),
    ({"training": {"optimizer": "adamw9bit"}}, SettingProblem(name="training.optimizer", nearest="adamw_8bit")),
    ({"training": {"trigger": "z" * 60}}, SettingProblem(name="training.trigger", nearest="z" * 50)),
    ({"training": {"epoch": 3}}, SettingProblem(name="training.epoch", meant="training.epochs")),
    ({"method": {"rank": "many"}}, SettingProblem(name="method.rank")),
    ({"stages": [{"epochs": 1, "learning_rate": 0.5}]}, SettingProblem(name="stages.0.learning_rate", nearest=0.01)),
    ({"training": {"resolution": 500}}, SettingProblem(name="training.resolution", nearest=496)),
    ({"training": {"resolution": -5}}, SettingProblem(name="training.resolution", nearest=64)),
    ({"stages": 3}, SettingProblem(name="stages")),
    ({"training": {"epochs": date(2026, 12, 1)}}, SettingProblem(name="training.epochs")),
    (nested({"training": 3, "training.epochs": 4}), SettingProblem(name="training")),
]


@pytest.mark.parametrize(("changes", "problem"), PROBLEMS)
def test_a_refusal_names_the_setting_and_the_nearest_value(changes: dict[str, Any], problem: SettingProblem) -> None:
    with pytest.raises(SpecError) as refusal:
        make_spec({"dataset": "/data", **changes})
    assert refusal.value.problems == (problem,)


def test_a_contradiction_names_both_settings() -> None:
    with pytest.raises(SpecError) as refusal:
        make_spec({"dataset": "/data", "objective": {"debiased": True, "snr_gamma": 5}})
    assert {each.name for each in refusal.value.problems} == {"objective.debiased", "objective.snr_gamma"}


def test_a_preset_that_lacks_settings_names_them() -> None:
    with pytest.raises(SpecError) as refusal:
        spec_from_preset("dreambooth", dataset="/data")
    assert [each.name for each in refusal.value.problems] == ["training.trigger", "prior.class_prompt"]
    with pytest.raises(SpecError):
        spec_from_preset("dreambooth", dataset="/data", changes={"prior": 3})


def custom(*augmenters: dict[str, object]) -> dict[str, object]:
    return {"preset": "custom", "custom": list(augmenters)}


#: Settings that are refused; the golden file has the sentence of each.
REFUSED: list[dict[str, Any]] = [
    {"training": {"epoch": 3}},
    {"training": {"learning_rate": 50}},
    {"training": {"learning_rate": 0.5}},
    {"training": {"epochs": 0}},
    {"training": {"resolution": 500}},
    {"training": {"learning_rate": float("nan")}},
    {"training": {"optimizer_arguments": 3}},
    {"training": 3},
    {"samples": {"prompts": [""]}},
    {"method": {"targets": "everything"}},
    {"method": {"rank": "many"}},
    {"method": {"kind": "dora", "init": "pissa"}},
    {"method": {"init": "pissa", "start_from": "egg.safetensors"}},
    {"method": {"init": "pissa", "conv_rank": 200}},
    {"name": "Fox LoRA!"},
    {"augmentation": {"preset": "custom"}},
    {"augmentation": {"preset": "art", "custom": [{"name": "flip_vertical"}]}},
    {"augmentation": custom({"name": "rotate", "low": -200, "high": 5})},
    {"augmentation": custom({"name": "hue", "low": 5, "high": -5})},
    {"augmentation": custom({"name": "jpeg"})},
    {"augmentation": custom({"name": "flip_horizontal", "low": 0, "high": 1})},
    {"augmentation": custom({"name": "flip_vertical", "chance": 1})},
    {"augmentation": custom({"name": "flip_vertical", "probability": 3})},
    {"mix": [{"dataset": "/b", "repeats": 2, "weight": 0.5}]},
    {"mix": [{"dataset": "/b", "weight": 1}]},
    {"mix": [{"dataset": "/b", "weight": 0.5}, {"dataset": "/c", "weight": 0.6}]},
    {"mix": [{"dataset": "/data"}]},
    {"mix": [{"dataset": "/b", "repeat": 2}]},
    {"mix": [{"dataset": "/b", "role": "regularization", "trigger": "x"}]},
    {"training": {"epochs": 3}, "stages": [{"epochs": 4}]},
    {"stages": [{"epochs": 2, "unfreeze": [{"blocks": "mid_block", "from_epoch": 3}]}]},
    {"stages": [{"epochs": 2, "shares": [0.5, 0.5]}]},
    {"mix": [{"dataset": "/b"}], "stages": [{"epochs": 2, "shares": [0.5, 0.2]}]},
    {"stages": [{"epochs": 2, "learning_rate": 0.02}]},
    {"method": {"targets": "pattern"}},
    {"method": {"kind": "textual_inversion"}},
    {"method": {"kind": "textual_inversion", "text_encoder": True}, "training": {"trigger": "zkz"}},
    {"base": {"quantization": "int8"}, "method": {"kind": "full"}},
    {"base": {"quantization": "int4"}},
    {"training": {"bf16_weights": True}},
    {"training": {"bf16_weights": True, "fused_backward": True, "precision": "fp32"}},
    {"training": {"bf16_weights": True, "fused_backward": True, "ema_decay": 0.99}},
    {"training": {"fused_backward": True, "precision": "fp16"}},
    {"training": {"fused_backward": True, "optimizer": "lion"}},
    {"objective": {"debiased": True, "snr_gamma": 5}},
    {"objective": {"debiased": True, "prediction": "v_prediction"}},
    {"objective": {"noise_offset": 0.1, "pyramid_noise": 0.3}},
    {"objective": {"zero_terminal_snr": True, "prediction": "epsilon"}},
    {"task": "classification"},
    {"split": {"kind": "fold", "fold": 6}},
    {"training": {"epochs": 0, "rate": 1}, "samples": {"steps": 999}},
    # As kohya's scripts name them.
    {"training": {"max_train_steps": 1000}},
    {"training": {"lr": 1e-4}},
    {"training": {"network_dim": 16}},
    {"method": {"network_dim": 16}},
    # A setting of another group.
    {"training": {"rank": 16}},
    {"method": {"alpha": 0}},
    {"method": {"alpha": 2000}},
    {"training": {"optimizer": "adamww"}},
    {"training": {"optimizer": "torch.optim.lr_scheduler.StepLR"}},
    {"training": {"optimizer": "torch.RAdam", "learning_rate": 2}},
    {"base": {"max_token_length": 300}},
    {"method": {"block_ranks": [{"blocks": "mid_block"}]}},
    {"early_stopping": {"smoothing": 1}},
    {"stages": "lora"},
]


def test_refused_settings_are_named_with_what_is_allowed() -> None:
    sentences = {}
    for changes in REFUSED:
        with pytest.raises(SpecError) as refusal:
            make_spec({"dataset": "/data", **changes})
        sentences[json.dumps(changes)] = refusal.value
    check_sentences(GOLDEN / "refused_settings.txt", sentences)


@pytest.mark.parametrize(
    ("settings", "exported"),
    [
        ({"rank": 4}, {"rank": 8, "alpha": 8.0}),
        ({"rank": 4, "alpha": 2.0}, {"rank": 8, "alpha": 4.0}),
        # 6 / sqrt(4) is 24 / 8.
        ({"rank": 4, "alpha": 6.0, "rank_stabilized": True}, {"rank": 8, "alpha": 24.0}),
        (
            {"conv_rank": 2, "block_ranks": [{"blocks": "a", "rank": 3, "alpha": 1}, {"blocks": "b", "rank": 0}]},
            {
                "rank": 32,
                "alpha": 32.0,
                "conv_rank": 4,
                "conv_alpha": 4.0,
                "block_ranks": [{"blocks": "a", "rank": 6, "alpha": 2.0}, {"blocks": "b", "rank": 0}],
            },
        ),
    ],
)
def test_the_files_of_a_pissa_are_of_a_lora_of_twice_the_rank_and_the_same_scale(
    settings: dict[str, Any], exported: dict[str, Any]
) -> None:
    assert Method.model_validate({"init": "pissa", **settings}).exported == Method.model_validate(exported)
    assert Method.model_validate(settings).exported == Method.model_validate(settings)


def test_a_single_prompt_needs_no_list() -> None:
    assert make_spec({"dataset": "/data", "samples": {"prompts": "a cat"}}).samples.prompts == ("a cat",)


def test_an_unknown_preset_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(SpecError, match="Did you mean lora"):
        preset_named("lorra")


@pytest.mark.parametrize("name", AugmenterName)
def test_every_augmenter_accepts_its_whole_range(name: AugmenterName) -> None:
    lowest, highest, _ = RANGES.get(name, (None, None, ""))

    assert (name in FLIPS) == (lowest is None)
    assert Augmenter(name=name, low=lowest, high=highest).high == highest


#: Settings without an effect, each in a spec in which nothing else is idle; the golden file has the sentences.
IDLE: list[dict[str, Any]] = [
    {"augmentation": {"variants": 2}},
    {"augmentation": {"flip": "on"}},
    {"training": {"keep_tags": 2}},
    {"training": {"regularization_weight": 0.5}},
    {"training": {"text_encoder_learning_rate": 1e-4}},
    {"training": {"text_encoder_2_learning_rate": 1e-4}},
    {"method": {"kind": "loha"}, "training": {"lora_plus_ratio": 16}},
    {"training": {"warmup_steps": 5, "warmup_share": 0.1}},
    {"method": {"kind": "full", "rank": 8}},
    {"method": {"kind": "ia3", "dropout": 0.1}},
    {"method": {"kind": "oft", "dropout": 0.1}},
    {"method": {"block_size": 16}},
    {"method": {"kind": "oft", "conv_rank": 8}},
    {"method": {"kind": "ia3", "block_ranks": [{"blocks": "mid_block", "rank": 8}]}},
    {"method": {"conv_alpha": 8}},
    {"method": {"kind": "lokr", "rank_stabilized": True}},
    {"method": {"factor": 4}},
    {"method": {"vectors": 2}},
    {"method": {"kind": "textual_inversion", "targets": "all"}, "training": {"trigger": "zkz"}},
    {"training": {"fused_backward": True}},
    {
        "task": "classification",
        "method": {"kind": "full"},
        "training": {"fused_backward": True, "bf16_weights": True},
    },
    {"objective": {"huber_delta": 0.5}},
    {"objective": {"mask_floor": 0.5}},
    {"prior": {"images": 5}},
    {"split": {"folds": 4}},
    {"split": {"kind": "all"}},
    {"early_stopping": {"enabled": False, "patience": 9}},
    {"classifier": {"dropout": 0.5}},
    {"task": "classification", "method": {"kind": "full"}, "objective": {"loss": "l1"}},
    {"task": "classification", "method": {"kind": "full"}, "prior": {"class_prompt": "a photo of a dog"}},
    {"task": "classification", "method": {"kind": "full"}, "training": {"tag_shuffle": True}},
    {"task": "classification", "method": {"kind": "full"}, "training": {"tag_dropout": 0.1}},
    {"task": "classification", "method": {"kind": "full", "targets": "linear"}},
    {"task": "classification", "method": {"kind": "full"}, "validation": {"timesteps": 2}},
    {"task": "classification", "method": {"kind": "full"}, "samples": {"prompts": ["a fox"]}},
]


def test_each_setting_without_an_effect_gets_one_warning() -> None:
    sentences = {}
    for changes in IDLE:
        [sentences[json.dumps(changes)]] = idle_settings(make_spec({"dataset": "/data", **changes}))
    check_sentences(GOLDEN / "idle_settings.txt", sentences)


def test_settings_with_an_effect_get_no_warning() -> None:
    changes = {
        "augmentation": {"preset": "light", "flip": "on"},
        "training": {"tag_shuffle": True, "keep_tags": 2, "regularization_weight": 0.5},
        "mix": [{"dataset": "/b", "role": "regularization"}],
    }
    spec = spec_from_preset("lora", dataset="/data", base="tiny", changes=changes)

    assert list(idle_settings(spec)) == []
    assert list(doubtful_settings(spec)) == []


#: Settings that are rarely intended; the golden file has the sentences.
DOUBTFUL: list[dict[str, Any]] = [
    {"training": {"optimizer": "prodigy", "learning_rate": 1e-4}},
    {"training": {"optimizer": "lion", "learning_rate": 1e-4}},
    {"training": {"optimizer": "adam"}},
    {"training": {"optimizer": "schedule_free_adamw"}},
    {"training": {"optimizer": "schedule_free_adamw", "schedule": "constant", "ema_decay": 0.9}},
    {"method": {"kind": "full"}, "training": {"learning_rate": 1e-4}},
    {"objective": {"zero_terminal_snr": True, "snr_gamma": 5, "prediction": "v_prediction"}},
]


def test_each_doubtful_setting_gets_one_warning() -> None:
    sentences = {}
    for changes in DOUBTFUL:
        [sentences[json.dumps(changes)]] = doubtful_settings(make_spec({"dataset": "/data", **changes}))
    check_sentences(GOLDEN / "doubtful_settings.txt", sentences)


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
def test_a_part_of_a_mix_can_be_written_as_one_argument(text: str, part: dict[str, str]) -> None:
    assert parse_mix_part(text) == part
    assert make_spec({"dataset": "/data", "mix": [part]}).mix[0].dataset == part["dataset"]


def test_a_spec_is_read_as_it_was_written(tmp_path: Path) -> None:
    changes = {
        "samples": {"prompts": ["a", "b"]},
        "augmentation": custom({"name": "rotate", "low": -5, "high": 5, "probability": 0.5}),
        "mix": [{"dataset": "/b", "weight": 0.3, "trigger": "fox"}, {"dataset": "/c", "role": "regularization"}],
    }
    spec = spec_from_preset("lora", dataset="/data", base="tiny", changes=changes)

    write_spec(tmp_path, spec)

    assert read_spec(tmp_path) == spec


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 99, "dataset": "/d"}', '{"dataset": ""}'])
def test_an_invalid_spec_file_is_refused_in_a_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "spec.json").write_text(content, encoding="utf-8")

    with pytest.raises(SpecError) as refusal:
        read_spec(tmp_path)

    assert str(refusal.value).endswith(".")


def test_numeric_settings_have_a_range() -> None:
    assert allowed_range("training.epochs") == (1, 1000)
    assert allowed_range("training.learning_rate") == (1e-7, 10)
    assert allowed_range("method.alpha") == (0, 1024)
    assert allowed_range("mix.0.repeats") == (1, 1000)


def test_settings_have_dotted_names() -> None:
    assert {"training.epochs", "method.rank", "early_stopping.patience", "augmentation.custom", "mix", "name"} <= set(
        dotted_names(Spec)
    )


def test_a_spec_of_version_1_can_be_read() -> None:
    content = json.loads((GOLDEN / "spec-v1.json").read_text(encoding="utf-8"))

    spec = make_spec(content)

    assert holds(json.loads(spec.model_dump_json()), content)
    assert set(content) <= set(Spec.model_fields)


def test_a_spec_without_stages_has_one_stage_as_in_training() -> None:
    (stage,) = make_spec({"dataset": "/d", "training": {"epochs": 7, "learning_rate": 3e-4}}).plan

    assert (stage.epochs, stage.learning_rate, stage.optimizer, stage.schedule) == (7, 3e-4, "adamw", "cosine")


def test_open_values_of_a_stage_come_from_training() -> None:
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


def test_a_retry_divides_every_rate_and_sets_every_resolution() -> None:
    stages = [{"epochs": 2}, {"epochs": 1, "learning_rate": 3e-5, "resolution": 768}]
    training = {"epochs": 3, "learning_rate": 1e-4, "text_encoder_learning_rate": 6e-5}
    spec = make_spec({"dataset": "/d", "method": {"text_encoder": True}, "training": training, "stages": stages})

    slower, smaller = with_rates_divided(spec, 3), at_resolution(spec, 512)

    assert [stage.learning_rate for stage in slower.plan] == [3.3e-5, 1e-5]
    assert [stage.text_encoder_learning_rate for stage in slower.plan] == [2e-5, 2e-5]
    assert [stage.resolution for stage in smaller.plan] == [512, 512]
    assert smaller.training.resolution == 512
    with pytest.raises(SpecError):
        with_rates_divided(make_spec({"dataset": "/d", "training": {"learning_rate": 2e-7}}), 3)
