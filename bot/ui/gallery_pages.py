"""The gallery: a picture in its channel, the pages of `/gallery`, and what is answered to those who share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import discord
from discord import ui

from bot.queue.domain.job import Job
from bot.queue.store.gallery_store import MAX_TAG_CHARS, MAX_TAGS, GalleryFilter, GalleryPost, GallerySort
from bot.ui.buttons import GalleryButton, gallery_button
from bot.ui.dataset_forms import Form, FormCallback
from bot.ui.discord_text import escape, first_lines, inline_code, mention, relative_time
from bot.ui.job_card import rank_words, rates_words, settings_line
from bot.ui.layout import Color, FileToSend, MessageContent, box, image_gallery, layout, row, sendable, text_message
from trainer.protocol.text import _, listed, ngettext

#: Posts on a page of `/gallery`: each has seven parts, and a message has room for 40.
PAGE_SIZE = 4
_MAX_PROMPTS, _MAX_PROMPT_CHARS = 4, 200


@dataclass(frozen=True, kw_only=True)
class PostContext:
    """A post with what its message shows in addition."""

    post: GalleryPost
    #: The job that drew it, and its folder.
    job: Job
    job_dir: Path
    #: The training whose weights drew it; None: none of this bot's.
    model: Job | None
    #: Largest file that the server accepts, bytes.
    file_limit: int

    @property
    def file(self) -> FileToSend:
        path = self.post.picture.path
        return FileToSend(folder=self.job_dir, path=path, name=f"gallery-{self.post.id}{Path(path).suffix}")


@dataclass(frozen=True, kw_only=True)
class GalleryView:
    """What a page of `/gallery` shows."""

    wanted: GalleryFilter
    sort: GallerySort
    page: int
    total: int
    #: There are web pages.
    has_pages: bool = False

    @property
    def pages(self) -> int:
        return max(1, -(-self.total // PAGE_SIZE))


# -- one picture ----------------------------------------------------------------------------------------------------


def gallery_post_message(context: PostContext) -> MessageContent:
    """A picture in the gallery channel: who made it and how, and what others can do with it."""
    post, file = context.post, context.file
    is_there = bool(sendable([file], context.file_limit))
    alt_text = post.picture.alt_text or listed([image.prompt for image in post.picture.images])
    body = box(
        Color.DONE,
        f"### 🖼️ {_('{name} by {owner}', name=escape(context.job.name), owner=mention(post.owner_id))}",
        image_gallery(file, alt_text) if is_there else None,
        "\n".join(_prompt_lines(post)) or None,
        "\n".join(f"-# {line}" for line in _made_with(context)),
        row(*_post_buttons(context), gallery_button(post.id, "unshare", _("Unshare"))),
    )
    return MessageContent(layout=layout(body), files=(file,) if is_there else (), is_silent=True)


def _prompt_lines(post: GalleryPost) -> list[str]:
    """The prompts and seeds of a picture, in reading order."""
    lines = []
    for image in post.picture.images:
        words = [f"> {escape(image.prompt, _MAX_PROMPT_CHARS) or _('no prompt')}", _("seed {seed}", seed=image.seed)]
        if image.negative_prompt:
            words.append(_("without “{words}”", words=escape(image.negative_prompt, 80)))
        if image.strength is not None:
            words.append(_("strength {strength}", strength=f"{image.strength:g}"))
        lines.append(" · ".join(words))
    return first_lines(lines, most=_MAX_PROMPTS)


def _made_with(context: PostContext) -> list[str]:
    """What it takes to make such a picture: model, epoch, trigger word, base and settings; the tags."""
    post, model = context.post, context.model
    words = []
    if post.picture.epoch == 0:
        words.append(_("drawn by the base model"))
    elif post.picture.epoch is not None:
        words.append(_("epoch {epoch}", epoch=post.picture.epoch))
    if model is not None and model.spec.training.trigger:
        words.append(_("trigger word {word}", word=inline_code(escape(model.spec.training.trigger, 60))))
    if model is not None:
        spec = model.spec
        words += [settings_line(model, without={"dataset"}), rank_words(spec)]
        words.append(_("learning rate {rate}", rate=rates_words(spec)))
    else:
        words.append(_("base model {name}", name=escape(post.base, 60)))
    lines = [" · ".join(filter(None, words))]
    if post.tags:
        lines.append(" ".join(f"#{escape(tag, MAX_TAG_CHARS)}" for tag in post.tags))
    return lines


def _post_buttons(context: PostContext) -> list[GalleryButton]:
    post = context.post
    found = [gallery_button(post.id, "like", str(post.likes), emoji="👍")]
    if context.model is not None:
        found.append(gallery_button(post.id, "try", _("Try these settings")))
        if not context.model.are_files_deleted:
            found.append(gallery_button(post.id, "download", _("Download")))
    return found


# -- pages ----------------------------------------------------------------------------------------------------------


def gallery_page(view: GalleryView, shown: Sequence[PostContext]) -> MessageContent:
    """A page of pictures for one person, with the buttons of each."""
    if not shown:
        return text_message(_empty_words(view.wanted))
    parts: list[ui.Item[ui.LayoutView] | str] = [f"### {_title(view)}"]
    files = sendable([context.file for context in shown], min(context.file_limit for context in shown))
    for context in shown:
        text = "\n".join([_headline(context), *_prompt_lines(context.post)[:1], f"-# {' '.join(_made_with(context))}"])
        if context.file in files:
            alt = context.post.picture.alt_text or context.post.picture.images[0].prompt
            parts.append(ui.Section(text, accessory=ui.Thumbnail(context.file.url, description=alt[:200] or None)))
        else:
            parts.append(text)
        parts.append(row(*_post_buttons(context)))
    web = [gallery_button(0, "web", _("Open page"))] if view.has_pages else []
    parts.append(row(*_page_buttons(view), *web))
    return MessageContent(layout=layout(box(Color.WAITING, *parts)), files=files)


def _title(view: GalleryView) -> str:
    title = ngettext("The gallery: {n} picture", "The gallery: {n} pictures", view.total)
    words = [title]
    if view.wanted.person is not None:
        words.append(_("by {owner}", owner=mention(view.wanted.person)))
    if view.wanted.base is not None:
        words.append(_("base model {name}", name=escape(view.wanted.base, 60)))
    if view.wanted.tag is not None:
        words.append(f"#{escape(view.wanted.tag, MAX_TAG_CHARS)}")
    if view.sort is GallerySort.LIKED:
        words.append(_("most liked first"))
    if view.pages > 1:
        words.append(_("page {page} of {pages}", page=view.page + 1, pages=view.pages))
    return " · ".join(words)


def _headline(context: PostContext) -> str:
    post = context.post
    words = _("**{name}** by {owner}", name=escape(context.job.name), owner=mention(post.owner_id))
    return f"{words} · {relative_time(post.created_at)}"


def _empty_words(wanted: GalleryFilter) -> str:
    if wanted == GalleryFilter():
        return _("The gallery is empty. Press [Share] on a training of yours to show what it draws.")
    return _("The gallery has no such pictures. /gallery without options shows all of them.")


def _page_buttons(view: GalleryView) -> list[GalleryButton]:
    is_liked = view.sort is GallerySort.LIKED
    other = GallerySort.NEWEST if is_liked else GallerySort.LIKED
    label = _("Newest first") if is_liked else _("Most liked first")
    return [
        _page_button(view, view.page - 1, view.sort, "◀", is_disabled=view.page == 0),
        _page_button(view, view.page + 1, view.sort, "▶", is_disabled=view.page + 1 >= view.pages),
        _page_button(view, 0, other, label),
    ]


def _page_button(
    view: GalleryView, page: int, sort: GallerySort, label: str, *, is_disabled: bool = False
) -> GalleryButton:
    arg = f"{max(page, 0)}-{sort}-{view.wanted.person or 0}-{word_key(view.wanted.base)}-{word_key(view.wanted.tag)}"
    return gallery_button(0, "page" if sort is view.sort else "sort", label, arg=arg, is_disabled=is_disabled)


#: The argument of a page's button.
PAGE_ARGUMENT = r"[0-9]{1,6}-[a-z]{1,10}-[0-9]{1,19}-[0-9a-f]{0,12}-[0-9a-f]{0,12}"


def word_key(word: str | None) -> str:
    """A base or a tag in a custom id, which has no room for the word itself; empty: none."""
    return "" if word is None else hashlib.sha256(word.encode()).hexdigest()[:12]


# -- answers --------------------------------------------------------------------------------------------------------


def shared_reply(post: GalleryPost, channel_id: int, *, missing: Sequence[str] = ()) -> MessageContent:
    """The picture is in the gallery: where, and how to add tags or take it back."""
    where = _("🖼️ Shared in <#{channel}>. Everyone here can like it, and /gallery shows it.", channel=channel_id)
    lines = [where]
    if missing:
        lines.append(
            _(
                "I may not post there yet, so it waits. I need {permissions} there: ask a manager of the server.",
                permissions=listed(missing),
            )
        )
    if post.tags:
        lines.append(" ".join(f"#{escape(tag, MAX_TAG_CHARS)}" for tag in post.tags))
    buttons = row(
        gallery_button(post.id, "tags", _("Tags…")),
        gallery_button(post.id, "unshare", _("Unshare"), style=discord.ButtonStyle.danger),
    )
    return MessageContent(layout=layout(box(Color.DONE, "\n".join(lines), buttons)))


def unshared_text(count: int) -> str:
    """Pictures were taken out of the gallery."""
    return ngettext(
        "{n} picture is no longer in the gallery, and its message is removed. The files may now be deleted to free "
        "disk space.",
        "{n} pictures are no longer in the gallery, and their messages are removed. The files may now be deleted to "
        "free disk space.",
        count,
    )


def tags_form(submitted: FormCallback, post: GalleryPost) -> Form:
    """The tags of a picture."""
    form = Form(_("Tags"), submitted)
    form.add_text(
        "tags",
        _("Tags"),
        _("Words by which others find it, with spaces between them: fox watercolor"),
        value=" ".join(post.tags),
        max_length=MAX_TAGS * (MAX_TAG_CHARS + 1),
    )
    return form


def tagged_text(post: GalleryPost) -> str:
    """What a picture is found by now."""
    if not post.tags:
        return _("The picture has no tags now.")
    tags = " ".join(f"#{escape(tag, MAX_TAG_CHARS)}" for tag in post.tags)
    return _("The picture is found by {tags} now.", tags=tags)


def smaller(context: PostContext, file_limit: int | None) -> PostContext:
    """The same with a lower limit for its file, if there is one."""
    return context if file_limit is None else replace(context, file_limit=min(file_limit, context.file_limit))
