"""Changes of a request that waits: forms for its settings, and the one that asks for what is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import discord

from bot.cogs.autocomplete import dataset_choices
from bot.cogs.drafts import ask_to_start, draft_card, require_allowed, store_draft
from bot.cogs.job_request import JobRequest, make_draft, problems_of, request_of_toml, split_prompts
from bot.cogs.lookups import dataset_here, own_draft, viewer_of
from bot.cogs.preset_commands import chosen_preset, presets_here, request_again, settings_of
from bot.cogs.replies import open_form, replace
from bot.cogs.services import Services, allowance_of_member
from bot.errors import DarkroomError, NotFound
from bot.queue import Draft, Job, State
from bot.ui.dataset_forms import Form
from bot.ui.job_replies import queued_already
from bot.ui.setting_fields import SettingField, SettingsPage, fields_of, page_title
from bot.ui.setting_forms import (
    MAX_FIELDS,
    SettingsForm,
    base_field,
    field_for,
    parse_mix,
    preset_field,
    settings_card,
    settings_form,
    typed_text,
    value_of,
)
from trainer.protocol.presets import DEFAULT_PRESET
from trainer.protocol.setting_problems import SettingProblem, parse_value
from trainer.protocol.spec import SpecDraft, SpecError
from trainer.protocol.text import _

#: Their weights are exported.
_WITH_RESULT = frozenset({State.SUCCEEDED, State.STOPPED})
#: A menu has room for one more.
_LISTED_DATASETS = 24


@dataclass(frozen=True, kw_only=True)
class RequestEdit:
    """A member's own draft that is edited, as it was when the form was opened."""

    services: Services
    draft: Draft
    request: JobRequest


async def edit_of(services: Services, interaction: discord.Interaction, dataset_id: int, draft_id: int) -> RequestEdit:
    """Return the member's own draft, with its request.

    Raises:
        DraftEnded: It was cancelled, has expired, or is queued already.
        NotYourRequest: It is another member's.
    """
    draft = await own_draft(services, interaction, draft_id, dataset_id=dataset_id)
    if draft.job_id is not None:
        raise NotFound(queued_already(draft.job_id))
    return RequestEdit(services=services, draft=draft, request=JobRequest.model_validate_json(draft.request))


async def open_basics(interaction: discord.Interaction, edit: RequestEdit) -> None:
    """Answer with the form of the settings that people change most."""
    await _open(interaction, edit, _("Edit the request"), fields_of(SettingsPage.BASICS), shows_card=True)


async def open_page(interaction: discord.Interaction, edit: RequestEdit, page: SettingsPage) -> None:
    """Answer with the form of one page of settings."""
    await _open(interaction, edit, page_title(page), fields_of(page), shows_card=False)


async def show_settings(interaction: discord.Interaction, edit: RequestEdit) -> None:
    """Replace the card by the pages of settings."""
    name = edit.request.name or _("this request")
    await replace(interaction, settings_card(edit.draft.dataset_id, edit.draft.id, name, edit.request.overrides))


async def open_fix(interaction: discord.Interaction, edit: RequestEdit) -> None:
    """Answer with a form of what has to change, filled with what was typed; the card, if nothing has to."""
    services, request = edit.services, edit.request
    try:
        allowance = await allowance_of_member(services, interaction)
        make_draft(request, services.config, max_epochs=allowance.max_epochs)
        problems: Sequence[SettingProblem] = [SettingProblem(name="mix")] if request.overrides.get("mix") else ()
    except (DarkroomError, SpecError) as error:
        problems = problems_of(error)
    known = await presets_here(services, interaction)
    bases = services.config.models.sources
    fields = [field_for(each, presets=known, bases=bases) for each in problems]
    # What was typed under a name that does not exist stands in the field of the one that was meant.
    moved = {each.meant: each.name for each in problems if each.meant}
    await _open(
        interaction,
        edit,
        _("What has to change"),
        fields or fields_of(SettingsPage.BASICS),
        shows_card=True,
        removed=tuple(each.name for each in problems[:MAX_FIELDS]),
        moved=moved,
    )


async def open_request(services: Services, interaction: discord.Interaction, dataset_id: int) -> None:
    """Answer with the form that makes a request for a dataset: [Fine-tune with this]."""
    dataset = await dataset_here(services, interaction, dataset_id)
    known = await presets_here(services, interaction)
    name, trigger, class_prompt, *_others = fields_of(SettingsPage.BASICS)
    fields = (preset_field(known), base_field(services.config.models.sources), name, trigger, class_prompt)
    left_out = {
        "preset": DEFAULT_PRESET,
        "base": services.config.models.default_label or "",
        "name": dataset.name,
    }

    async def submitted(interaction: discord.Interaction, form: Form) -> None:
        assert isinstance(form, SettingsForm)
        values = typed_values(fields, form.answers)
        preset = await chosen_preset(services, interaction, str(values.pop("preset") or DEFAULT_PRESET))
        await _offer(services, interaction, dataset_id, preset.request().changed(values))

    form = settings_form(
        services.gate.form(submitted, is_answer_new=True),
        _("Fine-tune with {name}", name=dataset.name),
        fields,
        typed={},
        left_out=left_out,
    )
    await open_form(interaction, form)


async def open_settings_of(services: Services, interaction: discord.Interaction, job: Job) -> None:
    """Answer with the form that makes a request with a training's settings for other images: [Try these settings]."""
    chosen = settings_of(job, services.config)
    names = [name for _label, name in await dataset_choices(services, interaction, "")]
    if not names:
        raise NotFound(_("There is no dataset here to try these settings on. /dataset upload adds one."))
    name, trigger, class_prompt, *_others = fields_of(SettingsPage.BASICS)
    dataset = SettingField(
        name="dataset",
        label=_("Your images"),
        description=_("The dataset to train on; the newest are listed."),
        choices=tuple(names[:_LISTED_DATASETS]),
        is_closed=True,
    )
    start = SettingField(
        name="start",
        label=_("Start from"),
        description=_("What it has learned already, or the base model alone."),
        choices=(_("what #{job} has learned", job=job.id),),
        is_closed=True,
    )
    fields = (
        dataset,
        name,
        trigger,
        *([class_prompt] if job.spec.prior.is_on else []),
        *([start] if job.spec.method.kind.is_adapter and job.state in _WITH_RESULT else []),
    )

    async def submitted(interaction: discord.Interaction, form: Form) -> None:
        assert isinstance(form, SettingsForm)
        values = typed_values(fields, form.answers)
        dataset_name = str(values.pop("dataset") or names[0])
        start_job = job.id if values.pop("start", None) else None
        request = chosen.request().changed(values).model_copy(update={"start_job": start_job})
        await _offer(services, interaction, dataset_name, request)

    form = settings_form(
        services.gate.form(submitted, is_answer_new=True),
        _("Settings of #{job} {name}", job=job.id, name=job.name),
        fields,
        typed={},
        left_out={"dataset": names[0], "name": _("the dataset's name"), "start": _("the base model")},
    )
    await open_form(interaction, form)


async def run_again(services: Services, interaction: discord.Interaction, job: Job) -> None:
    """Answer with a request that is filled with a training's settings, to be changed: [Run again with changes].

    Raises:
        NoSuchDataset: Its dataset was deleted.
        JobRefused: It asks for more than the member may.
    """
    dataset = await dataset_here(services, interaction, job.dataset_id)
    request = request_again(job, services.config)
    if job.spec.mix:
        folders = {
            each.folder: each.name
            for each in await services.datasets.search(dataset.guild_id, limit=1000, viewer_id=viewer_of(interaction))
        }
        parts = [part.model_dump(mode="json", exclude_defaults=True) for part in job.spec.mix]
        for part in parts:
            part["dataset"] = next(
                (name for folder, name in folders.items() if folder.parent == Path(part["dataset"]).parent), "?"
            )
        request = request.changed({"mix": parts})
    await _offer(services, interaction, dataset.id, request)


async def _offer(services: Services, interaction: discord.Interaction, which: int | str, request: JobRequest) -> None:
    """Store a request for a dataset, by its number or name, and answer with its card."""
    await require_allowed(services, interaction, request)
    dataset = await dataset_here(services, interaction, which)
    await ask_to_start(services, interaction, await store_draft(services, interaction, dataset, request))


async def _open(
    interaction: discord.Interaction,
    edit: RequestEdit,
    title: str,
    fields: Sequence[SettingField],
    *,
    shows_card: bool,
    removed: Sequence[str] = (),
    moved: Mapping[str, str] | None = None,
) -> None:
    """Answer with a form of settings.

    Args:
        interaction: A press on a button of the draft.
        edit: The draft.
        title: Of the form.
        fields: The settings that it asks for.
        shows_card: The draft's card follows; else the pages of settings.
        removed: Settings that are taken out of the request before the answers are put in.
        moved: Settings and the names under which their values were typed.
    """
    request = edit.request
    typed = {each.name: typed_text(request.value_of((moved or {}).get(each.name, each.name))) for each in fields}
    form = settings_form(
        edit.services.gate.form(partial(_submitted, edit, tuple(fields), tuple(removed), shows_card)),
        title,
        fields,
        typed=typed,
        left_out=_left_out(edit, fields),
    )
    await open_form(interaction, form)


async def _submitted(
    edit: RequestEdit,
    fields: Sequence[SettingField],
    removed: Sequence[str],
    shows_card: bool,
    interaction: discord.Interaction,
    form: Form,
) -> None:
    """Store the answers in the draft, right or wrong, and show what follows from them."""
    assert isinstance(form, SettingsForm)
    services, dataset_id = edit.services, edit.draft.dataset_id
    # As it is now: it may have been edited elsewhere since the form was opened.
    edit = await edit_of(services, interaction, dataset_id, edit.draft.id)
    values: dict[str, Any] = dict.fromkeys(removed)
    values |= typed_values(fields, form.answers)
    request = edit.request
    if preset := values.pop("preset", None):
        request = (await chosen_preset(services, interaction, str(preset))).apply_to(request)
    request = request.changed({name: value for name, value in values.items() if name != "preset"})
    draft = await services.drafts.change(edit.draft.id, request.model_dump_json())
    if shows_card:
        await replace(interaction, await draft_card(services, interaction, draft))
    else:
        await show_settings(interaction, RequestEdit(services=services, draft=draft, request=request))


def typed_values(fields: Sequence[SettingField], answers: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of a form's answers, by the names of their settings; None where nothing was typed."""
    values: dict[str, Any] = {}
    for field in fields:
        text = answers.get(field.name, "").strip()
        if field.name == "settings":
            values |= request_of_toml(text.encode()) if text else {}
        elif not text:
            values[field.name] = None
        elif field.name == "samples.prompts":
            values[field.name] = split_prompts(text)
        elif field.name == "mix":
            values[field.name] = parse_mix(text)
        else:
            values[field.name] = text if field.is_text or field.name in {"preset", "base"} else parse_value(text)
    return values


def _left_out(edit: RequestEdit, fields: Sequence[SettingField]) -> dict[str, str]:
    """The values that apply where nothing is typed: those of the preset, for the request's base."""
    preset: SpecDraft | None = None
    bare = edit.request.model_copy(
        update={"overrides": dict.fromkeys(("training.trigger", "prior.class_prompt"), "…"), "name": None}
    )
    try:
        preset = make_draft(bare, edit.services.config, max_epochs=1000)
    except (DarkroomError, SpecError):
        # The preset or the base has to change first.
        return {}
    hidden = {"training.trigger", "prior.class_prompt", "name", "settings"}
    return {each.name: value_of(preset, each.name) for each in fields if each.name not in hidden}
