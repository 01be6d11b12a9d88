"""`/gallery`, and the buttons of its pictures: like, try the settings, download, tag, unshare."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any

import discord
from discord import app_commands

from bot.access import Ability, manages, server_of
from bot.cogs.autocomplete import Choices, answered
from bot.cogs.interaction_gate import PAGES, REPORTS, ButtonHandler, handled
from bot.cogs.job_actions import hand_over_files
from bot.cogs.lookups import storable
from bot.cogs.page_links import show_page
from bot.cogs.replies import Acknowledgement, open_form, replace, reply
from bot.cogs.request_edits import open_settings_of
from bot.cogs.services import ServiceCog, Services
from bot.cogs.sharing import post_context
from bot.errors import StaleButton
from bot.queue import Job
from bot.queue.store.gallery_store import (
    GalleryFilter,
    GalleryPost,
    GallerySort,
    NotYourPicture,
    parse_tags,
)
from bot.ui.dataset_forms import Form
from bot.ui.gallery_pages import (
    PAGE_ARGUMENT,
    PAGE_SIZE,
    GalleryView,
    gallery_page,
    gallery_post_message,
    tagged_text,
    tags_form,
    unshared_text,
    word_key,
)
from bot.ui.layout import MessageContent, text_message
from bot.web import LinkKind
from trainer.protocol.text import N_

#: [▶] of a page; it is there, disabled, on the last one too.
_NEXT_PAGE = re.compile(r"gallery:0:page:([1-9][0-9]*)-(.*)")


async def _base_choices(services: Services, interaction: discord.Interaction, typed: str) -> Choices:
    return [(each, each) for each in await services.jobs.gallery.bases(server_of(interaction), storable(typed))]


async def _tag_choices(services: Services, interaction: discord.Interaction, typed: str) -> Choices:
    found = await services.jobs.gallery.tags(server_of(interaction), storable(typed).casefold())
    return [(each, each) for each in found]


_choose_base, _choose_tag = answered(_base_choices), answered(_tag_choices)


class GalleryCommand(ServiceCog):
    """`/gallery`."""

    @app_commands.command(
        description=N_("See what members of this server share, like it, and try its settings."),
        extras=handled(rate=PAGES),
    )
    @app_commands.guild_only()
    @app_commands.describe(
        person=N_("Only pictures of this person"),
        base=N_("Only pictures of this base model"),
        tag=N_("Only pictures with this tag"),
        sort=N_("Which come first (default: the newest)"),
    )
    @app_commands.choices(
        sort=[
            app_commands.Choice(name=N_("the newest first"), value=GallerySort.NEWEST.value),
            app_commands.Choice(name=N_("the most liked first"), value=GallerySort.LIKED.value),
        ]
    )
    @app_commands.autocomplete(base=_choose_base, tag=_choose_tag)
    async def gallery(
        self,
        interaction: discord.Interaction,
        person: discord.User | None = None,
        base: str | None = None,
        tag: str | None = None,
        sort: str = GallerySort.NEWEST.value,
    ) -> None:
        wanted = GalleryFilter(
            person=None if person is None else person.id,
            base=None if base is None else storable(base),
            tag=None if tag is None else next(iter(parse_tags(storable(tag))), None),
        )
        await reply(interaction, await _page(self._services, interaction, wanted, GallerySort(sort), 0))


async def _page(
    services: Services, interaction: discord.Interaction, wanted: GalleryFilter, sort: GallerySort, page: int
) -> MessageContent:
    """Make a page of a server's gallery, as it is now."""
    gallery = services.jobs.gallery
    total = await gallery.count(server_of(interaction), wanted)
    # Pictures may have been withdrawn since the button was made.
    view = GalleryView(
        wanted=wanted,
        sort=sort,
        page=min(page, max(0, total - 1) // PAGE_SIZE),
        total=total,
        has_pages=services.links.are_on,
    )
    posts = await gallery.browse(server_of(interaction), wanted, sort=sort, most=PAGE_SIZE, skip=view.page * PAGE_SIZE)
    shown = [await post_context(services, post, interaction.client) for post in posts]
    return gallery_page(view, shown)


async def _turn(services: Services, interaction: discord.Interaction, _post_id: int, arg: str) -> None:
    page, sort, person, base_key, tag_key = arg.split("-")
    if sort not in set(GallerySort):
        raise StaleButton
    gallery = services.jobs.gallery
    words = {
        word_key(each): each
        for each in (*await gallery.bases(server_of(interaction)), *await gallery.tags(server_of(interaction)))
    }
    if not {base_key, tag_key} <= {"", *words}:
        raise StaleButton
    wanted = GalleryFilter(person=int(person) or None, base=words.get(base_key), tag=words.get(tag_key))
    await replace(interaction, await _page(services, interaction, wanted, GallerySort(sort), int(page)))


async def _like(services: Services, interaction: discord.Interaction, post_id: int) -> None:
    post = await services.jobs.gallery.vote(server_of(interaction), post_id, interaction.user.id)
    if (page := _shown_page(interaction.message)) is not None:
        await _turn(services, interaction, 0, page)
    else:
        await replace(interaction, gallery_post_message(await post_context(services, post, interaction.client)))


def _shown_page(message: discord.Message | None) -> str | None:
    """Return the argument of a button that leads to the page which a message shows; None if it shows none."""
    ids = [] if message is None else list(_custom_ids(message.components))
    for custom_id in ids:
        if (found := _NEXT_PAGE.fullmatch(custom_id)) is not None:
            return f"{int(found[1]) - 1}-{found[2]}"
    return None


def _custom_ids(components: Iterable[Any]) -> Iterator[str]:
    for component in components:
        if custom_id := getattr(component, "custom_id", None):
            yield custom_id
        yield from _custom_ids(getattr(component, "children", ()))


async def _open_page(services: Services, interaction: discord.Interaction, _post_id: int) -> None:
    await show_page(services, interaction, LinkKind.GALLERY)


def _of_model(run: Callable[[Services, discord.Interaction, Job], Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Make the handler of a button about the training that drew a picture: `run(services, interaction, job)`."""

    async def handle(services: Services, interaction: discord.Interaction, post_id: int) -> None:
        post = await _post(services, interaction, post_id)
        if post.model_job_id is None:
            raise StaleButton
        await run(services, interaction, await services.jobs.get(post.model_job_id))

    return handle


async def _unshare(services: Services, interaction: discord.Interaction, post_id: int) -> None:
    await services.jobs.gallery.withdraw(
        server_of(interaction), post_id, by=interaction.user.id, can_manage=manages(interaction)
    )
    await reply(interaction, text_message(unshared_text(1)))


async def _open_tags(services: Services, interaction: discord.Interaction, post_id: int) -> None:
    post = await _own_post(services, interaction, post_id)

    async def submitted(interaction: discord.Interaction, form: Form) -> None:
        await _own_post(services, interaction, post_id)
        tagged = await services.jobs.gallery.tag(post.guild_id, post_id, parse_tags(storable(form.texts["tags"])))
        await reply(interaction, text_message(tagged_text(tagged)))

    await open_form(interaction, tags_form(services.gate.form(submitted, is_answer_new=True), post))


async def _post(services: Services, interaction: discord.Interaction, post_id: int) -> GalleryPost:
    return await services.jobs.gallery.get_in(server_of(interaction), post_id)


async def _own_post(services: Services, interaction: discord.Interaction, post_id: int) -> GalleryPost:
    post = await _post(services, interaction, post_id)
    if post.owner_id != interaction.user.id and not manages(interaction):
        raise NotYourPicture(owner_id=post.owner_id)
    return post


HANDLERS: Mapping[str, ButtonHandler] = {
    "like": ButtonHandler(run=_like, acknowledgement=Acknowledgement.UPDATE, rate=PAGES),
    "try": ButtonHandler(
        run=_of_model(open_settings_of), acknowledgement=Acknowledgement.NONE, rate=PAGES, ability=Ability.TRAIN
    ),
    "download": ButtonHandler(run=_of_model(hand_over_files), rate=REPORTS),
    "web": ButtonHandler(run=_open_page, rate=PAGES),
    "unshare": ButtonHandler(run=_unshare),
    "tags": ButtonHandler(run=_open_tags, acknowledgement=Acknowledgement.NONE, rate=PAGES),
    "page": ButtonHandler(run=_turn, argument=PAGE_ARGUMENT, acknowledgement=Acknowledgement.UPDATE, rate=PAGES),
    "sort": ButtonHandler(run=_turn, argument=PAGE_ARGUMENT, acknowledgement=Acknowledgement.UPDATE, rate=PAGES),
}
