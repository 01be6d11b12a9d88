"""`/admin settings`: roles and channels are checked on each command, press and form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bot.cogs.interaction_gate import error_sentence
from bot.config import AccessSettings
from bot.db.errors import DatabaseUnwritable
from bot.errors import ChannelNotAllowed, NotYourJob, RoleNeeded
from tests.bot.cogs.conftest import World, answer, world
from tests.bot.cogs.dataset_helpers import press


async def set_rules(lab: World, **rules: Any) -> None:
    await lab.app.services.access.set_rules(
        lab.channel.guild.id, AccessSettings.model_validate({name: tuple(ids) for name, ids in rules.items()}), by=1
    )


async def test_a_role_decides_who_may_train_share_and_see_datasets(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        guild = lab.channel.guild
        role = guild.create_role("Artists")
        artist = guild.add_member(lab.env.create_user("cleo"), roles=[role])
        await set_rules(lab, train=[role.id], share=[role.id], datasets=[role.id])
        for command, options in (
            ("finetune", {}),
            ("study kfold", {"from_dataset": "none"}),
            ("dataset list", {}),
            ("job share", {"id": "1"}),
        ):
            refused = answer(await lab.ben.slash(lab.channel, command, **options))
            assert f"this needs the role <@&{role.id}>" in refused, command
        assert await lab.recent() == []
        assert "Queue" in answer(await lab.ben.slash(lab.channel, "queue"))

        await lab.finetune(artist, name="ok")
        assert [job.name for job in await lab.recent()] == ["ok"]
        await lab.finetune(lab.add_manager(), name="boss", epochs=2)
        assert [job.name for job in await lab.recent()] == ["boss", "ok"]


async def test_a_role_may_manage(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        role = lab.channel.guild.create_role("Leads")
        lead = lab.channel.guild.add_member(lab.env.create_user("cleo"), roles=[role])
        await lab.finetune()
        assert "Only" in answer(await lead.slash(lab.channel, "job cancel", id="1"))
        await set_rules(lab, manage=[role.id])
        assert "Only" not in answer(await lead.slash(lab.channel, "job cancel", id="1"))
        assert "Only" in answer(await lab.ben.slash(lab.channel, "job cancel", id="1"))
        assert lab.refusals() == [NotYourJob, NotYourJob]


async def test_it_works_only_in_the_channels_of_the_server_s_rules(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        other = lab.channel.guild.create_text_channel("general")
        await set_rules(lab, channels=[lab.channel.id])
        assert f"Go to <#{lab.channel.id}>." in answer(await lab.ben.slash(other, "queue"))
        assert "Queue" in answer(await lab.ben.slash(lab.channel, "queue"))
        assert "Queue" in answer(await lab.add_manager().slash(other, "queue"))


async def test_managers_set_the_rules_in_a_form_and_the_audit_names_them(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        role, boss = lab.channel.guild.create_role("Artists"), lab.add_manager()
        opened = await boss.slash(lab.channel, "admin settings")
        saved = await boss.submit_modal(opened, {"train": [role], "channels": [lab.channel]})
        assert f"**Train:** <@&{role.id}>" in answer(saved)
        assert lab.app.services.access.rules_of(lab.channel.guild.id) == AccessSettings(
            train=(role.id,), channels=(lab.channel.id,)
        )
        audit = answer(await boss.slash(lab.channel, "admin audit"))
        assert f"<@{boss.id}>" in audit
        # The next form begins with what is set.
        again: Any = (await boss.slash(lab.channel, "admin settings")).modal
        defaults = [field["component"].get("default_values", []) for field in again["components"]]
        assert [[int(value["id"]) for value in each] for each in defaults] == [
            [role.id],
            [],
            [],
            [],
            [lab.channel.id],
        ]


def test_the_refusals_name_roles_and_channels_without_notifying_them() -> None:
    assert "<@&1> and <@&2>" in (error_sentence(RoleNeeded(role_ids=[1, 2])) or "")
    assert "<#3>" in (error_sentence(ChannelNotAllowed(channel_ids=[3])) or "")


async def test_roles_are_checked_again_on_each_press(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        role = lab.channel.guild.create_role("Artists")
        asked = (await lab.finetune(confirm=True)).response.message
        await set_rules(lab, train=[role.id], datasets=[role.id])
        for label in ("Start training", "Edit", "Captions"):
            pressed = await press(lab.ana, asked, label)
            assert f"this needs the role <@&{role.id}>" in answer(pressed), label
        assert await lab.recent() == []


async def test_choices_name_no_datasets_to_those_who_may_not_see_them(data_dir: Path) -> None:
    async with world(data_dir) as lab:
        role = lab.channel.guild.create_role("Artists")
        await lab.finetune()
        assert await lab.ben.autocomplete(lab.channel, "dataset inspect", "dataset", "")
        await set_rules(lab, datasets=[role.id])
        assert await lab.ben.autocomplete(lab.channel, "dataset inspect", "dataset", "") == []


async def test_rules_that_could_not_be_stored_come_back_in_the_form(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(data_dir) as lab:
        role, boss = lab.channel.guild.create_role("Artists"), lab.add_manager()

        async def refuse(*_arguments: object, **_options: object) -> None:
            raise DatabaseUnwritable(path=data_dir, why="the disk is full")

        opened = await boss.slash(lab.channel, "admin settings")
        monkeypatch.setattr(lab.app.services.access, "set_rules", refuse)
        refused = await boss.submit_modal(opened, {"train": [role]})
        assert "the disk is full" in answer(refused)
        again: Any = (await press(boss, refused.response.message, "Fix in form")).modal
        train = again["components"][0]["component"]
        assert [int(each["id"]) for each in train["default_values"]] == [role.id]
