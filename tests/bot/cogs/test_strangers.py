"""Every command, button, form and autocompletion, used by strangers: nothing of others is shown, changed, or broken.

The handlers are listed from the command tree and the tables of buttons, so that a new one is walked too.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import discord
import pytest
from discord import AppCommandOptionType as OptionType
from discord import app_commands

from bot.app.client import HANDLERS
from bot.cogs import admin_commands, dataset_buttons, gallery_command, job_actions
from bot.cogs.interaction_gate import ButtonHandler
from bot.datasets.decisions import review_questions
from bot.queue.store.gallery_store import Picture, ShownImage
from bot.ui import buttons, dataset_forms
from bot.ui.dataset_forms import Form
from tests.bot.cogs.conftest import World, answer, archive, texts, world
from tests.bot.cogs.dataset_helpers import DEFECTIVE, press_forged

pytestmark = pytest.mark.slow

#: Options that name something; a stranger names what is Ana's.
NAMES = {
    "id": "secret-job",
    "job": "secret-job",
    "jobs": "secret-job",
    "dataset": "secret-fox",
    "from_dataset": "secret-fox",
    "slot": "cpu:0",
}
#: Values of other options that a command requires.
REQUIRED = {"vary": "epochs=1,2", "epochs": 1, "name": "some-preset", "prompts": "a fox"}
FORGED_NAMES = ("#" + "9" * 18, "9" * 40, "x" * 3000 + "\x00\x1b[31m\u202e' OR 1=1 -- half a pair: \ud83e")
FORGED_ARGUMENTS = ("9" * 40, "0d" + "9" * 26)
FORGED_IDS = ("9" * 18, "9" * 40)


@dataclass(frozen=True, kw_only=True)
class Servers:
    """Ana's server with what is hers, and another server, whose manager is Mallory."""

    lab: World
    boss: Any
    mallory: Any
    elsewhere: Any
    #: Of Ana.
    dataset_id: int
    draft_id: int
    job_id: int
    image: str

    def strangers(self) -> Iterator[tuple[Any, Any]]:
        """Who acts, and in which channel."""
        yield self.lab.ben, self.lab.channel
        yield self.mallory, self.elsewhere

    def role_of(self, channel: Any) -> Any:
        return channel.guild.create_role("some role")

    async def state(self) -> list[tuple[Any, ...]]:
        """Everything of Ana, and of her server."""
        guild_id, ana = self.lab.channel.guild.id, self.lab.ana.id
        rows: list[tuple[Any, ...]] = []
        for query, value in (
            ("SELECT id, state, stop_intent, priority, pinned_at, shared_at FROM job WHERE owner_id = ?", ana),
            ("SELECT id, name, edits, revision, is_private, deleted_at FROM dataset WHERE owner_id = ?", ana),
            ("SELECT * FROM role_limit WHERE guild_id = ?", guild_id),
            ("SELECT name, value FROM setting WHERE name LIKE '%pause%' AND ?", 1),
            ("SELECT id, is_enabled, is_off FROM slot WHERE ?", 1),
        ):
            rows += [tuple(row) for row in await self.lab.app.db.all(query, (value,))]
        return rows

    def forget_uses(self) -> None:
        """A person does not walk all handlers within a minute."""
        self.lab.app.services.gate._uses.clear()


@asynccontextmanager
async def servers(data_dir: Path) -> AsyncIterator[Servers]:
    async with world(data_dir) as lab:
        await lab.finetune(name="secret-job", dataset=("secret-fox.zip", DEFECTIVE[1]))
        await lab.until_shown("is done")
        await lab.finetune(name="secret-draft", from_dataset="secret-fox", confirm=True, seed=1)
        dataset = await lab.app.services.datasets.named(lab.channel.guild.id, "secret-fox")
        *_started, draft = await lab.app.db.all("SELECT id FROM draft ORDER BY id")
        (job,) = await lab.app.db.all("SELECT id FROM job")
        report = await lab.app.services.datasets.report(dataset)
        picture = Picture(path="secret.png", images=(ShownImage(prompt="secret prompt", seed=1),))
        await lab.jobs.gallery.post(
            await lab.jobs.get(job["id"]),
            picture,
            model_job_id=job["id"],
            base="secret",
            tags=("secret",),
            channel_id=lab.channel.id,
            by=lab.ana.id,
        )
        elsewhere = lab.env.create_guild("Elsewhere")
        lead = elsewhere.create_role("lead", permissions=discord.Permissions(manage_guild=True))
        client: Any = lab.env.bot
        (admin,) = [each for each in await client.tree.fetch_commands() if each.name == "admin"]
        lab.channel.guild.set_command_permissions(admin, {lab.ben: True})
        yield Servers(
            lab=lab,
            boss=lab.add_manager(),
            mallory=elsewhere.add_member(lab.env.create_user("mallory"), roles=[lead]),
            elsewhere=elsewhere.create_text_channel("there"),
            dataset_id=dataset.id,
            draft_id=draft["id"],
            job_id=job["id"],
            image=review_questions(report)[0].images[0].key + "-" + review_questions(report)[0].key,
        )


def tree_of(both: Servers) -> app_commands.CommandTree[Any]:
    client: Any = both.lab.env.bot
    tree: app_commands.CommandTree[Any] = client.tree
    return tree


def commands_of(both: Servers) -> list[app_commands.Command[Any, ..., Any]]:
    return [each for each in tree_of(both).walk_commands() if isinstance(each, app_commands.Command)]


def options_of(command: app_commands.Command[Any, ..., Any], both: Servers, channel: Any, name: str) -> dict[str, Any]:
    """What a stranger types: `name` for everything that has a name (empty: what is Ana's)."""
    typed: dict[str, Any] = {}
    for option in command.parameters:
        key = option.display_name
        if option.type is OptionType.attachment:
            # `/finetune` takes a dataset by its name too.
            typed |= {key: archive()} if option.required else {}
        elif option.type is OptionType.role:
            typed[key] = both.role_of(channel)
        elif key in NAMES and option.type is OptionType.string:
            typed[key] = name or NAMES[key]
        elif option.required:
            typed[key] = REQUIRED[key]
    return typed


def shown(result: Any) -> list[str]:
    """All texts and files that an interaction shows its member."""
    messages = [*([result.response] if result.response else []), *result.followups]
    return [*(text for each in messages for text in texts(each.components)), *(
        file.filename for each in messages for file in each.attachments
    )]  # fmt: skip


def assert_nothing_leaked(result: Any, typed: Mapping[str, Any], where: str) -> None:
    """What is Ana's is named `secret…`; a sentence may repeat what was typed."""
    told = " ".join(shown(result))
    for value in typed.values():
        told = told.replace(str(value), "")
    assert "secret" not in told, where


def assert_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    broken = [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]
    assert broken == []


async def test_commands(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with servers(data_dir) as both:
        before = await both.state()
        for actor, channel in both.strangers():
            for command in commands_of(both):
                for name in ("", *FORGED_NAMES):
                    options = options_of(command, both, channel, name)
                    if name and name not in options.values():
                        continue
                    both.forget_uses()
                    result = await actor.slash(channel, command.qualified_name, **options)
                    where = f"/{command.qualified_name} {name!r} of {actor}"
                    assert result.modal or answer(result), where
                    assert "Something broke" not in " ".join(shown(result)), where
                    if actor is both.mallory:
                        assert_nothing_leaked(result, options, where)
        assert await both.state() == before
        # simcord wants to know that refusals were expected.
        assert both.lab.env.errors
        assert_no_traceback(caplog)


async def test_autocompletions(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with servers(data_dir) as both:
        offered = 0
        for actor, channel in both.strangers():
            for command in commands_of(both):
                for option in (each.display_name for each in command.parameters if each.autocomplete):
                    for typed in ("", "secret", *FORGED_NAMES):
                        choices = await actor.autocomplete(channel, command.qualified_name, option, typed)
                        where = f"/{command.qualified_name} {option}:{typed!r} of {actor}"
                        offered += len(choices)
                        assert actor is both.lab.ben or "secret" not in str(choices), where
        assert offered
        assert_no_traceback(caplog)


def arguments_of(handler: ButtonHandler, both: Servers) -> list[str]:
    """Arguments as the bot makes them for what is Ana's."""
    made = [
        "",
        "0",
        str(both.draft_id),
        f"{both.draft_id}-size",
        f"0d{both.draft_id}",
        f"1d{both.draft_id}",
        both.image,
        "blur",
        "0-newest-0--",
    ]
    found = [each for each in made if re.fullmatch(handler.argument, each)]
    assert found, f"no example for the argument {handler.argument!r}"
    return found


def custom_ids(both: Servers) -> Iterator[str]:
    for verb, handler in job_actions.HANDLERS.items():
        assert handler.argument == ""
        yield from (f"job:{job_id}:{verb}" for job_id in (both.job_id, both.draft_id, *FORGED_IDS))
    for verb, handler in dataset_buttons.HANDLERS.items():
        made = arguments_of(handler, both)
        yield from (dataset_id_of(both.dataset_id, verb, each) for each in (*made, *FORGED_ARGUMENTS))
        # Of Mallory's dataset, with what belongs to Ana's.
        yield from (dataset_id_of(both.dataset_id + 1, verb, each) for each in made)
        yield from (f"ds:{each}:{verb}:{made[0] or 1}" for each in FORGED_IDS)
    for verb, handler in admin_commands.HANDLERS.items():
        yield from (f"admin:{verb}:{each}" for each in (*arguments_of(handler, both), *FORGED_ARGUMENTS))
    for verb, handler in gallery_command.HANDLERS.items():
        made = [f":{each}" if each else "" for each in arguments_of(handler, both)]
        yield from (f"gallery:{post_id}:{verb}{each}" for post_id in ("1", *FORGED_IDS) for each in made)
        yield from (f"gallery:1:{verb}:{each}" for each in FORGED_ARGUMENTS)
    yield from ("help:start", "help:", "help:dance", "form:1", "form:", "form:x", "form:" + "9" * 40)
    yield from ("job:", "ds:", "admin:", "job:1:dance", "ds:1:dance", "admin:dance:1", "ds:1:list:zz:1", "job:٣:open")


def dataset_id_of(dataset_id: int, verb: str, argument: str) -> str:
    return f"ds:{dataset_id}:{verb}" + (f":{argument}" if argument else "")


async def test_buttons(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    defined = {each for name, each in inspect.getmembers(buttons, inspect.isclass) if not name.startswith("_")}
    assert {each for each in defined if issubclass(each, discord.ui.DynamicItem)} == set(HANDLERS)
    async with servers(data_dir) as both:
        # Number two: Mallory's own.
        upload = await both.mallory.slash(both.elsewhere, "dataset upload")
        await both.mallory.submit_modal(upload, {"files": [("own.zip", archive(7)[1])]})
        before = await both.state()
        for actor, channel in both.strangers():
            for custom_id in custom_ids(both):
                both.forget_uses()
                where = f"{custom_id} of {actor}"
                text = await press_forged(both.lab, custom_id, actor, channel)
                assert text, where
                assert "Something broke" not in text, where
                assert actor is both.lab.ben or "secret" not in text, where
        assert await both.state() == before
        assert_no_traceback(caplog)


async def test_forms(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Opened by a member who may, and sent when they no longer may."""
    made = {
        name
        for name, each in inspect.getmembers(dataset_forms)
        if (inspect.isclass(each) and issubclass(each, Form) and each is not Form)
        or (inspect.isfunction(each) and inspect.signature(each).return_annotation == "Form")
    }
    async with servers(data_dir) as both:
        lab, boss = both.lab, both.boss
        page = (await boss.slash(lab.channel, "dataset review", dataset="secret-fox")).response.message
        opened = {
            "UploadForm": await boss.slash(lab.channel, "dataset upload"),
            "rules_form": await boss.slash(lab.channel, "dataset captions", dataset="secret-fox"),
            "PrivacyForm": await boss.slash(lab.channel, "dataset privacy", dataset="secret-fox"),
            "caption_form": await boss.click(page, custom_id=f"ds:{both.dataset_id}:caption:{both.image}"),
        }
        assert set(opened) == made
        before = await both.state()
        lab.env.backend.get_guild(lab.channel.guild.id).members[boss.id].role_ids.clear()
        refused = [
            await boss.submit_modal(opened["rules_form"], {"trigger": "sks"}),
            await boss.submit_modal(opened["caption_form"], {"caption": "mine"}),
            await boss.submit_modal(opened["PrivacyForm"], {"who": "private", "guests": []}),
        ]
        for result in refused:
            assert f"Only <@{lab.ana.id}> or a manager of the server can" in answer(result)
        assert await both.state() == before
        assert_no_traceback(caplog)
