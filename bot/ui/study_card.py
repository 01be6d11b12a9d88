"""The card of a study (cross-validation or comparison) with all its runs, and the post of its result."""

from __future__ import annotations

import json
from collections.abc import Sequence

from discord import ui

from bot.queue.domain.job import Job, State
from bot.ui.buttons import JobButton, job_button, page_button
from bot.ui.discord_text import escape, first_lines, mention, relative_time
from bot.ui.end_reasons import end_reason_text
from bot.ui.job_card import (
    best_of,
    best_words,
    card_buttons,
    files_button,
    in_sentence,
    paused_line,
    settings_line,
    share_done,
    state_words,
)
from bot.ui.job_context import JobContext, job_name, waiting_lines
from bot.ui.job_endings import files_hint, split_files
from bot.ui.layout import Color, FileToSend, MessageContent, box, image_gallery, layout, public_path, row, sendable
from bot.ui.remedies import TRAIN_WINNER
from trainer.protocol.study import ChildState, KfoldRequest, StudyRequest, StudyRow, StudyStep, make_study_request
from trainer.protocol.text import _, ngettext, percent, verdict

#: Runs that a card lists; a study may have hundreds.
_SHOWN_RUNS = 20
_SHOWN_SENTENCES = 6


def study_card(job: Job, context: JobContext) -> MessageContent:
    """The card of a study as it is now."""
    sign, words, color = _state_words(job, context)
    chart = _chart(context)
    text = [f"### {sign} #{job.id} {escape(job.name)} · {mention(job.owner_id)}", f"**{words}** · {kind_words(job)}"]
    if job.state is State.QUEUED:
        text += waiting_lines(job, context)
    if job.state is State.PAUSED:
        text.append(paused_line(job, context.since))
    if job.end_reason and not (context.step and context.step.verdict):
        text.append(escape(end_reason_text(job.end_reason), 300))
    body = box(
        color,
        "\n".join(text),
        "\n".join(run_lines(context.children, context.step)) or None,
        _verdict(context.step),
        image_gallery(chart, context.step.chart_alt) if chart and context.step else None,
        f"-# {_settings(job)}\n-# {_('updated {when}', when=relative_time(context.now))}",
        row(*buttons) if (buttons := card_buttons(job)) else None,
    )
    return MessageContent(layout=layout(body), files=(chart,) if chart else (), is_silent=True)


def study_post(job: Job, context: JobContext) -> MessageContent:
    """The result of a study: verdict, samples beside each other, runs, curves, and the files of its winner."""
    step = context.step
    chart = _chart(context)
    samples = _samples(context)
    results = _results(job, context)
    sent = sendable([*filter(None, (samples, chart)), *results], context.file_limit)
    verdict = _verdict(step) or _("Finished, but without a result.")
    body = box(
        Color.DONE,
        f"## ✅ {_('#{job} {name} is done', job=job.id, name=escape(job.name))} · {mention(job.owner_id)}\n"
        f"{_('Your {study} is finished.', study=kind_words(job))}\n{verdict}",
        image_gallery(samples, step.samples_alt) if samples and step and samples in sent else None,
        _samples_notes(step) if samples is None or (samples in sent and not job.hides_pictures) else None,
        "\n".join(run_lines(context.children, step)) or None,
        image_gallery(chart, step.chart_alt) if chart and step and chart in sent else None,
        f"-# {files_hint(has_pages=context.has_pages)}" if any(file not in sent for file in results) else None,
        f"-# {_settings(job)}",
        row(
            files_button(job.id),
            job_button(job.id, "details", _("Details")),
            *_winner_buttons(job, step),
            *([page_button(job.id)] if context.has_pages else []),
        ),
    )
    carried = [ui.File[ui.LayoutView](file.url) for file in results if file in sent]
    return MessageContent(layout=layout(body, *carried), files=sent, mentions=(job.owner_id,))


def _winner_buttons(job: Job, step: StudyStep | None) -> list[JobButton]:
    """[Train winner] of a comparison: a request with the settings that won."""
    if step is None or not step.table or isinstance(_request(job), KfoldRequest):
        return []
    return [job_button(job.id, TRAIN_WINNER, _("Train winner"), emoji="🏆")]


def study_files(job: Job, context: JobContext) -> list[MessageContent]:
    """The samples of a study and the files of its winner for one person; see `files_messages`."""
    samples = _samples(context)
    results = [*_results(job, context), *sendable([samples] if samples else [], context.file_limit)]
    title = job_name(job)
    return split_files(results, context.file_limit, lambda sent: _locations(context, results, sent), title=title)


def run_lines(children: Sequence[Job], step: StudyStep | None) -> list[str]:
    """One line per run, in the study's ranking: name, settings, state, best ratio."""
    rows = {row.name: row for row in step.table} if step else {}
    ranks = {name: rank for rank, name in enumerate(rows)}
    ordered = sorted(children, key=lambda child: (ranks.get(child.child_name or "", len(ranks)), child.id))
    return first_lines([_run_line(child, rows.get(child.child_name or "")) for child in ordered], most=_SHOWN_RUNS)


def kind_words(job: Job) -> str:
    """`5-fold cross-validation`, `comparison of learning rate × rank`."""
    return request_words(_request(job))


def request_words(request: StudyRequest) -> str:
    """Describe a requested study; see `kind_words`."""
    if isinstance(request, KfoldRequest):
        return _("{folds}-fold cross-validation", folds=request.folds)
    names = [escape(setting.rpartition(".")[2].replace("_", " "), 40) for setting in _varied(request)]
    return _("comparison of {settings}", settings=" × ".join(names))


def _request(job: Job) -> StudyRequest:
    return make_study_request(json.loads(job.study or "{}"))


def _varied(request: StudyRequest) -> list[str]:
    """Settings that differ from run to run: `training.learning_rate`, …"""
    return [] if isinstance(request, KfoldRequest) else [axis.partition("=")[0].strip() for axis in request.vary]


def _settings(job: Job) -> str:
    return settings_line(job, without=_varied(_request(job)))


def _state_words(job: Job, context: JobContext) -> tuple[str, str, Color]:
    if job.state not in {State.PREPARING, State.RUNNING}:
        return state_words(job, context.position)
    if not context.children:
        return "🔵", _("Creating its runs"), Color.WORKING
    rows = context.step.table if context.step else ()
    ended_early = {row.name for row in rows if row.state is ChildState.ENDED_EARLY}
    over = sum(child.state.is_end or child.child_name in ended_early for child in context.children)
    # Some may not be in the queue yet: their owner may have so many jobs there.
    runs = max(len(context.children), len(rows))
    words = ngettext("{over} of {n} run is done", "{over} of {n} runs are done", runs, over=over)
    return "🟢", words, Color.TRAINING


def _run_line(child: Job, known: StudyRow | None) -> str:
    sign, words, _color = state_words(child)
    words = in_sentence(words)
    if child.progress.step and not child.state.is_end:
        words += f" · {percent(share_done(child))}"
    if known is not None and not child.state.is_active:
        sign, words = _row_words(known.state) or (sign, words)
    parts = [f"{sign} **{escape(child.child_name or child.name, 60)}**"]
    if known and known.label:
        parts.append(escape(known.label, 80))
    parts.append(words)
    if best := best_of(child.progress.epochs):
        parts.append(best_words(best))
    if known and known.test_ratio is not None:
        parts.append(_("on the test images {verdict}", verdict=verdict(known.test_ratio)))
    return " · ".join(parts)


def _row_words(state: ChildState) -> tuple[str, str] | None:
    """Sign and words of a run that its job's state does not show."""
    match state:
        case ChildState.ENDED_EARLY:
            return "⏹", _("stopped early: others were better")
        case ChildState.WAITING:
            return "⏸️", _("waits for the others")
        case ChildState.HALTED:
            return "🚫", _("stopped")
        case _:
            return None


def _verdict(step: StudyStep | None) -> str | None:
    return "\n".join(escape(sentence, 400) for sentence in step.verdict[:_SHOWN_SENTENCES]) if step else None


def _chart(context: JobContext) -> FileToSend | None:
    step = context.step
    if step is None or step.chart is None:
        return None
    # A new name whenever the curves have grown: clients keep showing an image that they have under a name.
    epochs = sum(line.epochs for line in step.table)
    chart = FileToSend(folder=context.job_dir, path=step.chart, name=f"study-{epochs}.png")
    return chart if sendable([chart], context.file_limit) else None


def _samples(context: JobContext) -> FileToSend | None:
    step = context.step
    if step is None or step.samples is None:
        return None
    return FileToSend(folder=context.job_dir, path=step.samples, name="samples.png")


def _samples_notes(step: StudyStep | None) -> str | None:
    return "\n".join(f"-# {escape(note, 400)}" for note in step.samples_notes) or None if step else None


def _results(job: Job, context: JobContext) -> list[FileToSend]:
    step = context.step
    if step is None or step.result is None:
        return []
    output = context.job_dir / step.result / "output"
    names = sorted(path.name for path in output.glob("*.safetensors"))
    return [
        FileToSend(folder=output, path=name, name=name if name.startswith(job.name) else f"{job.name}-{name}")
        for name in names
    ]


def _locations(context: JobContext, results: Sequence[FileToSend], sent: Sequence[FileToSend]) -> str | None:
    step = context.step
    if step is None:
        return None
    lines = [_("The whole result, on the machine: `{path}`", path=public_path(context.job_dir, step.page))]
    if step.result is not None:
        path = public_path(context.job_dir, f"{step.result}/output")
        lines.append(_("The resulting model, on the machine: `{path}`", path=path))
    if any(file not in sent for file in results):
        lines.append(_("Some of its files are too large to send here."))
    return "\n".join(f"-# {line}" for line in lines)
