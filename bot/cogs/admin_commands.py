"""`/admin`: the machine, for its operators; one server, for its managers. Every use is checked here again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import discord
from discord import app_commands
from pydantic import ValidationError

from bot.access import manages, server_of
from bot.cogs.autocomplete import Choices, answered, choose_dataset, choose_job, job_choices
from bot.cogs.interaction_gate import ButtonHandler, handled
from bot.cogs.lookups import dataset_here, find_job
from bot.cogs.replies import Acknowledgement, open_form, reply
from bot.cogs.services import ServiceGroupCog, Services
from bot.config import AccessSettings, DiscordSettings
from bot.errors import JobRefused, NotAnOperator
from bot.queue import PauseKind, Priority, State
from bot.queue.store.limits import RoleLimit
from bot.ui.access_pages import AccessForm, access_text, gallery_channel_text
from bot.ui.admin_pages import (
    bump_text,
    confirm_page,
    deleted_text,
    limits_page,
    links_ended_text,
    pause_text,
    plan_digest,
    resent_text,
    slot_choice,
    slots_page,
    storage_page,
)
from bot.ui.dataset_forms import Form
from bot.ui.discord_text import missing_permissions
from bot.ui.layout import text_message
from bot.ui.model_pages import model_lines, models_page
from bot.ui.queue_pages import audit_page
from bot.web import LinkKind
from trainer.protocol.text import LANGUAGES, N_, _

# Discord checks these before it sends a command; `RoleLimit` checks them again.
Why = app_commands.Range[str, 1, 300]
Jobs = app_commands.Range[int, 1, 100]
AnyJobs = app_commands.Range[int, 0, 100]
Epochs = app_commands.Range[int, 1, 1000]
Mib = app_commands.Range[int, 1, 100_000]
Hours = app_commands.Range[float, 0, 10_000]


#: Verbs about one server; `health` shows only numbers of others. All other verbs are about the machine that servers
#: share.
_OF_ONE_SERVER = frozenset({"bump", "limits", "settings", "gallery", "language", "audit", "health", "resend", "links"})


async def _slot_choices(services: Services, interaction: discord.Interaction, typed: str) -> Choices:
    # `interaction_check` does not cover autocompletion.
    if not is_operator(interaction, services.config.discord):
        return []
    slots = await services.jobs.slots.all(with_unused=True)
    return [(slot_choice(slot), slot.id) for slot in slots if typed.lower() in slot.name.lower()]


_choose_slot = answered(_slot_choices)
_choose_waiting = answered(partial(job_choices, states=frozenset({State.QUEUED})))


@app_commands.guild_only()
@app_commands.default_permissions(manage_guild=True)
class AdminCommands(
    ServiceGroupCog, group_name="admin", group_description=N_("Manage the bot: queue, roles, limits, disk space.")
):
    """The queue's pause, slots, limits, storage, audit and health."""

    limits = app_commands.Group(name="limits", description=N_("Limits for the members of a role."))

    async def interaction_check(self, interaction: discord.Interaction, /) -> bool:
        assert interaction.command is not None
        verb = interaction.command.qualified_name.split()[1]
        if verb in _OF_ONE_SERVER:
            require_manager(interaction)
        else:
            try:
                require_operator(interaction, self._services.config.discord)
            except NotAnOperator as error:
                # discord.py passes on only its own errors from a check.
                raise app_commands.CheckFailure(str(error)) from error
        return True

    # -- the queue ------------------------------------------------------------------------------------------------

    @app_commands.command(description=N_("Start no new training; running ones continue."))
    @app_commands.describe(why=N_("Shown to those who wait: “driver update, about 16:00”"))
    async def pause(self, interaction: discord.Interaction, why: Why = "") -> None:
        await self._pause(interaction, PauseKind.PAUSE, why)

    @app_commands.command(description=N_("Free every GPU: running trainings save a checkpoint and wait; none starts."))
    @app_commands.describe(why=N_("Shown to those who wait: “driver update, about 16:00”"))
    async def drain(self, interaction: discord.Interaction, why: Why = "") -> None:
        await self._pause(interaction, PauseKind.DRAIN, why)

    @app_commands.command(description=N_("The base models that members can choose, and how to add one."))
    async def models(self, interaction: discord.Interaction) -> None:
        config = self._services.config
        lines = await asyncio.to_thread(lambda: list(model_lines(config, config.trainer_environment())))
        await reply(interaction, models_page(lines, has_default=config.models.default_label is not None))

    async def _pause(self, interaction: discord.Interaction, kind: PauseKind, why: str) -> None:
        jobs = self._services.jobs
        pause = await jobs.control.pause(kind, by=interaction.user.id, why=why, guild_id=interaction.guild_id)
        running = sum(slot.job_id is not None for slot in await jobs.slots.all())
        await reply(interaction, text_message(pause_text(pause, running)))

    @app_commands.command(description=N_("Let the queue run again."))
    async def resume(self, interaction: discord.Interaction) -> None:
        was_paused = await self._services.jobs.control.resume(by=interaction.user.id, guild_id=interaction.guild_id)
        text = _("🟢 The queue is running again.") if was_paused else _("The queue is already running.")
        await reply(interaction, text_message(text))

    @app_commands.command(description=N_("Change the priority of a waiting job."))
    @app_commands.describe(job=N_("Number or name of the job"), priority=N_("Owners take turns within a priority"))
    @app_commands.rename(job="id")
    @app_commands.autocomplete(job=_choose_waiting)
    async def bump(
        self, interaction: discord.Interaction, job: str, priority: Literal["low", "normal", "high"] = "high"
    ) -> None:
        found = await find_job(self._services, interaction, job)
        wanted = Priority[priority.upper()]
        after = await self._services.jobs.bump(found.id, wanted, by=interaction.user.id)
        await reply(interaction, text_message(bump_text(found, after, wanted)))

    # -- slots ----------------------------------------------------------------------------------------------------

    @app_commands.command(description=N_("Show where trainings run, or switch one of these slots off or on."))
    @app_commands.describe(slot=N_("Which one"), switch=N_("A training that runs there continues either way"))
    @app_commands.autocomplete(slot=_choose_slot)
    async def slots(
        self, interaction: discord.Interaction, slot: str | None = None, switch: Literal["on", "off"] | None = None
    ) -> None:
        note = ""
        if (slot is None) is not (switch is None):
            note = _("Give both slot and switch, or neither.")
        elif slot is not None:
            note = await self._switch(interaction, slot, is_enabled=switch == "on")
        await reply(interaction, slots_page(await self._services.jobs.slots.all(with_unused=True), note))

    async def _switch(self, interaction: discord.Interaction, slot_id: str, *, is_enabled: bool) -> str:
        slots = self._services.jobs.slots
        is_changed = await slots.set_enabled(
            slot_id, is_enabled=is_enabled, by=interaction.user.id, guild_id=interaction.guild_id
        )
        # An enabled slot may let a job start.
        self._services.jobs.changed.set()
        return "" if is_changed else _("There is no such slot, or it is in that state already. Nothing was changed.")

    # -- limits ---------------------------------------------------------------------------------------------------

    @limits.command(
        name="set", description=N_("Set limits for the members of a role; anything left out keeps its default.")
    )
    @app_commands.describe(
        role=N_("A member with several roles gets the most generous of each limit"),
        waiting=N_("Jobs of one member that may wait"),
        running=N_("Jobs of one member that may run at once; 0: any number"),
        epochs=N_("Epochs of one job"),
        dataset_mib=N_("Size of one dataset, MiB"),
        gpu_hours=N_("GPU hours of one member from Monday to Monday; 0: any number"),
    )
    async def set_limits(
        self,
        interaction: discord.Interaction,
        role: discord.Role,
        waiting: Jobs | None = None,
        running: AnyJobs | None = None,
        epochs: Epochs | None = None,
        dataset_mib: Mib | None = None,
        gpu_hours: Hours | None = None,
    ) -> None:
        try:
            limit = RoleLimit(
                role_id=role.id, max_waiting=waiting, max_running=running, max_epochs=epochs,
                max_dataset_mib=dataset_mib, gpu_hours_per_week=gpu_hours,
            )  # fmt: skip
        except ValidationError as error:
            problem = error.errors()[0]
            text = _("{name}: {why}. Nothing was changed.", name=problem["loc"][0], why=problem["msg"])
            raise JobRefused(text) from error
        await self._services.limits.set(server_of(interaction), limit, by=interaction.user.id)
        await self._show_limits(interaction, _("Saved."))

    @limits.command(name="clear", description=N_("Delete a role's own limits; the usual ones apply again."))
    @app_commands.describe(role=N_("Whose limits to delete"))
    async def clear_limits(self, interaction: discord.Interaction, role: discord.Role) -> None:
        was_set = await self._services.limits.clear(server_of(interaction), role.id, by=interaction.user.id)
        await self._show_limits(interaction, _("Cleared.") if was_set else _("It had no limits of its own."))

    @limits.command(name="list", description=N_("The limits of all roles here."))
    async def list_limits(self, interaction: discord.Interaction) -> None:
        await self._show_limits(interaction)

    async def _show_limits(self, interaction: discord.Interaction, note: str = "") -> None:
        await reply(interaction, limits_page(await self._services.limits.list(server_of(interaction)), note))

    # -- access and language ------------------------------------------------------------------------------------------

    @app_commands.command(
        description=N_("Who may train, share, see datasets and manage here, and in which channels I work."),
        extras=handled(Acknowledgement.NONE),
    )
    @app_commands.describe(drawing=N_("Who may draw with models (/sample), in place of the rest"))
    async def settings(self, interaction: discord.Interaction, drawing: bool = False) -> None:
        rules = _existing(interaction, self._services.access.rules_of(server_of(interaction)))
        submitted = self._services.gate.form(self._set_access)
        await open_form(interaction, AccessForm(submitted, rules, is_about_drawing=drawing))

    async def _set_access(self, interaction: discord.Interaction, form: Form) -> None:
        assert isinstance(form, AccessForm)
        require_manager(interaction)
        await self._services.access.set_rules(server_of(interaction), form.rules, by=interaction.user.id)
        await reply(interaction, text_message(access_text(form.rules)))

    @app_commands.command(description=N_("The channel in which shared pictures are posted."))
    @app_commands.describe(channel=N_("Left out: each picture is posted where its owner shares it"))
    async def gallery(self, interaction: discord.Interaction, channel: discord.TextChannel | None = None) -> None:
        rules = self._services.access.rules_of(server_of(interaction))
        rules = rules.model_copy(update={"gallery": 0 if channel is None else channel.id})
        await self._services.access.set_rules(server_of(interaction), rules, by=interaction.user.id)
        missing = [] if channel is None else missing_permissions(channel.permissions_for(channel.guild.me))
        await reply(interaction, text_message(gallery_channel_text(rules.gallery, missing)))

    @app_commands.command(description=N_("The language of my posts in the channels of this server."))
    @app_commands.describe(
        language=N_("Left out: as Discord reports it, which is always English for servers without Community")
    )
    @app_commands.choices(language=[app_commands.Choice(name=name, value=code) for code, name in LANGUAGES.items()])
    async def language(self, interaction: discord.Interaction, language: str = "") -> None:
        await self._services.languages.choose(language, server=server_of(interaction))
        chosen = LANGUAGES.get(language) or _("the one that Discord reports")
        await reply(interaction, text_message(_("The language of my posts here: {language}.", language=chosen)))

    @app_commands.command(description=N_("End links to web pages: all of this server, or only some."))
    @app_commands.describe(
        member=N_("Only the links of this person"),
        job=N_("Only links to this training: its number or name"),
        dataset=N_("Only links to this dataset"),
    )
    @app_commands.autocomplete(job=choose_job, dataset=choose_dataset)
    async def links(
        self,
        interaction: discord.Interaction,
        member: discord.User | None = None,
        job: str | None = None,
        dataset: str | None = None,
    ) -> None:
        subject = None
        if job is not None and dataset is not None:
            raise JobRefused(_("Give either job or dataset, not both. Nothing was changed."))
        if job is not None:
            subject = (LinkKind.JOB, (await find_job(self._services, interaction, job)).id)
        elif dataset is not None:
            subject = (LinkKind.DATASET, (await dataset_here(self._services, interaction, dataset)).id)
        user_id = None if member is None else member.id
        ended = await self._services.links.revoke_in(
            server_of(interaction), by=interaction.user.id, user_id=user_id, subject=subject
        )
        await reply(interaction, text_message(links_ended_text(ended)))

    # -- audit and health ---------------------------------------------------------------------------------------------

    @app_commands.command(description=N_("Who did what, when and why; the newest first."))
    @app_commands.describe(job=N_("Of one job only: its number or name"))
    @app_commands.rename(job="id")
    @app_commands.autocomplete(job=choose_job)
    async def audit(self, interaction: discord.Interaction, job: str | None = None) -> None:
        job_id = None if job is None else (await find_job(self._services, interaction, job)).id
        entries = await self._services.jobs.audit(guild_id=server_of(interaction), job_id=job_id)
        title = _("Audit") if job_id is None else _("Audit of #{job}", job=job_id)
        await reply(interaction, audit_page(title, entries))

    @app_commands.command(description=N_("The state of the database, the disk, the queue and the connection."))
    async def health(self, interaction: discord.Interaction) -> None:
        # The names of what belongs to other servers are for operators only.
        is_of_all = is_operator(interaction, self._services.config.discord)
        await reply(interaction, await self._services.health(None if is_of_all else interaction.guild_id))

    @app_commands.command(description=N_("Send messages that could not be delivered again."))
    @app_commands.describe(job=N_("Only those about this job: its number or name"), here=N_("To this channel instead"))
    @app_commands.rename(job="id")
    @app_commands.autocomplete(job=choose_job)
    async def resend(self, interaction: discord.Interaction, job: str | None = None, here: bool = False) -> None:
        job_id = None if job is None else (await find_job(self._services, interaction, job)).id
        channel_id = interaction.channel_id if here else None
        count = await self._services.outbox.resend(server_of(interaction), job_id=job_id, channel_id=channel_id)
        await reply(interaction, text_message(resent_text(count, is_here=here)))

    # -- storage --------------------------------------------------------------------------------------------------

    @app_commands.command(description=N_("The disk space of the jobs, and what is due to be deleted."))
    async def storage(self, interaction: discord.Interaction) -> None:
        await reply(interaction, storage_page(*await self._services.storage.survey()))


async def _delete(services: Services, interaction: discord.Interaction, digest: str, *, is_confirmed: bool) -> None:
    """Delete the plan that was shown, once it is confirmed."""
    require_operator(interaction, services.config.discord)
    plan, totals = await services.storage.survey()
    if plan_digest(plan) != digest:
        note = _("The plan has changed since it was shown to you; nothing was deleted.")
        await reply(interaction, storage_page(plan, totals, note))
    elif not is_confirmed:
        await reply(interaction, confirm_page(plan))
    else:
        deleted = [deletion for deletion in plan.deletions if await services.delete_files(deletion)]
        await reply(interaction, text_message(deleted_text(deleted, planned=len(plan.deletions))))


#: Of `plan_digest`.
_DIGEST = "[0-9a-f]{1,40}"

HANDLERS: Mapping[str, ButtonHandler] = {
    "delete": ButtonHandler(run=partial(_delete, is_confirmed=False), argument=_DIGEST),
    "delete_now": ButtonHandler(run=partial(_delete, is_confirmed=True), argument=_DIGEST),
}


def _existing(interaction: discord.Interaction, rules: AccessSettings) -> AccessSettings:
    """The rules without roles and channels that were deleted: Discord takes no form that names one."""
    assert interaction.guild is not None
    guild = interaction.guild
    values: dict[str, Any] = rules.model_dump()
    for name, ids in values.items():
        find = guild.get_channel if name in {"channels", "gallery"} else guild.get_role
        values[name] = tuple(filter(find, ids)) if isinstance(ids, tuple) else (ids if find(ids) else 0)
    return AccessSettings(**values)


def require_manager(interaction: discord.Interaction) -> None:
    """Require the permission to manage the server.

    Raises:
        MissingPermissions: The member lacks it.
    """
    if not manages(interaction):
        raise app_commands.MissingPermissions(["manage_guild"])


def require_operator(interaction: discord.Interaction, settings: DiscordSettings) -> None:
    """Require an operator: a listed one; if none is listed, a manager of the bot's only server.

    Raises:
        NotAnOperator: The member is not listed, or none is listed and the bot serves more than this server.
        MissingPermissions: None is listed, and the member may not manage the only server.
    """
    if settings.operator_ids:
        if interaction.user.id not in settings.operator_ids:
            raise NotAnOperator(user_id=interaction.user.id, operator_ids=settings.operator_ids)
        return
    served = set(settings.guild_ids) or {guild.id for guild in interaction.client.guilds}
    # A user-installed app is also used in servers that it is not in: the only server must be this one.
    if served != {interaction.guild_id}:
        raise NotAnOperator(user_id=interaction.user.id)
    require_manager(interaction)


def is_operator(interaction: discord.Interaction, settings: DiscordSettings) -> bool:
    """Whether `require_operator` passes."""
    try:
        require_operator(interaction, settings)
    except (NotAnOperator, app_commands.MissingPermissions):
        return False
    return True
