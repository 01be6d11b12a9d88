"""`/help`, by what people want to do, and the message with which the bot introduces itself to a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from discord import ui

from bot.ui.buttons import help_button
from bot.ui.layout import Color, MessageContent, box, layout, rows
from trainer.protocol.text import N_, _, translate


class HelpPage(StrEnum):
    """A task; the values are in the ids of buttons."""

    START = "start"
    IMAGES = "images"
    SETTINGS = "settings"
    FOLLOW = "follow"
    RESULT = "result"
    STUDIES = "studies"
    MANAGE = "manage"


#: What a page is about, on its button.
PAGE_LABELS: Mapping[HelpPage, str] = {
    HelpPage.START: N_("First training"),
    HelpPage.IMAGES: N_("Good images"),
    HelpPage.SETTINGS: N_("Settings"),
    HelpPage.FOLLOW: N_("Watch and stop"),
    HelpPage.RESULT: N_("Use the result"),
    HelpPage.STUDIES: N_("How sure is it?"),
    HelpPage.MANAGE: N_("For managers"),
}
_LINES: Mapping[HelpPage, Sequence[str]] = {
    HelpPage.START: (
        N_("`/finetune dataset:` and a zip of your images is all it takes. I examine them and show you a plan."),
        N_("Give a **trigger word**, a made-up word such as zkz. In prompts it calls up what was learned."),
        N_("The **base** is the model that learns. The **preset** says what you want: a style, one subject, …"),
        N_("Nothing starts before you press **Start training**. **Edit** and **Advanced…** change anything."),
        N_("No zip at hand? Right-click a message with images: Apps → Use attachments as dataset."),
    ),
    HelpPage.IMAGES: (
        N_("15 to 200 sharp images work best; 5 is the least. Show the subject in many poses and places."),
        N_("A caption is a .txt file of the same name. It says what is in the image."),
        N_("`/dataset upload` stores images for later, `/dataset add` adds more, `/dataset list` lists all."),
        N_("`/dataset review` goes through whatever looks wrong: blurred images, copies, watermarks."),
        N_("`/dataset captions` changes all captions at once; in the review you change one."),
        N_("`/dataset privacy` says who sees your images: everyone here, or only people you name."),
    ),
    HelpPage.SETTINGS: (
        N_("`/preset list` shows what to start from. `lora` is right for most things."),
        N_("**Advanced…** on the plan sets everything else, page by page. Empty fields stay as they are."),
        N_("`settings:` takes a .toml file. `/preset show` prints lines for it."),
        N_("`/preset save` keeps the settings of a training that went well, for everybody here."),
        N_("More than one dataset: Advanced… → More datasets. They are mixed as you say."),
    ),
    HelpPage.FOLLOW: (
        N_("Each training has one card in the channel and a thread with its samples."),
        N_("`/queue` shows what is training, who is next, and why something waits."),
        N_("**Stop…** on the card, or `/job stop`, stops early and keeps the best, pauses, or cancels."),
        N_("`/job resume` continues a paused training, `/job retry` one that failed."),
        N_("With `/notify` you choose where I tell you about your trainings: in the thread or privately."),
        N_("You use a screen reader? `/notify plain:True` gives you answers in plain text."),
    ),
    HelpPage.RESULT: (
        N_("Look at the pictures first: the base above, your model below."),
        N_("The file goes into the folder for LoRAs of ComfyUI or A1111. Use your trigger word in the prompt."),
        N_("**Try prompts** below the result, or `/sample`, draws anything with it, also with a LoRA file of yours."),
        N_("**Compare epochs** draws the same with several epochs. Vote, and make the best one the result."),
        N_("Not there yet? `/job extend` adds epochs. More and different images help most."),
        N_("Every picture looks like a copy of yours? It learned too long: take fewer epochs or a lower rank."),
        N_("**Share** puts pictures into the gallery. `/gallery` shows those of others, with settings to try."),
        N_("`/compare jobs:12 14` shows two trainings beside each other."),
    ),
    HelpPage.STUDIES: (
        N_("`/study compare vary: lr=1e-4,3e-4; rank=8,32` tries every combination and says which one is best."),
        N_("`/study kfold` trains once for each part of your images: it says how far you can trust a result."),
        N_("Both make several trainings. You are told how many before anything starts."),
    ),
    HelpPage.MANAGE: (
        N_("`/admin models` shows the base models, and how to add one: only a toy model is there at first."),
        N_("`/admin health` says whether everything works, `/admin slots` which GPUs there are."),
        N_("`/admin limits` sets what the members of a role may ask for."),
        N_("`/admin pause` starts no new training, `/admin bump` moves a job ahead."),
    ),
}
#: Where there are web pages.
_WEB_LINES: Mapping[HelpPage, Sequence[str]] = {
    HelpPage.IMAGES: (
        N_("A folder, or files too large for Discord? Send `/dataset upload` without files: you get a page for them."),
    ),
    HelpPage.RESULT: (
        N_("**Open page** shows every picture in your browser and has all files, however large they are."),
    ),
}


def help_page(page: HelpPage, *, has_pages: bool = False) -> MessageContent:
    """One page, with buttons to the others; `has_pages`: the bot has web pages."""
    lines = (*_LINES[page], *(_WEB_LINES.get(page, ()) if has_pages else ()))
    body = box(
        Color.WAITING, f"### {translate(PAGE_LABELS[page])}", "\n".join(map(translate, lines)), *_page_rows(page)
    )
    return MessageContent(layout=layout(body))


def welcome_post() -> MessageContent:
    """What the bot is and how to begin, when it joins a server."""
    body = box(
        Color.DONE,
        f"### {_('Hello! I teach image models your characters, objects and styles.')}",
        "\n".join(
            (
                _("**1.** Put 15 or more images into a zip file."),
                _("**2.** Type `/finetune` and attach it. I look at every image and ask you before I start."),
                _("**3.** Watch it learn in the job's thread. At the end you get a file for ComfyUI or A1111."),
            )
        ),
        "-# " + _("`/help` explains everything else. Managers of this server begin with the page “For managers”."),
        *_page_rows(None),
    )
    return MessageContent(layout=layout(body), is_silent=True)


def _page_rows(shown: HelpPage | None) -> list[ui.ActionRow[Any]]:
    return rows([help_button(page, translate(PAGE_LABELS[page]), is_disabled=page is shown) for page in HelpPage])
