"""`/admin`: pause, bumps, slots, limits and storage; for operators of the machine and managers of a server."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import discord

from bot.queue import PauseKind, Priority, Slot, State
from bot.queue.planning.retention import Deletion, DeletionReason, DeletionScope, RetentionPlan, StorageTotals
from bot.queue.store.limits import AboveCeiling
from tests.bot.cogs.conftest import World, answer, text_of, world
from tests.bot.cogs.dataset_helpers import buttons, press, press_forged
from tests.bot.cogs.test_job_buttons import SLOW, start, state

#: Commands about the whole machine.
MACHINE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("admin pause", {}),
    ("admin drain", {}),
    ("admin resume", {}),
    ("admin slots", {}),
    ("admin storage", {}),
    ("admin models", {}),
)
#: Commands about one server.
SERVER: tuple[tuple[str, dict[str, Any]], ...] = (
    ("admin bump", {"id": "1"}),
    ("admin limits list", {}),
    ("admin settings", {}),
    ("admin gallery", {}),
    ("admin language", {}),
    ("admin audit", {}),
    ("admin health", {}),
    ("admin resend", {}),
    ("admin links", {}),
)
COMMANDS = MACHINE + SERVER


async def test_members_without_the_permission_are_refused_even_if_they_see_it(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        client: Any = lab.env.bot
        (admin,) = [each for each in await client.tree.fetch_commands() if each.name == "admin"]
        lab.channel.guild.set_command_permissions(admin, {lab.ana: True})
        for command, options in COMMANDS:
            reply = answer(await lab.ana.slash(lab.channel, command, **options))
            assert "You need the permission Manage Server to do this." in reply, command
        assert await lab.jobs.control.read() is None
        assert len(lab.env.errors) == len(COMMANDS)


async def test_a_paused_queue_starts_nothing_and_shows_the_reason(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        manager = lab.add_manager()
        reply = answer(await manager.slash(lab.channel, "admin pause", why="driver update"))
        assert "The queue is paused (“driver update”)." in reply
        receipt = answer(await lab.finetune())
        expected = f"<@{manager.id}> has paused the queue: “driver update”. This training keeps its place"
        assert expected in receipt
        assert expected in await lab.until_shown("#1 fox")
        assert f"⛔ <@{manager.id}> has paused the queue" in answer(await lab.ana.slash(lab.channel, "queue"))
        assert await state(lab) is State.QUEUED
        assert "The queue is running again." in answer(await manager.slash(lab.channel, "admin resume"))
        await lab.until_shown("is done")
        assert "The queue is already running." in answer(await manager.slash(lab.channel, "admin resume"))


async def test_a_drain_frees_the_machine_and_loses_nothing(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        await start(lab)
        manager = lab.add_manager()
        reply = answer(await manager.slash(lab.channel, "admin drain", why="reboot"))
        assert "1 running training saves a checkpoint" in reply
        await lab.until(lambda: "Waiting to continue from its checkpoint" in lab.texts()[0])
        queue_pause = await lab.jobs.control.read()
        assert queue_pause is not None
        assert queue_pause.kind is PauseKind.DRAIN
        await manager.slash(lab.channel, "admin resume")
        await lab.until(lambda: "Attempt 2" in lab.texts()[0])


async def test_a_bump_is_for_jobs_that_wait(data_dir: Path) -> None:
    async with world(data_dir, FAKE_STEP_S=SLOW) as lab:
        await start(lab)
        manager = lab.add_manager()
        for epochs in (2, 3):
            await lab.finetune(from_dataset="fox", epochs=epochs)
        choices = await manager.autocomplete(lab.channel, "admin bump", "id", "")
        assert sorted(choice["value"] for choice in choices) == ["2", "3"]
        assert "#3 has high priority now." in answer(await manager.slash(lab.channel, "admin bump", id="3"))
        assert await lab.jobs.queued_ids() == [3, 2]
        assert "#3 already has high priority." in answer(await manager.slash(lab.channel, "admin bump", id="3"))
        assert "#1 is not waiting: training" in answer(await manager.slash(lab.channel, "admin bump", id="1"))
        assert (await lab.jobs.get(3)).priority is Priority.HIGH


async def wait_for_slot(lab: World) -> Slot:
    """Wait until the only slot has been found."""
    while not (slots := await lab.jobs.slots.all()):  # noqa: ASYNC110 - no event is set.
        await asyncio.sleep(0.05)
    return slots[0]


async def test_a_slot_is_switched_off_and_on(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        manager = lab.add_manager()
        slot = await wait_for_slot(lab)
        choices = await manager.autocomplete(lab.channel, "admin slots", "slot", "")
        assert [choice["value"] for choice in choices] == [slot.id]
        off = answer(await manager.slash(lab.channel, "admin slots", slot=slot.id, switch="off"))
        assert "**switched off**" in off
        assert "Nothing was changed" in answer(
            await manager.slash(lab.channel, "admin slots", slot=slot.id, switch="off")
        )
        assert "neither" in answer(await manager.slash(lab.channel, "admin slots", slot=slot.id))
        await lab.finetune()
        assert await state(lab) is State.QUEUED
        assert "switched off" not in answer(await manager.slash(lab.channel, "admin slots", slot=slot.id, switch="on"))
        await lab.until_shown("is done")


async def test_limits_of_a_role_are_set_listed_and_cleared(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        manager = lab.add_manager()
        role = lab.channel.guild.create_role("trainer")
        reply = answer(await manager.slash(lab.channel, "admin limits set", role=role, waiting=2, gpu_hours=2.5))
        assert f"<@&{role.id}> · 2 waiting and 2.5 GPU hours a week" in reply
        # The operator's configuration has 3.
        await manager.slash(lab.channel, "admin limits set", role=role, waiting=4)
        assert lab.refusals() == [AboveCeiling]
        assert "2 waiting" in answer(await manager.slash(lab.channel, "admin limits list"))
        assert "Cleared." in answer(await manager.slash(lab.channel, "admin limits clear", role=role))
        assert "It had no limits of its own." in answer(
            await manager.slash(lab.channel, "admin limits clear", role=role)
        )
        audit = answer(await manager.slash(lab.channel, "admin audit"))
        assert f"<@{manager.id}> changed the limits of a role" in audit


async def test_the_audit_is_of_all_or_of_one_job(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        manager = lab.add_manager()
        await lab.train()
        await manager.slash(lab.channel, "admin pause", why="lunch")
        everything = answer(await manager.slash(lab.channel, "admin audit"))
        assert "paused the queue: lunch" in everything
        assert "queued #1" in everything
        assert "lunch" not in answer(await manager.slash(lab.channel, "admin audit", id="1"))


def serve(lab: World, **services: Any) -> None:
    """Other services for `/admin` and its buttons."""
    client: Any = lab.env.bot
    admin = client.get_cog("AdminCommands")
    client.services = admin._services = dataclasses.replace(admin._services, **services)


class Disk:
    """A retention plan that a test sets, and the jobs deleted by it."""

    def __init__(self) -> None:
        one = Deletion(
            job_id=1, name="fox", owner_id=5, scope=DeletionScope.CHECKPOINTS, bytes=2**20, value=31, limit=30,
            reason=DeletionReason.AGE,
        )  # fmt: skip
        self.plan = RetentionPlan(deletions=(one,))
        self.deleted: list[int] = []

    async def survey(self) -> tuple[RetentionPlan, StorageTotals]:
        return self.plan, StorageTotals(free_bytes=2**30, bytes_by_owner={5: 2**20}, protected_bytes=0)

    async def delete(self, deletion: Deletion) -> bool:
        self.deleted.append(deletion.job_id)
        return deletion.job_id == 1


def with_disk(lab: World) -> Disk:
    disk = Disk()
    storage: Any = disk
    serve(lab, storage=storage, delete_files=disk.delete)
    return disk


async def test_the_shown_plan_is_deleted_after_a_second_confirmation(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        disk, manager = with_disk(lab), lab.add_manager()
        shown = await manager.slash(lab.channel, "admin storage")
        assert "checkpoints (1.0 MiB)" in answer(shown)
        asked = await press(manager, shown.response.message, "Delete these")
        assert "Delete files of 1 job, 1.0 MiB?" in answer(asked)
        assert disk.deleted == []
        reply = answer(await press(manager, asked.response.message, "Yes, delete them"))
        assert "Files of 1 job deleted, 1.0 MiB." in reply
        assert disk.deleted == [1]


async def test_a_plan_that_has_changed_deletes_nothing(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        disk, manager = with_disk(lab), lab.add_manager()
        shown = await manager.slash(lab.channel, "admin storage")
        asked = await press(manager, shown.response.message, "Delete these")
        more = dataclasses.replace(disk.plan.deletions[0], job_id=2)
        disk.plan = RetentionPlan(deletions=(*disk.plan.deletions, more))
        reply = await press(manager, asked.response.message, "Yes, delete them")
        assert "nothing was deleted" in answer(reply)
        assert disk.deleted == []
        assert list(buttons(reply.response.message)) == ["Delete these"]


async def test_another_members_press_deletes_nothing(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        disk = with_disk(lab)
        shown = await lab.add_manager().slash(lab.channel, "admin storage")
        assert "You need the permission Manage Server" in await confirm_unasked(lab, lab.ana, shown)
        assert disk.deleted == []


async def confirm_unasked(lab: World, actor: Any, shown: Any) -> str:
    """Press the confirmation of a shown plan without its question; return the reply."""
    digest = next(iter(buttons(shown.response.message).values())).rpartition(":")[2]
    return await press_forged(lab, f"admin:delete_now:{digest}", actor)


@dataclass(frozen=True, kw_only=True)
class TwoServers:
    """A bot in two servers that have different managers."""

    lab: World
    #: The manager of the lab's server.
    manager: Any
    #: A channel of the other server, and that server's manager.
    channel: Any
    other_manager: Any


@asynccontextmanager
async def two_servers(data_dir: Path) -> AsyncIterator[TwoServers]:
    async with world(data_dir) as lab:
        guild = lab.env.create_guild("Elsewhere")
        lead = guild.create_role("lead", permissions=discord.Permissions(manage_guild=True))
        other_manager = guild.add_member(lab.env.create_user("other"), roles=[lead])
        yield TwoServers(
            lab=lab, manager=lab.add_manager(), channel=guild.create_text_channel("there"), other_manager=other_manager
        )


def configured(lab: World, **settings: Any) -> None:
    config = lab.app.services.config
    serve(lab, config=config.model_copy(update={"discord": config.discord.model_copy(update=settings)}))


async def test_in_two_servers_no_one_operates_the_machine_until_operators_are_listed(data_dir: Path) -> None:
    async with two_servers(data_dir) as both:
        lab = both.lab
        await lab.train()
        await wait_for_slot(lab)
        for actor, channel in ((both.manager, lab.channel), (both.other_manager, both.channel)):
            for command, options in MACHINE:
                reply = answer(await actor.slash(channel, command, **options))
                assert "no operator is listed" in reply, command
                assert f"`operator_ids = [{actor.id}]`" in reply
            assert await actor.autocomplete(channel, "admin slots", "slot", "") == []
        assert await lab.jobs.control.read() is None
        # A manager controls their own server, whoever operates the machine.
        for command, options in SERVER:
            shown = await both.manager.slash(lab.channel, command, **options)
            # A form is no refusal.
            assert shown.modal or "operator" not in answer(shown), command
        assert lab.env.errors


async def test_only_a_listed_operator_controls_the_machine(data_dir: Path) -> None:
    async with two_servers(data_dir) as both:
        lab = both.lab
        configured(lab, operator_ids=(lab.ana.id,))
        await wait_for_slot(lab)
        disk = with_disk(lab)
        client: Any = lab.env.bot
        (admin,) = [each for each in await client.tree.fetch_commands() if each.name == "admin"]
        lab.channel.guild.set_command_permissions(admin, {lab.ana: True})
        for command, options in MACHINE:
            assert "whole machine" not in answer(await lab.ana.slash(lab.channel, command, **options)), command
            reply = answer(await both.manager.slash(lab.channel, command, **options))
            assert f"This concerns the whole machine. Only its operators can do that: <@{lab.ana.id}>." in reply
        for command, options in SERVER:
            reply = answer(await lab.ana.slash(lab.channel, command, **options))
            assert "You need the permission Manage Server to do this." in reply, command
        assert lab.env.errors
        assert await lab.ana.autocomplete(lab.channel, "admin slots", "slot", "")
        shown = await lab.ana.slash(lab.channel, "admin storage")
        assert "Only its operators" in await confirm_unasked(lab, both.manager, shown)
        assert disk.deleted == []
        asked = await press(lab.ana, shown.response.message, "Delete these")
        await press(lab.ana, asked.response.message, "Yes, delete them")
        assert disk.deleted == [1]


async def test_managers_of_the_one_configured_server_are_operators(data_dir: Path) -> None:
    async with two_servers(data_dir) as both:
        lab = both.lab
        configured(lab, guild_ids=(lab.channel.guild.id,))
        assert "The queue is paused" in answer(await both.manager.slash(lab.channel, "admin pause"))
        reply = answer(await both.other_manager.slash(both.channel, "admin resume"))
        assert "no operator is listed" in reply
        assert await lab.jobs.control.read() is not None
        assert lab.env.errors


async def test_every_admin_command_belongs_to_the_machine_or_to_a_server(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        client: Any = lab.env.bot
        verbs = {command.name for command in client.get_cog("AdminCommands").__cog_app_commands_group__.commands}
        assert verbs == {command.split()[1] for command, _ in COMMANDS}


async def test_an_undelivered_message_is_sent_again_to_the_channel_of_the_command(data_dir: Path) -> None:
    async with two_servers(data_dir) as both:
        lab = both.lab
        second = lab.channel.guild.create_text_channel("second")
        await lab.train()
        assert "Every message has been delivered" in answer(await both.manager.slash(second, "admin resend"))
        async with lab.app.db.transaction() as connection:
            await connection.execute("UPDATE outbox SET state = 'dead' WHERE dedupe_key = 'job:1:end'")
        # The managers of another server reach nothing of this one.
        foreign = answer(await both.other_manager.slash(both.channel, "admin resend", here=True))
        assert "Every message has been delivered" in foreign
        assert "1 message is sent again, to this channel" in answer(
            await both.manager.slash(second, "admin resend", id="1", here=True)
        )
        await lab.until(lambda: any("is done" in text_of(each) for each in second.history(viewer=None)))
        assert not both.channel.history(viewer=None)
