"""Forms of settings: within Discord's limits in every language, and what they offer can be trained with."""

from __future__ import annotations

from typing import Any

import pytest

from bot.ui.setting_fields import SettingsPage, fields_of, page_title
from bot.ui.setting_forms import (
    MAX_FIELDS,
    base_field,
    field_for,
    parse_mix,
    preset_choice,
    preset_field,
    settings_card,
    settings_form,
    typed_text,
)
from trainer.protocol.presets import Preset, presets
from trainer.protocol.setting_problems import SettingProblem, dotted_names, parse_value
from trainer.protocol.spec import Spec, make_spec_draft
from trainer.protocol.text import LANGUAGES, speaking

#: Fields that are no settings of a spec.
OTHERS = {"name", "mix", "settings"}


def limits_broken(form: Any) -> list[str]:
    """What Discord would refuse of a form."""
    data = form.to_dict()
    broken = [] if len(data["title"]) <= 45 and 1 <= len(data["components"]) <= MAX_FIELDS else ["title or fields"]
    for label in data["components"]:
        field = label["component"]
        texts = [(label["label"], 45), (label.get("description") or "", 100), (field.get("placeholder") or "", 100)]
        for option in field.get("options", []):
            texts += [(option["label"], 100), (option.get("description") or "", 100)]
        broken += [text for text, most in texts if len(text) > most]
        broken += [label["label"]] if len(field.get("options", [])) > 25 else []
    return broken


async def submitted(*_: object) -> None:
    """Never called."""


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("page", SettingsPage)
async def test_every_page_is_within_the_limits_of_discord(page: SettingsPage, language: str) -> None:
    with speaking(language):
        left_out = {field.name: "x" * 300 for field in fields_of(page)}
        form = settings_form(submitted, page_title(page), fields_of(page), typed={}, left_out=left_out)
        assert limits_broken(form) == []
        assert limits_broken(form.refilled()) == []


@pytest.mark.parametrize("language", LANGUAGES)
async def test_presets_and_bases_are_offered_within_the_limits(language: str) -> None:
    many = {f"p{number}" + "x" * 30: Preset(name="p", summary="s" * 100) for number in range(40)}
    with speaking(language):
        fields = [preset_field({**many, **presets()}), base_field({"tiny": "tiny", "b" * 100: "x/y"})]
        assert limits_broken(settings_form(submitted, "t", fields, typed={}, left_out={})) == []
        assert [len(preset_choice(each)) <= 100 for each in presets().values()] == [True] * len(presets())


def test_every_field_is_a_setting_and_every_choice_can_be_trained_with() -> None:
    known = set(dotted_names(Spec))
    for page in SettingsPage:
        for field in fields_of(page):
            assert field.name in known | OTHERS, field.name
            for choice in field.choices:
                group, _, name = field.name.partition(".")
                value = parse_value(choice)
                rate = {"learning_rate": 1.0} if choice in {"prodigy", "dadapt_adam"} else {}
                make_spec_draft({group: {name: value, **rate}})


async def test_a_form_is_opened_again_with_what_was_typed() -> None:
    fields = fields_of(SettingsPage.SIZE)
    form = settings_form(
        submitted, "t", fields, typed={"method.rank": "8", "method.targets": "all"}, left_out={"method.rank": "16"}
    )
    # As Discord sends it.
    form._texts["method.rank"]._value = "many"
    form._menus["method.targets"]._values = ["conv"]
    again = form.refilled().to_dict()
    found = {label["component"]["custom_id"]: label["component"] for label in again["components"]}
    assert found["method.rank"]["value"] == "many"
    assert [each["value"] for each in found["method.targets"]["options"] if each.get("default")] == ["conv"]


def test_a_problem_is_asked_for_with_the_nearest_value() -> None:
    problem = SettingProblem(name="training.learning_rate", nearest=0.01)
    field = field_for(problem, presets={}, bases={})
    assert field.description == "The nearest value that works is 0.01."
    meant = field_for(SettingProblem(name="training.epoch", meant="training.epochs"), presets={}, bases={})
    assert meant.name == "training.epochs"
    assert field_for(SettingProblem(name="objective.loss"), presets={}, bases={}).label == "objective.loss"


MIX: list[tuple[str, list[dict[str, Any]]]] = [
    ("cats", [{"dataset": "cats"}]),
    ("cats weight=0.3\ndogs repeats=2", [{"dataset": "cats", "weight": 0.3}, {"dataset": "dogs", "repeats": 2}]),
    ("people regularization", [{"dataset": "people", "role": "regularization"}]),
    ("cats trigger=zkz", [{"dataset": "cats", "trigger": "zkz"}]),
]


@pytest.mark.parametrize(("text", "parts"), MIX)
def test_datasets_of_a_mix_are_typed_on_lines(text: str, parts: list[dict[str, Any]]) -> None:
    assert parse_mix(f"\n {text} \n") == parts
    assert typed_text(parts) == text


def test_values_are_typed_as_they_are_shown() -> None:
    for value in (True, 3, 0.0003, "cosine"):
        assert parse_value(typed_text(value)) == value
    assert typed_text(None) == ""
    assert typed_text(["a fox", "a dog"]) == "a fox\na dog"


def test_the_pages_show_what_is_set() -> None:
    overrides = {"training.learning_rate": 3e-4, "samples.prompts": ["a *fox*"]}
    shown = str([getattr(each, "content", "") for each in settings_card(1, 2, "f", overrides).layout.walk_children()])
    assert "`lr` 0.0003" in shown
    assert "a \\\\*fox" in shown
