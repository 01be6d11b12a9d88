"""Settings are complete, checked, and refused in sentences; old files can still be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"training": {"epoch": 3}}, "training.epoch is not a setting; did you mean training.epochs?"),
        ({"training": {"learning_rate": 0.5}}, "training.learning_rate 0.5 is outside 1e-06 – 0.01."),
        ({"training": {"epochs": 0}}, "training.epochs 0 is outside 1 – 1000."),
        ({"adapter": {"targets": "everything"}}, "is not one of 'attention', 'linear' or 'all'."),
        ({"adapter": {"rank": "many"}}, "adapter.rank 'many'"),
        ({"name": "Fox LoRA!"}, "must be 1–40 small letters"),
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


def test_a_spec_survives_its_file(tmp_path: Path) -> None:
    spec = spec_from_preset("lora", dataset="/data", base="tiny", changes={"samples": {"prompts": ["a", "b"]}})

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
    assert allowed_range("training.learning_rate") == (1e-6, 1e-2)
    assert allowed_range("adapter.alpha") == (0, 1024)


def test_known_settings_are_dotted_names() -> None:
    assert {"training.epochs", "adapter.rank", "early_stopping.patience", "name"} <= set(known_settings())


def test_a_spec_of_version_1_can_still_be_read() -> None:
    content = json.loads((GOLDEN / "spec-v1.json").read_text(encoding="utf-8"))

    spec = make_spec(content)

    assert json.loads(spec.model_dump_json()) == content
    assert set(content) == set(Spec.model_fields)
