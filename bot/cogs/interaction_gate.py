"""The way of every command, button and form to its handler: once, in its server, not too often, acknowledged first.

What a handler raises becomes one sentence for the member who acted; in the channel, if Discord no longer takes an
answer to the interaction.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import discord
from discord import app_commands

from bot.access import Ability, Access
from bot.cogs.replies import Acknowledgement, AnswerFailed, acknowledge, is_acknowledged, open_form, reply, source_of
from bot.errors import DarkroomError, DraftEnded, FormForgotten, NotAllowed, NotFound, StaleButton, TooOften
from bot.languages import Languages
from bot.outbox import Notification, NotificationKind
from bot.ui.dataset_forms import Form, FormCallback, forgotten_form, is_forgotten_form, refused_form
from bot.ui.discord_text import escape, permission_names
from bot.ui.layout import text_message
from bot.ui.upload_posts import Unanswered, unanswered_words
from trainer.protocol.setting_problems import with_short_names
from trainer.protocol.spec import SpecError
from trainer.protocol.text import _, listed

log = logging.getLogger(__name__)

#: Letters and digits that cannot be confused when read aloud.
_REFERENCE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
_MAX_SENTENCE_CHARS = 1500
#: Interactions that are remembered, so that one that is delivered twice is handled once: those of some minutes.
_MAX_SEEN = 10_000
#: Members and rates whose uses are counted.
_MAX_COUNTED = 10_000

#: Forms that can be opened again with what was typed; those of some hours.
_MAX_REFUSED_FORMS = 500

#: What the interaction needs that is handled in this task.
_needed: ContextVar[Ability | None] = ContextVar("needed", default=None)

#: A pattern of numbers in custom ids: SQLite's largest has 19 digits.
NUMBER = "[0-9]{1,18}"

#: Post a notification to a channel; the outbox sends it.
Post: TypeAlias = Callable[[Notification, int], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How often one member may use what shares this rate."""

    name: str
    uses: int
    per_s: float


# More than a person does who clicks as fast as they can read; a script meets them.
UPLOADS = Rate(name="uploads", uses=20, per_s=60)
PAGES = Rate(name="pages", uses=40, per_s=30)
REPORTS = Rate(name="reports", uses=5, per_s=60)


@dataclass(frozen=True, kw_only=True)
class ButtonHandler:
    """What a press on the buttons of one verb does."""

    run: Callable[..., Awaitable[None]]
    #: Pattern of the whole argument in the custom id.
    argument: str = ""
    acknowledgement: Acknowledgement = Acknowledgement.THINKING
    rate: Rate | None = None
    #: What the member must be allowed to.
    ability: Ability | None = None


def handled(acknowledgement: Acknowledgement = Acknowledgement.THINKING, rate: Rate | None = None) -> dict[str, Any]:
    """Return the `extras` of a command that is not only acknowledged as "thinking"."""
    return {"acknowledgement": acknowledgement, "rate": rate}


class InteractionGate:
    """Admits interactions to their handlers; outlives the Discord client, whose successor may get an event again."""

    def __init__(self, post: Post, languages: Languages, access: Access) -> None:
        self._post = post
        self._languages = languages
        self._access = access
        self._seen: OrderedDict[int, None] = OrderedDict()
        self._uses: OrderedDict[tuple[str, int], app_commands.Cooldown] = OrderedDict()
        #: The newest interaction that replaces a message, by the message.
        self._newest: OrderedDict[int, int] = OrderedDict()
        #: Forms that were refused, with who sent them, by the interaction.
        self._refused_forms: OrderedDict[int, tuple[int, Form]] = OrderedDict()

    async def admits_command(self, interaction: discord.Interaction) -> bool:
        """Whether a command or an autocompletion may go on to its handler; if not, it has its answer."""
        # discord.py runs each interaction in a task of its own.
        self._languages.address(interaction)
        if interaction.type is discord.InteractionType.autocomplete:
            self._access.note(interaction)
            is_allowed = self._access.allows(interaction, _needed_for(interaction))
            return interaction.guild_id is not None and is_allowed and self._is_new(interaction)
        extras = interaction.command.extras if interaction.command else {}
        try:
            _needed.set(_needed_for(interaction))
            return await self._admits(
                interaction, extras.get("acknowledgement", Acknowledgement.THINKING), extras.get("rate")
            )
        except Exception as error:  # noqa: BLE001 - the edge to Discord: every failure becomes a sentence.
            await self.report(interaction, error)
            return False

    async def press(
        self,
        services: object,
        interaction: discord.Interaction,
        handlers: Mapping[str, ButtonHandler],
        verb: str,
        arg: str,
        *about: int,
    ) -> None:
        """Run the handler of a button: `run(services, interaction, *about, arg)`; without `arg` if it takes none."""
        handler = handlers.get(verb)
        if handler is None or re.fullmatch(handler.argument, arg) is None:
            handler, arg = _STALE, ""
        arguments = (*about, arg) if handler.argument else about
        _needed.set(handler.ability)
        await self._run(interaction, handler.acknowledgement, handler.rate, partial(handler.run, services), *arguments)

    def form(
        self,
        submitted: FormCallback,
        rate: Rate | None = None,
        *,
        is_tracked: bool = False,
        is_answer_new: bool = False,
    ) -> FormCallback:
        """Wrap the callback of a form; what was typed into one that is refused comes back in the same form.

        Args:
            submitted: Handles the form.
            rate: How often a member may send it.
            is_tracked: It acknowledges itself, once its upload is stored.
            is_answer_new: Its answer is a new message, also if a button opened it.
        """

        # Roles may change between a form's opening and its answer.
        ability = _needed.get()

        async def handle(interaction: discord.Interaction, form: Form) -> None:
            try:
                await submitted(interaction, form)
            except (DarkroomError, SpecError) as error:
                if is_tracked or isinstance(error, NotAllowed | NotFound | DraftEnded):
                    raise
                self._refused_forms[interaction.id] = (interaction.user.id, form)
                if len(self._refused_forms) > _MAX_REFUSED_FORMS:
                    self._refused_forms.popitem(last=False)
                await reply(interaction, refused_form(sentence_of(error), interaction.id))

        async def admitted(interaction: discord.Interaction, form: Form) -> None:
            is_new = interaction.message is None or is_answer_new
            how = Acknowledgement.THINKING if is_new else Acknowledgement.UPDATE
            how = Acknowledgement.NONE if is_tracked else how
            _needed.set(ability)
            await self._run(interaction, how, rate, handle, form)

        return admitted

    async def give_back_form(self, interaction: discord.Interaction) -> None:
        """Answer a form that this process does not know with what was typed into it; other interactions pass."""
        # discord.py has begun to handle those that it knows, and drops the others without a word.
        if not is_forgotten_form(interaction):
            return

        async def handle(interaction: discord.Interaction) -> None:
            await reply(interaction, forgotten_form(interaction))

        await self._run(interaction, Acknowledgement.THINKING, None, handle)

    async def reopen_form(self, interaction: discord.Interaction, key: str) -> None:
        """Answer [Fix in form] with the form that was refused, filled with what was typed.

        Raises:
            FormForgotten: The member sent no such form to this process.
        """
        user_id, form = self._refused_forms.get(int(key), (0, None))
        if form is None or user_id != interaction.user.id:
            raise FormForgotten
        await open_form(interaction, form.refilled())

    async def _run(
        self,
        interaction: discord.Interaction,
        how: Acknowledgement,
        rate: Rate | None,
        handler: Callable[..., Awaitable[None]],
        *arguments: Any,
    ) -> None:
        self._languages.address(interaction)
        try:
            if await self._admits(interaction, how, rate):
                await handler(interaction, *arguments)
        except Exception as error:  # noqa: BLE001 - the edge to Discord: every failure becomes a sentence.
            await self.report(interaction, error)

    async def _admits(self, interaction: discord.Interaction, how: Acknowledgement, rate: Rate | None) -> bool:
        if not self._is_new(interaction):
            return False
        if interaction.guild_id is None:
            raise app_commands.NoPrivateMessage
        self._access.note(interaction)
        self._access.require(interaction, _needed.get())
        if rate is not None:
            self._count(interaction.user.id, rate)
        if how is Acknowledgement.UPDATE and interaction.message is not None:
            self._newest.pop(interaction.message.id, None)
            self._newest[interaction.message.id] = interaction.id
            if len(self._newest) > _MAX_SEEN:
                self._newest.popitem(last=False)
        await acknowledge(interaction, how)
        await self._languages.remember(interaction)
        return True

    def is_newest(self, interaction: discord.Interaction, message: discord.Message) -> bool:
        """Whether no later press has replaced the message that an interaction was answered by."""
        return self._newest.get(message.id, interaction.id) == interaction.id

    def _is_new(self, interaction: discord.Interaction) -> bool:
        if interaction.id in self._seen:
            log.info("%s was delivered twice (%s)", source_of(interaction), interaction.id)
            return False
        self._seen[interaction.id] = None
        if len(self._seen) > _MAX_SEEN:
            self._seen.popitem(last=False)
        return True

    def _count(self, user_id: int, rate: Rate) -> None:
        uses = self._uses.setdefault((rate.name, user_id), app_commands.Cooldown(rate.uses, rate.per_s))
        self._uses.move_to_end((rate.name, user_id))
        if len(self._uses) > _MAX_COUNTED:
            self._uses.popitem(last=False)
        if (wait_s := uses.update_rate_limit()) is not None:
            raise TooOften(uses=rate.uses, per_s=rate.per_s, wait_s=wait_s)

    # -- errors ---------------------------------------------------------------------------------------------------

    async def report(self, interaction: discord.Interaction, error: BaseException) -> None:
        """Answer with the error's sentence; in the channel, if Discord takes no answer any more."""
        sentence, error = "", _cause(error)
        try:
            if isinstance(error, AnswerFailed):
                raise error
            sentence = explain(interaction, error)
            await reply(interaction, text_message(sentence))
        except AnswerFailed as failed:
            log.warning("%s: no answer (%s, interaction %s)", source_of(interaction), failed.why, interaction.id)
            if failed.why in {Unanswered.EXPIRED, Unanswered.UNREACHABLE}:
                await self._answer_in_channel(interaction, failed.why, sentence)
        except discord.HTTPException:
            log.exception("an error could not be reported: %s", sentence)

    async def _answer_in_channel(self, interaction: discord.Interaction, why: Unanswered, sentence: str) -> None:
        what = f"`/{interaction.command.qualified_name}`" if interaction.command else ""
        notification = Notification(
            kind=NotificationKind.ANSWER,
            dedupe_key=f"answer:{interaction.id}",
            detail=unanswered_words(what, why, sentence, is_carried_out=is_acknowledged(interaction)),
            guild_id=interaction.guild_id or 0,
            owner_id=interaction.user.id,
        )
        await self._post(notification, interaction.channel_id or 0)


def _needed_for(interaction: discord.Interaction) -> Ability | None:
    """What a command needs: the most specific entry of its words."""
    words = interaction.command.qualified_name.split() if interaction.command else []
    names = (" ".join(words[:length]) for length in range(len(words), 0, -1))
    return next((_ABILITIES[name] for name in names if name in _ABILITIES), None)


#: What commands need, by their words; the buttons that do the same say so in their `ButtonHandler`.
_ABILITIES = {
    "finetune": Ability.TRAIN,
    "study": Ability.TRAIN,
    "sample": Ability.SAMPLE,
    "dataset": Ability.DATASETS,
    "Use attachments as dataset": Ability.DATASETS,
    "job share": Ability.SHARE,
    "job retry": Ability.TRAIN,
    "job extend": Ability.TRAIN,
}


def explain(interaction: discord.Interaction, error: BaseException) -> str:
    """Return the sentence of an error; a bug is logged under the reference that the sentence carries."""
    sentence = error_sentence(error)
    if sentence is None:
        reference = "".join(secrets.choice(_REFERENCE_LETTERS) for _letter in range(4))
        log.error("ref %s: %s failed", reference, source_of(interaction), exc_info=error)
        sentence = _("Something broke on my side. Nothing was lost. Ref {reference}.", reference=reference)
    return sentence


def error_sentence(error: BaseException) -> str | None:
    """Return the sentence of an expected error, None for a bug."""
    match error:
        case NotAllowed():
            # It contains no untrusted text but an escaped name, and a mention that notifies no one.
            return str(error)
        case DarkroomError() | SpecError():
            return sentence_of(error)
        case app_commands.NoPrivateMessage():
            return _("This works in a server only.")
        case app_commands.MissingPermissions():
            names = listed(permission_names(error.missing_permissions))
            return _("You need the permission {names} to do this. Ask an administrator of the server.", names=names)
        case app_commands.CommandNotFound() | app_commands.CommandSignatureMismatch():
            return _("This command has changed since Discord loaded it. Reload Discord (Ctrl+R) and try again.")
        case app_commands.TransformerError():
            return _("{value} is not a valid value for this option.", value=escape(str(error.value), 100))
        case app_commands.CheckFailure():
            return _("You may not use this here.")
    return None


def sentence_of(error: DarkroomError | SpecError) -> str:
    """Return the sentence of an error, with settings by the names that the commands have for them."""
    return escape(with_short_names(str(error)), _MAX_SENTENCE_CHARS)


def _cause(error: BaseException) -> BaseException:
    if isinstance(error, app_commands.CommandInvokeError):
        return error.original
    wraps = isinstance(error, app_commands.TransformerError | app_commands.CheckFailure)
    if wraps and isinstance(error.__cause__, DarkroomError | SpecError):
        return error.__cause__
    return error


async def _refuse_stale(_services: object, interaction: discord.Interaction, *_about: int) -> None:
    log.warning("a button that is not known was pressed: %s", source_of(interaction))
    raise StaleButton


_STALE = ButtonHandler(run=_refuse_stale)
