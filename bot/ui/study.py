"""A study (cross-validation, comparison): one card for all its runs, and what it found out in the end."""

from __future__ import annotations

import json
from collections.abc import Sequence

from discord import ui

from bot.queue.domain.job import Job, State
from bot.ui.card import best_of, card_buttons, paused_line, settings_line, share_done, state_words
from bot.ui.layout import Colour, FileToSend, MessageContent, box, layout, picture, row, sendable
from bot.ui.standing import Standing
from bot.ui.text import ago, counted, first_lines, plain
from bot.ui.waiting import waiting_lines
from trainer.protocol.study import ChildState, KfoldOrder, StudyOrder, StudyRow, StudyStep, make_study_order

#: Runs that a card names; a study may have hundreds.
_SHOWN = 20
#: Ends of a run that its job does not tell.
_STUDY_WORDS = {
    ChildState.ENDED_EARLY: ("⏹", "ended early: others were better"),
    ChildState.WAITING: ("⏸️", "waits for the others"),
    ChildState.HALTED: ("⬛", "halted"),
}


def study_card(job: Job, standing: Standing) -> MessageContent:
    """The card of a study as it stands now."""
    sign, words, colour = _standing_words(job, standing)
    chart = _chart(standing)
    text = [f"### {sign} #{job.id} {plain(job.name)} · <@{job.owner_id}>", f"**{words}** · {kind_words(job)}"]
    if job.state is State.QUEUED:
        text += waiting_lines(job, standing)
    if job.state is State.PAUSED:
        text.append(paused_line(job, standing.since))
    if job.end_reason and not (standing.step and standing.step.verdict):
        text.append(plain(job.end_reason, 300))
    body = box(
        colour,
        "\n".join(text),
        "\n".join(study_lines(standing.children, standing.step)) or None,
        _verdict(standing.step),
        picture(chart, standing.step.chart_alt) if chart and standing.step else None,
        f"-# {_settings(job)}\n-# updated {ago(standing.now)} · {standing.footer(job)}",
        row(*buttons) if (buttons := card_buttons(job)) else None,
    )
    return MessageContent(layout=layout(body), files=(chart,) if chart else (), is_silent=True)


def study_lines(children: Sequence[Job], step: StudyStep | None) -> list[str]:
    """A line for each run, as the study ranks them: name, what it is tried with, state, best ratio."""
    rows = {row.name: row for row in step.table} if step else {}
    ranks = {name: rank for rank, name in enumerate(rows)}
    ordered = sorted(children, key=lambda child: (ranks.get(child.child_name or "", len(ranks)), child.id))
    return first_lines([_line(child, rows.get(child.child_name or "")) for child in ordered], most=_SHOWN)


def study_post(job: Job, standing: Standing) -> MessageContent:
    """What a study found out: the verdict, its runs, the curves, and the files of its result."""
    step = standing.step
    chart = _chart(standing)
    results = _results(job, standing)
    sent = sendable([*([chart] if chart else []), *results], standing.file_limit)
    verdict = _verdict(step) or "It is over; nothing was found out."
    body = box(
        Colour.DONE,
        f"## ✅ #{job.id} {plain(job.name)} is done\n<@{job.owner_id}> your {kind_words(job)} is over.\n{verdict}",
        "\n".join(study_lines(standing.children, step)) or None,
        picture(chart, step.chart_alt) if chart and step and chart in sent else None,
        _places(standing, results, sent),
        f"-# {_settings(job)} · {standing.footer(job)}",
    )
    carried = [ui.File[ui.LayoutView](file.url) for file in results if file in sent]
    return MessageContent(layout=layout(body, *carried), files=sent, mentions=job.owner_id)


def kind_words(job: Job) -> str:
    """`5-fold cross-validation`, `comparison of learning rate × rank`."""
    return order_words(_order(job))


def order_words(order: StudyOrder) -> str:
    """As `kind_words`, of what was ordered."""
    if isinstance(order, KfoldOrder):
        return f"{order.folds}-fold cross-validation"
    names = [plain(setting.rpartition(".")[2].replace("_", " "), 40) for setting in _varied(order)]
    return f"comparison of {' × '.join(names)}"


def _order(job: Job) -> StudyOrder:
    return make_study_order(json.loads(job.study or "{}"))


def _varied(order: StudyOrder) -> list[str]:
    """Settings that differ from run to run: `training.learning_rate`, …"""
    return [] if isinstance(order, KfoldOrder) else [axis.partition("=")[0].strip() for axis in order.vary]


def _settings(job: Job) -> str:
    return settings_line(job, without=_varied(_order(job)))


def _standing_words(job: Job, standing: Standing) -> tuple[str, str, Colour]:
    if job.state not in {State.PREPARING, State.RUNNING}:
        return state_words(job, standing.place)
    halted = {row.name for row in standing.step.table if row.state is ChildState.ENDED_EARLY} if standing.step else ()
    ended = sum(child.state.is_end or child.child_name in halted for child in standing.children)
    if not standing.children:
        return "🟡", "Making its runs", Colour.PREPARING
    return "🟢", f"{ended} of {counted(len(standing.children), 'run')} over", Colour.TRAINING


def _line(child: Job, known: StudyRow | None) -> str:
    sign, words, _ = state_words(child)
    percent = f" {share_done(child):.0%}" if child.progress.step and not child.state.is_end else ""
    if known is not None and not child.state.is_active and known.state in _STUDY_WORDS:
        sign, words = _STUDY_WORDS[known.state]
        percent = ""
    label = f" · {plain(known.label, 80)}" if known and known.label else ""
    tested = f" · test {known.test_ratio:.2f}×" if known and known.test_ratio is not None else ""
    words = f"{words[:1].lower()}{words[1:]}"
    return f"{sign} **{plain(child.child_name or child.name, 60)}**{label} · {words}{percent}{_best(child)}{tested}"


def _best(child: Job) -> str:
    best = best_of(child.progress.epochs)
    return f" · best val {best.validation.ratio:.2f}× @ e{best.epoch}" if best else ""


def _verdict(step: StudyStep | None) -> str | None:
    return "\n".join(f"→ {plain(sentence, 400)}" for sentence in step.verdict[:6]) if step else None


def _chart(standing: Standing) -> FileToSend | None:
    step = standing.step
    if step is None or step.chart is None:
        return None
    # A new name whenever the curves have grown, or the clients go on showing the picture that they have.
    epochs = sum(line.epochs for line in step.table)
    chart = FileToSend(path=standing.job_dir / step.chart, name=f"study-{epochs}.png")
    return chart if sendable([chart], standing.file_limit) else None


def _results(job: Job, standing: Standing) -> list[FileToSend]:
    step = standing.step
    if step is None or step.result is None:
        return []
    output = standing.job_dir / step.result / "output"
    return [FileToSend(path=path, name=f"{job.name}-{path.name}") for path in sorted(output.glob("*.safetensors"))]


def _places(standing: Standing, results: Sequence[FileToSend], sent: Sequence[FileToSend]) -> str | None:
    step = standing.step
    if step is None:
        return None
    lines = [f"-# The whole result, on the machine: `{standing.job_dir / step.page}`"]
    if step.result is not None:
        lines.append(f"-# The model that came of it: `{standing.job_dir / step.result / 'output'}`")
    if len(sent) < len(results) + 1 and any(file not in sent for file in results):
        lines.append("-# Some of its files are too large to send here.")
    return "\n".join(lines)
