"""`/admin`: the main switch, bumps, slots, limits and storage, for those whom they concern and nobody else."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import discord

from bot.queue import HaltKind, Priority, Slot, State
from bot.queue.planning.retention import Deletion, Plan, Totals, What
from tests.bot.cogs.conftest import World, answer, archive, world
from tests.bot.cogs.room import StrayPress, buttons, press
from tests.bot.cogs.test_buttons import SLOW, start, state
from tests.bot.cogs.test_job_commands import boss

#: Of the whole machine.
MACHINE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("admin pause", {}),
    ("admin drain", {}),
    ("admin resume", {}),
    ("admin slots", {}),
    ("admin storage", {}),
)
#: Of one server.
SERVER: tuple[tuple[str, dict[str, Any]], ...] = (
    ("admin bump", {"id": "1"}),
    ("admin limits list", {}),
    ("admin audit", {}),
    ("admin health", {}),
)
COMMANDS = MACHINE + SERVER


async def test_nobody_else_may_even_if_they_see_it(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        client: Any = lab.env.bot
        (admin,) = [each for each in await client.tree.fetch_commands() if each.name == "admin"]
        lab.channel.guild.set_command_permissions(admin, {lab.ana: True})
        for command, options in COMMANDS:
            told = answer(await lab.ana.slash(lab.channel, command, **options))
            assert "You lack the permission to do this: manage_guild." in told, command
        assert await lab.app.services.jobs.switch.read() is None
        assert len(lab.env.errors) == len(COMMANDS)


async def test_a_paused_queue_starts_nothing_and_says_why(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        manager = boss(lab)
        told = answer(await manager.slash(lab.channel, "admin pause", why="driver update"))
        assert "The queue is paused (“driver update”): nothing new starts, and nothing runs." in told
        receipt = answer(await lab.ana.slash(lab.channel, "finetune", confirm=False, dataset=archive(), epochs=1))
        expected = f"Queue is paused by <@{manager.id}>: “driver update”. The job is saved as #1."
        assert expected in receipt
        assert expected in await lab.until_shown("#1 fox")
        assert f"⛔ Queue is paused by <@{manager.id}>" in answer(await lab.ana.slash(lab.channel, "queue"))
        assert await state(lab) is State.QUEUED
        assert "The queue runs again." in answer(await manager.slash(lab.channel, "admin resume"))
        await lab.until_shown("is done")
        assert "The queue runs already." in answer(await manager.slash(lab.channel, "admin resume"))


async def test_a_drain_frees_the_machine_and_loses_nothing(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        await start(lab)
        manager = boss(lab)
        told = answer(await manager.slash(lab.channel, "admin drain", why="reboot"))
        assert "1 training saves a checkpoint and waits at the front of the line" in told
        await lab.until(lambda: "Waiting to go on from its checkpoint" in lab.texts()[0])
        halt = await lab.app.services.jobs.switch.read()
        assert halt is not None
        assert halt.kind is HaltKind.DRAIN
        await manager.slash(lab.channel, "admin resume")
        await lab.until(lambda: "attempt 2" in lab.texts()[0])


async def test_a_bump_is_for_jobs_that_wait(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        await start(lab)
        manager = boss(lab)
        for epochs in (2, 3):
            await lab.ana.slash(lab.channel, "finetune", confirm=False, from_dataset="fox", epochs=epochs)
        choices = await manager.autocomplete(lab.channel, "admin bump", "id", "")
        assert sorted(choice["value"] for choice in choices) == ["2", "3"]
        assert "#3 has high priority now." in answer(await manager.slash(lab.channel, "admin bump", id="3"))
        assert await lab.app.services.jobs.line() == [3, 2]
        assert "#3 has high priority already." in answer(await manager.slash(lab.channel, "admin bump", id="3"))
        assert "#1 does not wait: training" in answer(await manager.slash(lab.channel, "admin bump", id="1"))
        assert (await lab.app.services.jobs.get(3)).priority is Priority.HIGH


async def the_slot(lab: World) -> Slot:
    """The only one, once it has been found."""
    while not (slots := await lab.app.services.jobs.slots.all()):  # noqa: ASYNC110 - nobody would set an event.
        await asyncio.sleep(0.05)
    return slots[0]


async def test_a_slot_is_switched_off_and_on(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        manager = boss(lab)
        slot = await the_slot(lab)
        choices = await manager.autocomplete(lab.channel, "admin slots", "slot", "")
        assert [choice["value"] for choice in choices] == [slot.id]
        off = answer(await manager.slash(lab.channel, "admin slots", slot=slot.id, switch="off"))
        assert "**switched off**" in off
        assert "nothing was changed" in answer(
            await manager.slash(lab.channel, "admin slots", slot=slot.id, switch="off")
        )
        assert "neither" in answer(await manager.slash(lab.channel, "admin slots", slot=slot.id))
        await lab.ana.slash(lab.channel, "finetune", confirm=False, dataset=archive(), epochs=1)
        assert await state(lab) is State.QUEUED
        assert "switched off" not in answer(await manager.slash(lab.channel, "admin slots", slot=slot.id, switch="on"))
        await lab.until_shown("is done")


async def test_limits_of_a_role_are_said_listed_and_cleared(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        manager = boss(lab)
        role = lab.channel.guild.create_role("trainer")
        told = answer(await manager.slash(lab.channel, "admin limits set", role=role, waiting=9, gpu_hours=2.5))
        assert f"<@&{role.id}> · 9 waiting and 2.5 GPU-h a week" in told
        assert "9 waiting" in answer(await manager.slash(lab.channel, "admin limits list"))
        assert "Cleared." in answer(await manager.slash(lab.channel, "admin limits clear", role=role))
        assert "It had none of its own." in answer(await manager.slash(lab.channel, "admin limits clear", role=role))
        audit = answer(await manager.slash(lab.channel, "admin audit"))
        assert f"<@{manager.id}> · limit role" in audit


async def test_the_audit_is_of_all_or_of_one_job(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        manager = boss(lab)
        await lab.ana.slash(lab.channel, "finetune", confirm=False, dataset=archive(), epochs=1)
        await lab.until_shown("is done")
        await manager.slash(lab.channel, "admin pause", why="lunch")
        everything = answer(await manager.slash(lab.channel, "admin audit"))
        assert "queue pause · lunch" in everything
        assert "submit #1" in everything
        assert "lunch" not in answer(await manager.slash(lab.channel, "admin audit", id="1"))


async def test_health_is_told(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        assert answer(await boss(lab).slash(lab.channel, "admin health"))


def serve(lab: World, **services: Any) -> None:
    """Other services for `/admin`."""
    client: Any = lab.env.bot
    admin = client.get_cog("Admin")
    admin._services = dataclasses.replace(admin._services, **services)


class Disk:
    """A plan that a test sets, and what was freed by it."""

    def __init__(self) -> None:
        one = Deletion(job_id=1, owner_id=5, what=What.CHECKPOINTS, bytes=2**20, sentence="#1 fox: the checkpoints.")
        self.plan = Plan(deletions=(one,))
        self.freed: list[int] = []

    async def survey(self) -> tuple[Plan, Totals]:
        return self.plan, Totals(free_bytes=2**30, bytes_by_owner={5: 2**20}, held_bytes=0)

    async def free(self, deletion: Deletion) -> bool:
        self.freed.append(deletion.job_id)
        return deletion.job_id == 1


def with_disk(lab: World) -> Disk:
    disk = Disk()
    storage: Any = disk
    serve(lab, storage=storage, free=disk.free)
    return disk


async def test_what_was_shown_is_what_is_deleted_after_a_second_yes(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        disk, manager = with_disk(lab), boss(lab)
        shown = await manager.slash(lab.channel, "admin storage")
        assert "the checkpoints." in answer(shown)
        asked = await press(manager, shown.response.message, "Delete these")
        assert "Delete files of 1 job, 1.0 MiB?" in answer(asked)
        assert disk.freed == []
        told = answer(await press(manager, asked.response.message, "Yes, delete them"))
        assert "Files of 1 job are deleted, 1.0 MiB." in told
        assert disk.freed == [1]


async def test_a_plan_that_has_changed_deletes_nothing(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        disk, manager = with_disk(lab), boss(lab)
        shown = await manager.slash(lab.channel, "admin storage")
        asked = await press(manager, shown.response.message, "Delete these")
        more = dataclasses.replace(disk.plan.deletions[0], job_id=2)
        disk.plan = Plan(deletions=(*disk.plan.deletions, more))
        told = await press(manager, asked.response.message, "Yes, delete them")
        assert "no longer what was shown" in answer(told)
        assert disk.freed == []
        assert list(buttons(told.response.message)) == ["Delete these"]


async def test_a_strangers_press_deletes_nothing(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        disk = with_disk(lab)
        shown = await boss(lab).slash(lab.channel, "admin storage")
        assert "You lack the permission" in await press_astray(lab, StrayPress(lab), shown)
        assert disk.freed == []


async def press_astray(lab: World, stray: StrayPress, shown: Any) -> str:
    """Confirm, without having been asked, that what was shown is deleted; what was told."""
    client: Any = lab.env.bot
    digest = next(iter(buttons(shown.response.message).values())).rpartition(":")[2]
    client.dispatch("admin_button", stray, "delete_now", digest)
    await lab.until(lambda: bool(stray.told))
    return stray.told[0]


@dataclass(frozen=True, kw_only=True)
class TwoServers:
    """A bot that works in two servers, and who manages them."""

    lab: World
    boss: Any
    #: Another server's channel, and who may manage that one.
    channel: Any
    other_boss: Any


@asynccontextmanager
async def two_servers(data_dir: Path) -> AsyncIterator[TwoServers]:
    async with world(data_dir) as lab:
        guild = lab.env.create_guild("Elsewhere")
        lead = guild.create_role("lead", permissions=discord.Permissions(manage_guild=True))
        other_boss = guild.add_member(lab.env.create_user("other"), roles=[lead])
        yield TwoServers(lab=lab, boss=boss(lab), channel=guild.create_text_channel("there"), other_boss=other_boss)


def configured(lab: World, **settings: Any) -> None:
    config = lab.app.services.config
    serve(lab, config=config.model_copy(update={"discord": config.discord.model_copy(update=settings)}))


async def test_in_two_servers_nobody_switches_the_machine_until_operators_are_listed(data_dir: Path) -> None:
    async with two_servers(data_dir) as both:
        lab = both.lab
        await lab.ana.slash(lab.channel, "finetune", confirm=False, dataset=archive(), epochs=1)
        await lab.until_shown("is done")
        await the_slot(lab)
        for actor, channel in ((both.boss, lab.channel), (both.other_boss, both.channel)):
            for command, options in MACHINE:
                told = answer(await actor.slash(channel, command, **options))
                assert "nobody is listed as operator" in told, command
                assert f"below [discord]: `operator_ids = [{actor.id}]` would be you. Nothing was changed." in told
            assert await actor.autocomplete(channel, "admin slots", "slot", "") == []
        assert await lab.app.services.jobs.switch.read() is None
        # What concerns one server is its manager's, whoever runs the machine.
        for command, options in SERVER:
            assert "operator" not in answer(await both.boss.slash(lab.channel, command, **options)), command
        assert lab.env.errors


async def test_a_listed_operator_needs_no_server_and_an_unlisted_manager_gets_no_machine(data_dir: Path) -> None:
    async with two_servers(data_dir) as both:
        lab = both.lab
        configured(lab, operator_ids=(lab.ana.id,))
        await the_slot(lab)
        disk = with_disk(lab)
        client: Any = lab.env.bot
        (admin,) = [each for each in await client.tree.fetch_commands() if each.name == "admin"]
        lab.channel.guild.set_command_permissions(admin, {lab.ana: True})
        for command, options in MACHINE:
            assert "whole machine" not in answer(await lab.ana.slash(lab.channel, command, **options)), command
            told = answer(await both.boss.slash(lab.channel, command, **options))
            assert f"This concerns the whole machine. Only its operators can do that: <@{lab.ana.id}>." in told
        for command, options in SERVER:
            told = answer(await lab.ana.slash(lab.channel, command, **options))
            assert "You lack the permission to do this: manage_guild." in told, command
        assert lab.env.errors
        assert await lab.ana.autocomplete(lab.channel, "admin slots", "slot", "")
        shown = await lab.ana.slash(lab.channel, "admin storage")
        stray = StrayPress(lab, both.boss)
        stray.permissions = discord.Permissions.all()
        assert "Only its operators" in await press_astray(lab, stray, shown)
        assert disk.freed == []
        asked = await press(lab.ana, shown.response.message, "Delete these")
        await press(lab.ana, asked.response.message, "Yes, delete them")
        assert disk.freed == [1]


async def test_where_the_config_names_one_server_its_managers_are_operators_and_no_other(data_dir: Path) -> None:
    async with two_servers(data_dir) as both:
        lab = both.lab
        configured(lab, guild_ids=(lab.channel.guild.id,))
        assert "The queue is paused" in answer(await both.boss.slash(lab.channel, "admin pause"))
        told = answer(await both.other_boss.slash(both.channel, "admin resume"))
        assert "nobody is listed as operator" in told
        assert await lab.app.services.jobs.switch.read() is not None
        assert lab.env.errors


async def test_every_verb_of_admin_is_of_the_machine_or_of_a_server(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        client: Any = lab.env.bot
        verbs = {command.name for command in client.get_cog("Admin").__cog_app_commands_group__.commands}
        assert verbs == {command.split()[1] for command, _ in COMMANDS}
