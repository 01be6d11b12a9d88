"""`/compare`: several trainings beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bot.queue.domain.job import Job
from bot.ui.buttons import job_button
from bot.ui.discord_text import escape, first_lines
from bot.ui.layout import Color, FileToSend, MessageContent, box, image_gallery, layout, row, sendable
from bot.ui.remedies import RUN_AGAIN
from trainer.protocol.job_comparison import JobComparison
from trainer.protocol.setting_problems import with_short_names
from trainer.protocol.text import _, listed

_MAX_SETTINGS, _MAX_VALUE_CHARS = 12, 60


def comparison_reply(
    jobs: Sequence[Job], found: JobComparison, folder: Path, *, file_limit: int, may_train: bool
) -> MessageContent:
    """The best first, how sure that is, what differs, the curves, and the same prompts beside each other."""
    chart, samples = (_file(folder, found.chart), _file(folder, found.samples))
    sent = sendable([file for file in (chart, samples) if file is not None], file_limit)
    best = jobs[found.order[0]]
    title = _("### {jobs} beside each other", jobs=listed([f"#{job.id}" for job in jobs]))
    lines = [f"- {escape(sentence, 300)}" for sentence in found.verdict]
    body = box(
        Color.DONE,
        title,
        "\n".join(first_lines(lines, most=10, characters=1500)),
        _settings(jobs, found),
        image_gallery(chart, found.chart_alt) if chart is not None and chart in sent else None,
        image_gallery(samples, found.samples_alt) if samples is not None and samples in sent else None,
        None if samples is not None else f"-# {_('They drew no samples of the same prompts and seeds.')}",
        row(job_button(best.id, RUN_AGAIN, _("Run #{job} again with changes", job=best.id))) if may_train else None,
    )
    return MessageContent(layout=layout(body), files=sent)


def _settings(jobs: Sequence[Job], found: JobComparison) -> str:
    """What is not the same: a line for each setting."""
    if not found.settings:
        return _("Their settings are the same.")
    lines = [
        f"- {escape(with_short_names(each.name), 60)}: "
        + ", ".join(
            f"{escape(value, _MAX_VALUE_CHARS)} (#{job.id})" for job, value in zip(jobs, each.values, strict=True)
        )
        for each in found.settings
    ]
    return "\n".join([_("**What differs**"), *first_lines(lines, most=_MAX_SETTINGS)])


def _file(folder: Path, path: str | None) -> FileToSend | None:
    return None if path is None else FileToSend(folder=folder, path=path, name=Path(path).name)
