"""`/help`, by what people want to do, and the message with which the bot introduces itself to a server."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from discord import ui

from bot.ui.buttons import help_button
from bot.ui.layout import Color, MessageContent, box, layout, row
from trainer.protocol.text import _


class HelpPage(StrEnum):
    """A task; the values are in the ids of buttons."""

    START = "start"
    IMAGES = "images"
    SETTINGS = "settings"
    FOLLOW = "follow"
    RESULT = "result"
    STUDIES = "studies"
    MANAGE = "manage"


def page_label(page: HelpPage) -> str:
    """What a page is about, on its button."""
    match page:
        case HelpPage.START:
            return _("First training")
        case HelpPage.IMAGES:
            return _("Good images")
        case HelpPage.SETTINGS:
            return _("Settings")
        case HelpPage.FOLLOW:
            return _("Watch and stop")
        case HelpPage.RESULT:
            return _("Use the result")
        case HelpPage.STUDIES:
            return _("How sure is it?")
        case HelpPage.MANAGE:
            return _("For managers")


def help_page(page: HelpPage) -> MessageContent:
    """One page, with buttons to the others."""
    body = box(Color.WAITING, f"### {page_label(page)}", "\n".join(_lines(page)), *_page_rows(page))
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
    buttons = [help_button(page, page_label(page), is_disabled=page is shown) for page in HelpPage]
    return [row(*buttons[start : start + 4]) for start in range(0, len(buttons), 4)]


def _lines(page: HelpPage) -> list[str]:
    match page:
        case HelpPage.START:
            return [
                _("`/finetune dataset:` and a zip of your images is all it takes. I examine them and show you a plan."),
                _("Give a **trigger word**, a made-up word such as zkz. In prompts it calls up what was learned."),
                _("The **base** is the model that learns. The **preset** says what you want: a style, one subject, …"),
                _("Nothing starts before you press **Start training**. **Edit** and **Advanced…** change anything."),
                _("No zip at hand? Right-click a message with images: Apps → Use attachments as dataset."),
            ]
        case HelpPage.IMAGES:
            return [
                _("15 to 200 sharp images work best; 5 is the least. Show the subject in many poses and places."),
                _("A caption is a .txt file of the same name. It says what is on the image."),
                _("`/dataset upload` stores images for later, `/dataset add` adds more, `/dataset list` lists all."),
                _("`/dataset review` goes through whatever looks wrong: blurred images, copies, watermarks."),
                _("`/dataset captions` changes all captions at once; in the review you change one."),
                _("`/dataset privacy` says who sees your images: everyone here, or only people you name."),
            ]
        case HelpPage.SETTINGS:
            return [
                _("`/preset list` shows what to start from. `lora` is right for most things."),
                _("**Advanced…** on the plan sets everything else, page by page. Empty fields stay as they are."),
                _("`settings:` takes a .toml file. `/preset show` prints lines for it."),
                _("`/preset save` keeps the settings of a training that went well, for everybody here."),
                _("More than one dataset: Advanced… → More datasets. They are mixed as you say."),
            ]
        case HelpPage.FOLLOW:
            return [
                _("Each training has one card in the channel and a thread with its samples."),
                _("`/queue` shows what is training, who is next, and why something waits."),
                _("**Stop…** on the card, or `/job stop`, stops early and keeps the best, pauses, or cancels."),
                _("`/job resume` continues a paused training, `/job retry` one that failed."),
                _("With `/notify` you choose where I tell you about your trainings: in the thread or privately."),
                _("You use a screen reader? `/notify plain:True` gives you answers in plain text."),
            ]
        case HelpPage.RESULT:
            return [
                _("Look at the pictures first: the base above, your model below."),
                _("The file goes into the folder for LoRAs of ComfyUI or A1111. Use your trigger word in the prompt."),
                _(
                    "**Try prompts** below the result, or `/sample`, draws anything with it, also with a LoRA file of "
                    "yours."
                ),
                _("**Compare epochs** draws the same with several epochs. Vote, and make the best one the result."),
                _("Not there yet? `/job extend` adds epochs. More and different images help most."),
                _("Every picture looks like a copy of yours? It learned too long: take fewer epochs or a lower rank."),
                _("**Share** puts pictures into the gallery. `/gallery` shows those of others, with settings to try."),
                _("`/compare jobs:12 14` shows two trainings beside each other."),
            ]
        case HelpPage.STUDIES:
            return [
                _("`/study compare vary: lr=1e-4,3e-4; rank=8,32` tries every combination and says which one is best."),
                _("`/study kfold` trains once for each part of your images: it says how far you can trust a result."),
                _("Both make several trainings. You are told how many before anything starts."),
            ]
        case HelpPage.MANAGE:
            return [
                _("`/admin models` shows the base models, and how to add one: only a toy model is there at first."),
                _("`/admin health` says whether everything works, `/admin slots` which GPUs there are."),
                _("`/admin limits` sets what the members of a role may ask for."),
                _("`/admin pause` starts no new training, `/admin bump` moves a job ahead."),
            ]
