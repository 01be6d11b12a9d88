"""What people read about uploads to the Hugging Face hub: the question before one, and its end."""

from __future__ import annotations

import discord

from bot.publishing import Publication, PublicationOutcome
from bot.queue.domain.job import Job
from bot.ui.buttons import job_button
from bot.ui.discord_text import escape
from bot.ui.layout import Color, MessageContent, box, layout, row
from bot.ui.remedies import PUBLISH_NOW
from trainer.protocol.text import _


def publish_question(job: Job, repository: str) -> MessageContent:
    """What would be uploaded, where to, and who would see it."""
    lines = (
        _("**Upload #{job} {name} to Hugging Face?**", job=job.id, name=escape(job.name)),
        _("It becomes **{repository}**. It is private: only members of that account see it.", repository=repository),
        _(
            "I upload the files of the best epoch, a few of its samples, and a page with prompts, trigger word, "
            "settings and numbers about the images."
        ),
        _("None of your images is uploaded."),
    )
    button = job_button(job.id, PUBLISH_NOW, _("Upload"), style=discord.ButtonStyle.primary)
    return MessageContent(layout=layout(box(Color.NOTE, "\n".join(lines), row(button))))


def publishing_text(job: Job, repository: str) -> str:
    """The upload was accepted."""
    return _(
        "⏫ #{job} is being uploaded to {repository}. I will tell you in its thread when it is done.",
        job=job.id,
        repository=repository,
    )


def published_post(job: Job, publication: Publication) -> MessageContent:
    """The end of an upload, in the job's thread."""
    values = {"job": job.id, "name": escape(job.name), "repository": publication.repository}
    published = publication.published
    if publication.outcome is PublicationOutcome.DONE and published is not None:
        head = _("🤗 **#{job} {name}** is on Hugging Face: {repository}.", **values)
        seen = _("Only members of the account see it.") if published.is_private else _("Everyone sees it.")
        link = discord.ui.Button[discord.ui.LayoutView](label=_("Open"), url=published.url)
        return MessageContent(layout=layout(box(Color.DONE, f"{head} {seen}", row(link))))
    if publication.outcome is PublicationOutcome.REFUSED:
        head = _("**#{job} {name}** was not uploaded to {repository}.", **values)
    else:
        head = _("**#{job} {name}** was not uploaded to {repository}, although I tried for an hour.", **values)
    lines = [f"⚠️ {head}", escape(publication.reason, 300)]
    button = job_button(job.id, PUBLISH_NOW, _("Try again"))
    return MessageContent(layout=layout(box(Color.NOTE, "\n".join(filter(None, lines)), row(button))))
