"""Every command, button, menu and form, as the owner, a teammate, a stranger and a manager, in both languages.

The tables below say who may do what. They are compared with the command tree and the tables of handlers, so that a new
one needs a row. The bot is restarted in the middle; in the other language the two halves are swapped, so that each row
is met before and after it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import discord
import pytest
import simcord.interactions
from discord import app_commands

from bot.access import Ability
from bot.cogs import (
    admin_commands,
    dataset_buttons,
    gallery_command,
    help_command,
    job_actions,
    notify_command,
    sample_command,
)
from bot.config import AccessSettings
from bot.datasets.decisions import review_questions
from bot.errors import NotAllowed, NotFound
from bot.queue import PauseKind
from tests.bot.cogs.conftest import World, archive, first_bot, next_bot, texts
from tests.bot.cogs.dataset_helpers import DEFECTIVE
from tests.bot.cogs.test_languages import english

pytestmark = pytest.mark.slow

STRANGER, TEAMMATE, MANAGER, OWNER = "stranger", "teammate", "manager", "owner"
#: In this order: what is refused comes first, and what ends something is done by its owner.
ROLES = (STRANGER, TEAMMATE, MANAGER, OWNER)
EVERYONE, TEAM, OWN, MANAGE, MINE = (
    frozenset(ROLES),
    frozenset({TEAMMATE, MANAGER, OWNER}),
    frozenset({MANAGER, OWNER}),
    frozenset({MANAGER}),
    frozenset({OWNER}),
)


#: Discord's own permissions are asked for by discord.py.
_REFUSALS = (NotAllowed, app_commands.MissingPermissions)


@dataclass(frozen=True)
class Row:
    """Who may do something, and what they type; the others are refused."""

    who: frozenset[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    #: Typed into the form that it opens.
    typed: Mapping[str, Any] = field(default_factory=dict)
    #: Nothing is shown: a message changes for all.
    is_silent: bool = False


#: `DONE` is a training of the owner's that has ended, `WAITING` one that waits.
DONE, WAITING, DRAWN = "1", "2", "3"
IMAGES = archive(7)

COMMANDS: dict[str, Row] = {
    "finetune": Row(TEAM, {"from_dataset": "fox", "epochs": 5}),
    "sample": Row(TEAM, {"prompts": "a fox", "job": DONE}),
    "compare": Row(EVERYONE, {"jobs": "1 2"}),
    "gallery": Row(EVERYONE),
    "queue": Row(EVERYONE),
    "help": Row(EVERYONE),
    "notify": Row(EVERYONE),
    "study kfold": Row(TEAM, {"from_dataset": "fox", "epochs": 1, "folds": 2}),
    "study compare": Row(TEAM, {"from_dataset": "fox", "vary": "epochs=1,2"}),
    "preset save": Row(EVERYONE, {"id": DONE, "name": "mine"}),
    "preset list": Row(EVERYONE),
    "preset show": Row(EVERYONE, {"name": "kept"}),
    "preset delete": Row(OWN, {"name": "kept"}),
    "dataset upload": Row(TEAM, typed={"files": [IMAGES]}),
    "dataset add": Row(OWN, {"dataset": "fox", "file": archive(9)}),
    "dataset list": Row(TEAM),
    "dataset inspect": Row(TEAM, {"dataset": "fox"}),
    "dataset review": Row(TEAM, {"dataset": "fox"}),
    "dataset captions": Row(OWN, {"dataset": "fox"}, {"prefix": "a drawing of "}),
    "dataset privacy": Row(OWN, {"dataset": "fox"}, {"who": "everyone"}),
    "dataset delete": Row(OWN, {"dataset": "fox"}),
    "job status": Row(EVERYONE, {"id": DONE}),
    "job list": Row(EVERYONE),
    "job history": Row(EVERYONE, {"id": DONE}),
    "job logs": Row(EVERYONE, {"id": DONE}),
    "job files": Row(EVERYONE, {"id": DONE}),
    "job note": Row(OWN, {"id": DONE, "text": "the first one"}),
    "job stop": Row(OWN, {"id": WAITING}),
    "job pause": Row(OWN, {"id": WAITING}),
    "job resume": Row(OWN, {"id": WAITING}),
    "job cancel": Row(OWN, {"id": WAITING}),
    "job retry": Row(OWN, {"id": WAITING}),
    "job extend": Row(OWN, {"id": DONE, "epochs": 1}),
    "job pin": Row(OWN, {"id": DONE}),
    "job unpin": Row(OWN, {"id": DONE}),
    "job share": Row(OWN, {"id": DONE}),
    "job unshare": Row(OWN, {"id": DONE}),
    "admin limits set": Row(MANAGE, {"role": None, "epochs": 50}),
    "admin limits clear": Row(MANAGE, {"role": None}),
    "admin limits list": Row(MANAGE),
    "admin pause": Row(MANAGE),
    "admin drain": Row(MANAGE),
    "admin resume": Row(MANAGE),
    "admin models": Row(MANAGE),
    "admin bump": Row(MANAGE, {"id": WAITING}),
    "admin slots": Row(MANAGE),
    "admin settings": Row(MANAGE, typed={"train": "team", "share": "team", "datasets": "team"}),
    "admin gallery": Row(MANAGE),
    "admin language": Row(MANAGE),
    "admin audit": Row(MANAGE),
    "admin health": Row(MANAGE),
    "admin resend": Row(MANAGE),
    "admin links": Row(MANAGE),
    "admin storage": Row(MANAGE),
}
#: By the custom id; `{draft}`, `{image}` and `{question}` are the owner's.
BUTTONS: dict[str, Row] = {
    "help:start": Row(EVERYONE),
    "notify:quiet": Row(EVERYONE, typed={"begins": "22:00", "ends": "7:00", "zone": "Europe/Berlin"}),
    "admin:delete:00": Row(MANAGE),
    "admin:delete_now:00": Row(MANAGE),
    "job:1:watch": Row(EVERYONE),
    "job:1:details": Row(EVERYONE),
    "job:1:web": Row(EVERYONE),
    "job:1:log": Row(EVERYONE),
    "job:1:history": Row(EVERYONE),
    "job:0:queue_page": Row(EVERYONE),
    "job:1:compare": Row(EVERYONE),
    "job:1:open": Row(EVERYONE),
    "job:1:refresh": Row(EVERYONE),
    "job:1:samples": Row(EVERYONE),
    "job:1:files": Row(EVERYONE),
    "job:1:run_again": Row(TEAM),
    "job:1:try_settings": Row(TEAM, typed={}),
    "job:1:try_prompts": Row(TEAM, typed={"prompts": "a fox"}),
    "job:1:compare_epochs": Row(TEAM, typed={"prompts": "a fox"}),
    "job:1:more_epochs": Row(OWN, typed={"epochs": "1"}),
    "job:1:train_winner": Row(TEAM),
    "job:1:publish": Row(OWN),
    "job:1:publish_now": Row(OWN),
    "job:1:share": Row(OWN),
    "job:1:unshare": Row(OWN),
    "job:1:pin": Row(OWN),
    "job:1:unpin": Row(OWN),
    "job:1:retry_rate": Row(OWN),
    "job:1:retry_px": Row(OWN),
    "job:1:continue": Row(OWN),
    "job:2:stop": Row(OWN),
    "job:2:keep_best": Row(OWN),
    "job:2:pause": Row(OWN),
    "job:2:resume": Row(OWN),
    "job:2:cancel": Row(OWN),
    "job:2:retry": Row(OWN),
    "job:2:cancel_now": Row(OWN),
    "job:3:draw_again": Row(OWN),
    "job:3:other_seeds": Row(TEAM),
    "job:3:all_images": Row(EVERYONE),
    "job:3:share_images": Row(OWN),
    "gallery:1:like": Row(EVERYONE, is_silent=True),
    "gallery:1:try": Row(TEAM),
    "gallery:1:download": Row(EVERYONE),
    "gallery:1:web": Row(EVERYONE),
    "gallery:1:tags": Row(OWN, typed={"tags": "fox"}),
    "gallery:0:page:0-newest-0--": Row(EVERYONE),
    "gallery:0:sort:0-newest-0--": Row(EVERYONE),
    "gallery:1:unshare": Row(OWN),
    "ds:0:list:0": Row(TEAM),
    "ds:1:sheet:1": Row(TEAM),
    "ds:1:review": Row(TEAM),
    "ds:1:prev:{image}": Row(TEAM),
    "ds:1:next:{image}": Row(TEAM),
    "ds:1:question:{question}": Row(TEAM),
    "ds:1:each:{question}": Row(TEAM),
    "ds:1:keep:{image}": Row(OWN),
    "ds:1:drop:{image}": Row(OWN),
    "ds:1:right:{image}": Row(OWN),
    "ds:1:captions": Row(OWN),
    "ds:1:rules": Row(OWN, typed={"prefix": "a drawing of "}),
    "ds:1:write": Row(OWN),
    "ds:1:caption:{image}": Row(OWN, typed={"caption": "a fox"}),
    "ds:1:done": Row(TEAM),
    "ds:1:report": Row(TEAM),
    "ds:0:upload_link:0": Row(TEAM),
    "ds:0:hub_download:0": Row(TEAM),
    "ds:0:upload_end:0": Row(EVERYONE),
    "ds:1:web": Row(TEAM),
    "ds:1:privacy": Row(OWN, typed={"who": "everyone"}),
    "ds:1:spare": Row(TEAM),
    "ds:1:train": Row(TEAM),
    "ds:1:request:{draft}": Row(MINE),
    "ds:1:edit:{draft}": Row(MINE),
    "ds:1:fix:{draft}": Row(MINE),
    "ds:1:advanced:{draft}": Row(MINE),
    "ds:1:page:{draft}-size": Row(MINE),
    "ds:1:back:{draft}": Row(MINE),
    "ds:1:go:{draft}": Row(MINE),
    "ds:1:again:{draft}": Row(MINE),
    "ds:1:cancel:{draft}": Row(MINE),
    "ds:1:delete": Row(OWN),
}
#: Menus, with what is chosen.
MENUS: dict[str, Row] = {
    "notify:at:done": Row(EVERYONE, {"choice": "none"}),
    "sample:3:vote": Row(EVERYONE, {"choice": "0"}),
    "sample:3:image": Row(EVERYONE, {"choice": "0"}),
    "sample:3:use": Row(OWN, {"choice": "0"}),
}
#: What these end is not there for those who come later; they are walked last.
ENDS = ("job unshare", "job:1:unshare", "gallery:1:unshare", "dataset delete", "ds:1:delete")
#: Words of the stand-in for the trainer, of the owner's note, and of commands.
_NOT_OURS = ("the edges are", "the first one", "rank is no setting", "job cancel id")
_TABLES = {
    "help": help_command.HANDLERS,
    "notify": notify_command.HANDLERS,
    "admin": admin_commands.HANDLERS,
    "job": job_actions.HANDLERS,
    "gallery": gallery_command.HANDLERS,
    "ds": dataset_buttons.HANDLERS,
    "sample": sample_command.MENUS,
}


@dataclass
class Walk:
    """The four people in their server, and what their last interaction raised."""

    lab: World
    people: dict[str, Any]
    names: dict[str, str]
    team: Any
    is_chinese: bool = False
    raised: list[BaseException] = field(default_factory=list)
    #: What went wrong, so that one run tells all of it.
    found: list[str] = field(default_factory=list)

    def listen(self) -> None:
        """Learn of each error that the bot reports to a person."""
        gate = self.lab.app.services.gate
        report = gate.report

        async def reported(interaction: discord.Interaction, error: BaseException) -> None:
            self.raised.append(getattr(error, "original", error))
            await report(interaction, error)

        gate.report = reported  # type: ignore[method-assign]

    def check(self, where: str, row: Row, role: str, result: Any) -> None:
        """Members who may are not refused, those who may not are; each gets an answer in their language."""
        messages = [*([result.response] if result.response else []), *result.followups]
        told = [text for each in messages for text in texts(each.components)]
        if not told and not result.modal and not row.is_silent:
            self.found.append(f"{where}: no answer")
        is_gone = role not in row.who and where.partition(" of ")[0].removeprefix("/") in ENDS
        # What has ended is not found by those either who could not have ended it.
        refusals = (*_REFUSALS, NotFound) if is_gone else _REFUSALS
        is_refused = any(isinstance(error, refusals) for error in self.raised)
        if is_refused is (role in row.who):
            why = self.raised[0] if self.raised else " ".join(told)[:100]
            self.found.append(f"{where}: {'refused' if is_refused else 'not refused'}: {why}")
        for text in told:
            if "Something broke" in text or "出了问题" in text:
                self.found.append(f"{where}: {text}")
            words = [each for each in english(text) if not each.startswith(_NOT_OURS)] if self.is_chinese else []
            if words:
                self.found.append(f"{where}: not in Chinese: {words}")

        if result.modal:
            self.found += [f"{where}: {why}" for why in too_long(result.modal)]

    async def submit(self, where: str, row: Row, role: str, result: Any) -> None:
        """Send the form that was opened."""
        if result.modal and role in row.who:
            self.begin()
            typed = {name: self.team if value == "team" else value for name, value in row.typed.items()}
            self.check(f"{where}, form", row, role, await self.people[role].submit_modal(result, typed))

    def begin(self) -> None:
        self.raised.clear()
        self.lab.app.services.gate._uses.clear()

    async def command(self, name: str, row: Row, role: str) -> None:
        self.begin()
        options = dict(row.options)
        if "role" in options:
            options["role"] = self.lab.channel.guild.create_role("some role")
        result = await self.people[role].slash(self.lab.channel, name, **options)
        where = f"/{name} of the {role}"
        self.check(where, row, role, result)
        await self.submit(where, row, role, result)

    async def press(self, custom_id: str, row: Row, role: str) -> None:
        self.begin()
        item: discord.ui.Item[Any] = discord.ui.Button(custom_id=custom_id.format(**self.names), label="pressed")
        await self._use(custom_id, item, row, role)

    async def choose(self, custom_id: str, row: Row, role: str) -> None:
        self.begin()
        menu: discord.ui.Select[Any] = discord.ui.Select(custom_id=custom_id)
        menu.add_option(label="chosen", value=row.options["choice"])
        await self._use(custom_id, menu, row, role)

    async def _use(self, custom_id: str, item: discord.ui.Item[Any], row: Row, role: str) -> None:
        """Use a control on a message that only has it, as if an earlier bot had made it."""
        view = discord.ui.LayoutView()
        view.add_item(discord.ui.ActionRow(item))
        message = await self.lab.env.bot.get_channel(self.lab.channel.id).send(view=view)
        view.stop()
        person, used_id = self.people[role], item.custom_id  # type: ignore[attr-defined]
        if isinstance(item, discord.ui.Button):
            result = await person.click(message, custom_id=used_id)
        else:
            result = await person.select(message, [row.options["choice"]], custom_id=used_id)
        where = f"{custom_id} of the {role}"
        self.check(where, row, role, result)
        await self.submit(where, row, role, result)
        await message.delete()


#: Discord's limits for parts of a form: https://discord.com/developers/docs/components/reference
_MOST = {"title": 45, "placeholder": 150, "custom_id": 100}
_MOST_OF_LABEL = {"label": 45, "description": 100}
_MOST_OF_OPTION = {"label": 100, "description": 100, "value": 100}


def too_long(part: Mapping[str, Any], most: Mapping[str, int] = _MOST) -> list[str]:
    """What Discord would refuse of a form."""
    found = [
        f"{name} {part[name]!r} has {len(part[name])} of {limit} letters"
        for name, limit in most.items()
        if len(part.get(name) or "") > limit
    ]
    if len(part.get("components", ())) > 5:
        found.append("more than five fields")
    for each in part.get("components", ()):
        found += too_long(each, {**_MOST, **_MOST_OF_LABEL})
    if part.get("component"):
        found += too_long(part["component"])
    for option in part.get("options", ()):
        found += too_long(option, _MOST_OF_OPTION)
    return found


async def settle(lab: World) -> Walk:
    """Make the four people, and what is the owner's: a dataset, a training that has ended, one that waits, drawings."""
    guild = lab.channel.guild
    team = guild.create_role("team")
    stranger = guild.add_member(lab.env.create_user("sam"))
    manager = lab.add_manager()
    for member in (lab.ana, lab.ben):
        lab.env.backend.get_guild(guild.id).members[member.id].role_ids.append(team.id)
    needed = {str(each): (team.id,) for each in Ability if each is not Ability.MANAGE}
    await lab.app.services.access.set_rules(guild.id, AccessSettings.model_validate(needed), by=1)
    client: Any = lab.env.bot
    (admin,) = [each for each in await client.tree.fetch_commands() if each.name == "admin"]
    # A server may show `/admin` to anyone; the bot looks itself.
    guild.set_command_permissions(admin, dict.fromkeys((lab.ana, lab.ben, stranger), True))

    await lab.finetune(dataset=DEFECTIVE, epochs=2)
    await lab.until_shown("✅ #1 fox")
    await lab.until_sent()
    await lab.jobs.control.pause(PauseKind.PAUSE, by=1)
    await lab.finetune(from_dataset="fox", epochs=3)
    await lab.ana.slash(lab.channel, "sample", prompts="a fox", job=DONE)
    await lab.ana.slash(lab.channel, "job share", id=DONE)
    await lab.ana.slash(lab.channel, "preset save", id=DONE, name="kept")
    await lab.finetune(from_dataset="fox", epochs=4, confirm=True)
    (draft,) = await lab.app.db.all("SELECT MAX(id) AS id FROM draft")
    report = await lab.app.services.datasets.report(await lab.app.services.datasets.get(1))
    question = review_questions(report)[0]
    names = {
        "draft": str(draft["id"]),
        "image": f"{question.images[0].key}-{question.key}",
        "question": question.key,
    }
    people = {STRANGER: stranger, TEAMMATE: lab.ben, MANAGER: manager, OWNER: lab.ana}
    return Walk(lab=lab, people=people, names=names, team=[team])


def parts(*, is_swapped: bool) -> tuple[list[tuple[str, str, Row]], list[tuple[str, str, Row]]]:
    """What is walked before the restart and after it; what ends the dataset comes last."""
    found = [
        *(("command", name, row) for name, row in COMMANDS.items()),
        *(("press", custom_id, row) for custom_id, row in BUTTONS.items()),
        *(("choose", custom_id, row) for custom_id, row in MENUS.items()),
    ]
    ends = [row for name in ENDS for row in found if row[1] == name]
    others = [row for row in found if row not in ends]
    first, second = others[::2], others[1::2]
    return (second, [*first, *ends]) if is_swapped else (first, [*second, *ends])


async def walk_all(walk: Walk, part: Sequence[tuple[str, str, Row]]) -> None:
    for how, name, row in part:
        for role in ROLES:
            await getattr(walk, how)(name, row, role)


def test_every_command_and_control_has_a_row() -> None:
    walked = {(custom_id.split(":")[0], custom_id.split(":")[_VERB_AT.get(custom_id.split(":")[0], 2)])
              for custom_id in (*BUTTONS, *MENUS)}  # fmt: skip
    made = {(kind, str(verb)) for kind, table in _TABLES.items() for verb in table}
    # A page of help is its verb.
    walked = {(kind, "page" if kind == "help" else verb) for kind, verb in walked}
    assert made == walked


#: Where a custom id has its verb.
_VERB_AT = {"help": 1, "notify": 1, "admin": 1}


@pytest.fixture(params=["en-US", "zh-CN"])
def locale(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The language of all four people and their server."""
    build = simcord.interactions.base_payload

    def spoken(*arguments: Any, **options: Any) -> Any:
        record, payload = build(*arguments, **options)
        return record, payload | {"locale": request.param, "guild_locale": request.param}

    monkeypatch.setattr(simcord.interactions, "base_payload", spoken)
    return str(request.param)


async def test_everyone_may_what_the_tables_say(data_dir: Path, locale: str, caplog: pytest.LogCaptureFixture) -> None:
    before, after = parts(is_swapped=locale == "zh-CN")
    async with first_bot(data_dir) as lab:
        tree: app_commands.CommandTree[Any] = lab.env.bot.tree
        commands = {each.qualified_name for each in tree.walk_commands() if isinstance(each, app_commands.Command)}
        assert commands == set(COMMANDS)
        walk = await settle(lab)
        walk.is_chinese = locale == "zh-CN"
        walk.listen()
        await walk_all(walk, before)
    async with next_bot(lab, data_dir):
        walk.listen()
        await walk_all(walk, after)
        lab.refusals()
    assert not walk.found, "\n".join(walk.found)
    broken = [record for record in caplog.records if record.exc_info and record.levelno >= logging.ERROR]
    assert broken == []
    assert not re.search("Traceback", caplog.text)
