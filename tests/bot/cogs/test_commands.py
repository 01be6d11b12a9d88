"""All commands: within Discord's limits, for servers only, and synced when they change."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import discord

from bot.app.compose import compose
from bot.cogs.interaction_gate import PAGES
from tests.bot.cogs.conftest import answer, config_for, world
from tests.bot.cogs.dataset_helpers import press_forged


def parts(commands: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for command in commands:
        yield command
        yield from parts(command.get("options", []))


async def test_every_command_is_within_the_limits_of_discord(data_dir: Path) -> None:
    async with compose(config_for(data_dir)) as app, app.new_client() as client:
        await client.add_commands()
        commands = [command.to_dict(client.tree) for command in client.tree.get_commands()]
        assert [command["name"] for command in commands] == [
            "finetune",
            "dataset",
            "job",
            "queue",
            "notify",
            "study",
            "admin",
            "preset",
            "sample",
            "compare",
            "gallery",
            "help",
            "Use attachments as dataset",
        ]
        for part in parts(commands):
            # A message menu has no description.
            is_menu = part["name"] == "Use attachments as dataset"
            assert is_menu or 1 <= len(part["description"]) <= 100, part
            assert is_menu or part["description"] != "…", part
            assert len(part.get("options", [])) <= 25, part
        for command in commands:
            size = sum(len(part["name"]) + len(part.get("description", "")) for part in parts([command]))
            assert size < 8000, f"/{command['name']}: Discord's limit for one command"


async def test_commands_are_for_servers_only(data_dir: Path) -> None:
    async with compose(config_for(data_dir)) as app, app.new_client() as client:
        await client.add_commands()
        for command in client.tree.get_commands():
            data: Any = command.to_dict(client.tree)
            assert data["dm_permission"] is False or data["contexts"] == [0], data


async def test_admin_is_shown_to_managers_of_the_server(data_dir: Path) -> None:
    async with compose(config_for(data_dir)) as app, app.new_client() as client:
        await client.add_commands()
        shown = {command.name: command.to_dict(client.tree) for command in client.tree.get_commands()}
        needed = str(discord.Permissions(manage_guild=True).value)
        assert shown["admin"]["default_member_permissions"] == int(needed)
        assert all(data["default_member_permissions"] is None for name, data in shown.items() if name != "admin")


async def test_no_privileged_intents_and_no_default_mentions(data_dir: Path) -> None:
    async with compose(config_for(data_dir)) as app, app.new_client() as client:
        assert client.intents == discord.Intents(guilds=True)
        assert client.allowed_mentions is not None
        assert dict(client.allowed_mentions.to_dict()) == {"parse": []}


async def test_commands_are_synced_only_when_they_change(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        client: Any = lab.env.bot
        assert len([r for r in lab.env.http_requests if r.method == "PUT"]) == 1
        assert await (await client.command_sync(client.application_id)).is_current(None)
        client.tree.get_command("queue").description = "Something new."
        sync = await client.command_sync(client.application_id)
        assert not await sync.is_current(None)
        await sync.write(None)
        assert await sync.is_current(None)


async def test_a_member_who_asks_too_often_reads_how_long_to_wait(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        for _ in range(PAGES.uses):
            assert "Queue" in answer(await lab.ana.slash(lab.channel, "queue"))
        refused = await lab.ana.slash(lab.channel, "queue")
        assert f"You have used this {PAGES.uses} times within 30 s. Nothing was done; try again in " in answer(refused)
        assert refused.response.ephemeral
        # Others are not affected, and neither is what costs little.
        assert "Queue" in answer(await lab.ben.slash(lab.channel, "queue"))
        assert "no job" in answer(await lab.ana.slash(lab.channel, "job pin", id="1"))
        assert lab.env.errors


async def test_an_answer_leaves_no_task_behind(data_dir: Path) -> None:
    """discord.py would let the buttons of each answer that only one person sees wait for 15 minutes."""
    async with world(data_dir) as lab:
        for custom_id in ("help:start", "job:99:details", "ds:99:review", "gallery:99:like"):
            await press_forged(lab, custom_id)
        coroutines = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
        assert [name for name in coroutines if "timeout" in name] == []
