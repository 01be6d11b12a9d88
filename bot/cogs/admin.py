"""`/admin`: the machine for its operators, one server for those who manage it; each use is checked here anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import discord
from discord import app_commands
from discord.ext import commands
from pydantic import ValidationError

from bot.cogs import failures
from bot.cogs.finding import found_job, job_choices
from bot.cogs.operators import is_operator, require_manager, require_operator
from bot.cogs.replies import reply
from bot.cogs.services import Services
from bot.errors import JobRefused, NotAnOperator
from bot.queue import HaltKind, Priority, State
from bot.queue.planning.retention import Plan
from bot.queue.store.limits import RoleLimit
from bot.ui.admin import (
    bumped_words,
    confirm_page,
    halted_words,
    limits_page,
    plan_digest,
    slot_choice,
    slots_page,
    storage_page,
)
from bot.ui.audit import audit_page
from bot.ui.receipts import said
from bot.ui.text import counted, size

# Discord checks these before it sends anything; `RoleLimit` checks them again.
if TYPE_CHECKING:
    Why: TypeAlias = str
    Jobs: TypeAlias = int
    AnyJobs: TypeAlias = int
    Epochs: TypeAlias = int
    Mib: TypeAlias = int
    Hours: TypeAlias = float
else:
    Why = app_commands.Range[str, 1, 300]
    Jobs = app_commands.Range[int, 1, 100]
    AnyJobs = app_commands.Range[int, 0, 100]
    Epochs = app_commands.Range[int, 1, 1000]
    Mib = app_commands.Range[int, 1, 100_000]
    Hours = app_commands.Range[float, 0, 10_000]


#: Verbs that change and show one server's own, and `health`, which changes nothing and shows numbers only. Every other
#: verb is about the machine, which all servers share.
_OF_ONE_SERVER = frozenset({"bump", "limits", "audit", "health"})


@app_commands.guild_only()
@app_commands.default_permissions(manage_guild=True)
class Admin(commands.GroupCog, group_name="admin", group_description="Run the machine."):
    """The queue's main switch, slots, limits, storage, and what happened."""

    limits = app_commands.Group(name="limits", description="What the members of a role may ask for.")

    def __init__(self, services: Services) -> None:
        self._services = services

    async def interaction_check(self, interaction: discord.Interaction, /) -> bool:
        assert interaction.command is not None
        _, verb, *_ = interaction.command.qualified_name.split()
        if verb in _OF_ONE_SERVER:
            require_manager(interaction)
        else:
            try:
                self._require_operator(interaction)
            except NotAnOperator as error:
                # Of what a check raises, discord.py hands on its own errors only.
                raise app_commands.CheckFailure(str(error)) from error
        return True

    def _require_operator(self, interaction: discord.Interaction) -> None:
        require_operator(interaction, self._services.config.discord)

    # -- the main switch ------------------------------------------------------------------------------------------

    @app_commands.command(description="Start nothing new; what runs goes on.")
    @app_commands.describe(why="What to tell those who wait: “driver update, about 16:00”")
    async def pause(self, interaction: discord.Interaction, why: Why = "") -> None:
        await self._halt(interaction, HaltKind.PAUSE, why)

    @app_commands.command(description="Free every GPU: what runs saves its checkpoint and waits; nothing new starts.")
    @app_commands.describe(why="What to tell those who wait: “driver update, about 16:00”")
    async def drain(self, interaction: discord.Interaction, why: Why = "") -> None:
        await self._halt(interaction, HaltKind.DRAIN, why)

    async def _halt(self, interaction: discord.Interaction, kind: HaltKind, why: str) -> None:
        jobs = self._services.jobs
        halt = await jobs.switch.halt(kind, by=interaction.user.id, why=why, guild_id=interaction.guild_id)
        running = sum(slot.job_id is not None for slot in await jobs.slots.all())
        await reply(interaction, said(halted_words(halt, running)))

    @app_commands.command(description="Let the queue run again.")
    async def resume(self, interaction: discord.Interaction) -> None:
        was_halted = await self._services.jobs.switch.resume(by=interaction.user.id, guild_id=interaction.guild_id)
        await reply(interaction, said("🟢 The queue runs again." if was_halted else "The queue runs already."))

    @app_commands.command(description="Give a waiting job another priority.")
    @app_commands.describe(job="Number or name of the job", priority="What goes first; within one, people take turns")
    @app_commands.rename(job="id")
    async def bump(
        self, interaction: discord.Interaction, job: str, priority: Literal["low", "normal", "high"] = "high"
    ) -> None:
        found = await found_job(self._services, interaction, job)
        wanted = Priority[priority.upper()]
        after = await self._services.jobs.bump(found.id, wanted, by=interaction.user.id)
        await reply(interaction, said(bumped_words(found, after, wanted)))

    @bump.autocomplete("job")
    async def choose_waiting(self, interaction: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        return await job_choices(self._services, interaction, typed, states=frozenset({State.QUEUED}))

    # -- slots ----------------------------------------------------------------------------------------------------

    @app_commands.command(description="Where trainings run; and switch one of these places off, or on again.")
    @app_commands.describe(slot="Which one", switch="What runs there goes on either way")
    async def slots(
        self, interaction: discord.Interaction, slot: str | None = None, switch: Literal["on", "off"] | None = None
    ) -> None:
        note = ""
        if (slot is None) is not (switch is None):
            note = "Give both slot and switch, or neither."
        elif slot is not None:
            note = await self._switch(interaction, slot, is_enabled=switch == "on")
        await reply(interaction, slots_page(await self._services.jobs.slots.all(with_unused=True), note))

    async def _switch(self, interaction: discord.Interaction, slot_id: str, *, is_enabled: bool) -> str:
        slots = self._services.jobs.slots
        is_changed = await slots.switch(
            slot_id, is_enabled=is_enabled, by=interaction.user.id, guild_id=interaction.guild_id
        )
        # A slot that is on may let somebody start.
        self._services.jobs.changed.set()
        return "" if is_changed else "There is no such slot, or it stood like that already; nothing was changed."

    @slots.autocomplete("slot")
    async def choose_slot(self, interaction: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        # What is typed is not checked by `interaction_check`.
        if not is_operator(interaction, self._services.config.discord):
            return []
        slots = await self._services.jobs.slots.all(with_unused=True)
        found = [slot for slot in slots if typed.lower() in slot.name.lower()]
        return [app_commands.Choice(name=slot_choice(slot), value=slot.id) for slot in found[:25]]

    # -- limits ---------------------------------------------------------------------------------------------------

    @limits.command(name="set", description="Say what a role's members may ask for; what you leave out is as usual.")
    @app_commands.describe(
        role="Whoever has several roles gets the most generous of each limit",
        waiting="Jobs of one person that may wait",
        running="Jobs of one person that may run at once; 0: any number",
        epochs="Epochs of one job",
        dataset_mib="Size of one dataset, MiB",
        gpu_hours="GPU hours of one person from Monday to Monday; 0: any number",
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
            raise JobRefused(f"{problem['loc'][0]}: {problem['msg']}. Nothing was changed.") from error
        assert interaction.guild_id is not None
        await self._services.limits.set(interaction.guild_id, limit, by=interaction.user.id)
        await self._show_limits(interaction, "Said.")

    @limits.command(name="clear", description="Let the configuration hold for a role again.")
    @app_commands.describe(role="Whose limits to forget")
    async def clear_limits(self, interaction: discord.Interaction, role: discord.Role) -> None:
        assert interaction.guild_id is not None
        was_set = await self._services.limits.clear(interaction.guild_id, role.id, by=interaction.user.id)
        await self._show_limits(interaction, "Cleared." if was_set else "It had none of its own.")

    @limits.command(name="list", description="What is said about roles here.")
    async def list_limits(self, interaction: discord.Interaction) -> None:
        await self._show_limits(interaction)

    async def _show_limits(self, interaction: discord.Interaction, note: str = "") -> None:
        assert interaction.guild_id is not None
        await reply(interaction, limits_page(await self._services.limits.list(interaction.guild_id), note))

    # -- looking --------------------------------------------------------------------------------------------------

    @app_commands.command(description="Who did what, when, and why; the newest first.")
    @app_commands.describe(job="Of one job only: its number or name")
    @app_commands.rename(job="id")
    async def audit(self, interaction: discord.Interaction, job: str | None = None) -> None:
        assert interaction.guild_id is not None
        job_id = None if job is None else (await found_job(self._services, interaction, job)).id
        entries = await self._services.jobs.audit(guild_id=interaction.guild_id, job_id=job_id)
        await reply(interaction, audit_page("Audit" if job_id is None else f"Audit of #{job_id}", entries))

    @audit.autocomplete("job")
    async def choose_job(self, interaction: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        return await job_choices(self._services, interaction, typed)

    @app_commands.command(description="Whether everything is as it should be.")
    async def health(self, interaction: discord.Interaction) -> None:
        await interaction.response.defer(ephemeral=True, thinking=True)
        await reply(interaction, await self._services.health())

    # -- storage --------------------------------------------------------------------------------------------------

    @app_commands.command(description="What the jobs take on the disk, and what would be deleted to make room.")
    async def storage(self, interaction: discord.Interaction) -> None:
        await interaction.response.defer(ephemeral=True, thinking=True)
        await reply(interaction, storage_page(*await self._services.storage.survey()))

    @commands.Cog.listener()
    async def on_admin_button(self, interaction: discord.Interaction, verb: str, digest: str) -> None:
        try:
            self._require_operator(interaction)
            await interaction.response.defer(ephemeral=True, thinking=True)
            await self._delete(interaction, digest, is_confirmed=verb == "delete_now")
        except Exception as error:  # noqa: BLE001 - the edge to Discord: every failure becomes a sentence.
            await failures.tell(interaction, error)

    async def _delete(self, interaction: discord.Interaction, digest: str, *, is_confirmed: bool) -> None:
        plan, totals = await self._services.storage.survey()
        if plan_digest(plan) != digest:
            note = "This is no longer what was shown to you; nothing was deleted by this press."
            await reply(interaction, storage_page(plan, totals, note))
        elif not is_confirmed:
            await reply(interaction, confirm_page(plan))
        else:
            await reply(interaction, said(await self._free(plan)))

    async def _free(self, plan: Plan) -> str:
        freed = [one for one in plan.deletions if await self._services.free(one)]
        kept = len(plan.deletions) - len(freed)
        aside = f" {counted(kept, 'job')} kept theirs: needed by now." if kept else ""
        total = size(sum(one.bytes for one in freed))
        return f"🗑️ Files of {counted(len(freed), 'job')} are deleted, {total}.{aside}"
