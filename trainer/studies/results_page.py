"""The results of a study as a page: what was found in sentences, a table of the runs, and a chart of their curves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from trainer.protocol.spec import Spec
from trainer.protocol.study import ChildGoal, ChildState, StudyRow, StudyStep
from trainer.protocol.text import _, change, duration, listed, ngettext, percent, verdict
from trainer.report.study_page import (
    HTML_NAME,
    MARKDOWN_NAME,
    Column,
    MeanCurve,
    RunCurve,
    StudyPage,
    TableRow,
    write_study_pages,
)
from trainer.studies.child_specs import format_value
from trainer.studies.fold_summary import FoldSummary
from trainer.studies.leaderboard import LeaderboardEntry
from trainer.studies.run_history import Child

WINNER_FOLDER = "winner"
FOLDS_CHART, CANDIDATES_CHART = "charts/folds.png", "charts/candidates.png"


def make_step(
    study_dir: Path,
    page: StudyPage,
    rows: Sequence[StudyRow],
    *,
    goals: Sequence[ChildGoal],
    has_failed: bool,
    result: str | None,
) -> StudyStep:
    """Write the results so far, and return them with the goals; a study without goals is over."""
    write_study_pages(page, study_dir)
    return StudyStep(
        goals=tuple(goals),
        is_over=not goals,
        has_failed=has_failed,
        verdict=page.verdict,
        table=tuple(rows),
        page=HTML_NAME,
        report=MARKDOWN_NAME,
        chart=page.chart,
        chart_alt=page.chart_alt if page.chart else "",
        samples=(page.samples and page.samples.path) or None,
        samples_alt=page.samples.alt if page.samples else "",
        samples_notes=page.samples.notes if page.samples else (),
        result=result,
    )


def kfold_page(spec: Spec, folds: Sequence[Child], summary: FoldSummary | None, final: Child | None) -> StudyPage:
    """Describe a cross-validation as it stands."""
    rows = [_fold_row(fold.goal.name, fold) for fold in folds]
    if summary is not None:
        rows.append(_mean_row(summary))
    if final is not None:
        rows.append(_final_row(final))
    curves = [_curve(fold, fold.goal.name) for fold in folds if fold.history.epochs]
    return StudyPage(
        kind=_("{k}-fold cross-validation", k=len(folds)),
        title=spec.name,
        verdict=tuple(_kfold_verdict(spec, folds, summary, final)),
        columns=(
            Column(name=_("run"), is_number=False),
            Column(name=_("trains on")),
            Column(name=_("validates on")),
            Column(name=_("best loss")),
            *_last_columns(),
        ),
        rows=tuple(rows),
        notes=(
            _(
                "The loss is the validation loss at the best epoch as a share of the base model's on the same images. "
                "A fold's interval is over its images."
            ),
            _(
                "The mean's interval is over folds (Student's t, widened after Nadeau & Bengio 2003). It is a rough "
                "one: folds share training images and are few. It describes these settings, not one trained model."
            ),
            _(
                "A fold trains on fewer images than the final run: with the same number of epochs the final run sees "
                "each image as often, and takes more steps."
            ),
        ),
        chart_path=FOLDS_CHART,
        chart_title=_("{name}: validation loss of {n} folds", name=spec.name, n=len(curves)),
        chart_alt=_("Validation loss of each fold by epoch, and their mean"),
        curves=tuple(curves) if summary is not None else (),
        mean=_mean_curve(summary) if summary is not None else None,
    )


def _mean_curve(summary: FoldSummary) -> MeanCurve:
    label = ngettext("final run: {n} epoch", "final run: {n} epochs", summary.final_epochs)
    return MeanCurve(ratios=summary.mean_curve, epoch=summary.final_epochs, label=label)


def _kfold_verdict(
    spec: Spec, folds: Sequence[Child], summary: FoldSummary | None, final: Child | None
) -> Iterator[str]:
    if summary is None:
        yield _("No fold has completed an epoch.")
    else:
        yield _mean_sentence(summary)
        if 2 * summary.still_falling > len(summary.ratios):
            yield _(
                "In {n} of {folds} folds the last of {epochs} epochs was the best: more epochs may do better.",
                n=summary.still_falling,
                folds=len(summary.ratios),
                epochs=spec.training.epochs,
            )
    if final is not None and final.state is ChildState.FINISHED:
        epochs = ngettext("{n} epoch", "{n} epochs", final.history.last_epoch)
        yield _("The final run trained on all images for {epochs}, the mean best epoch of the folds.", epochs=epochs)
        if final.history.test is not None:
            yield _("On the test images it is {verdict}.", verdict=verdict(final.history.test.test.ratio))
    for fold in folds:
        if fold.state is ChildState.FAILED:
            name = fold.goal.name.capitalize()
            yield _("{name} failed and is left out: {reason}", name=name, reason=fold.reason)
    if final is not None and final.state is ChildState.FAILED:
        yield _("The final run failed: {reason}", reason=final.reason)
    halted = [fold.goal.name for fold in folds if fold.state is ChildState.HALTED]
    if halted:
        yield _("Stopped before {folds} had finished; run the same command again to continue.", folds=listed(halted))


def _mean_sentence(summary: FoldSummary) -> str:
    folds = ngettext("{n} fold", "{n} folds", len(summary.ratios))
    return _(
        "Over {folds} the best epochs are on average {verdict}, after {mean:.1f} epochs (median {median:g}).",
        folds=folds,
        verdict=verdict(summary.mean_ratio, *(summary.interval or (None, None))),
        mean=summary.mean_best_epoch,
        median=summary.median_best_epoch,
    )


def _range(interval: tuple[float, float] | None) -> str:
    return _("{low} to {high}", low=percent(interval[0], 1), high=percent(interval[1], 1)) if interval else ""


def _fold_row(name: str, fold: Child) -> TableRow:
    history, best = fold.history, fold.history.best
    low, high = (best.validation.ratio_low, best.validation.ratio_high) if best else (None, None)
    return TableRow(
        cells=(
            name,
            str(history.started.train_images) if history.started else "",
            str(history.started.validation_images) if history.started else "",
            percent(best.validation.ratio, 1) if best else "",
            _range((low, high)) if low is not None and high is not None else "",
            str(best.epoch) if best else "",
            str(history.last_epoch),
            duration(history.seconds) if history.epochs else "",
            _remark(fold),
        ),
        is_faint=fold.state is ChildState.FAILED,
    )


def _mean_row(summary: FoldSummary) -> TableRow:
    best = f"{summary.mean_best_epoch:.1f}"
    cells = (_("mean of the folds"), "", "", percent(summary.mean_ratio, 1), _range(summary.interval), best, "", "", "")
    return TableRow(cells=cells)


def _final_row(final: Child) -> TableRow:
    history = final.history
    test = history.test
    return TableRow(
        cells=(
            _("final, all images"),
            str(history.started.train_images) if history.started else "",
            *("", "", "", ""),
            str(history.last_epoch),
            duration(history.seconds) if history.epochs else "",
            _("test {ratio}", ratio=percent(test.test.ratio, 1)) if test else _remark(final),
        ),
        is_first=True,
        is_faint=final.state is ChildState.FAILED,
    )


def _remark(child: Child) -> str:
    match child.state:
        case ChildState.FAILED:
            return _("failed")
        case ChildState.ENDED_EARLY:
            return _("ended early")
        case ChildState.HALTED:
            return _("stopped")
        case _:
            return _("stopped early") if child.history.stopped_early else ""


def comparison_page(
    study_dir: Path,
    spec: Spec,
    entries: Sequence[LeaderboardEntry],
    winner: Child | None,
    *,
    is_measured: bool,
    hints: Sequence[str],
) -> StudyPage:
    """Describe a comparison as it stands.

    Args:
        entries: All candidates, best first.
        winner: The run that tests and exports the winner; None before it, and if it is not asked for.
        is_measured: All candidates that may win have reached their end.
        hints: Sentences for below the table.
    """
    settings = tuple(entries[0].candidate.values)
    names = [name.rpartition(".")[2] for name in settings]
    is_winner_open = is_measured and winner is None and entries[0].is_contender
    curves = [
        _curve(
            entry.child,
            f"{entry.candidate.name}  {entry.candidate.label}",
            is_first=index == 0 and entry.is_contender,
            is_ended=entry.ended_after is not None or entry.has_failed,
        )
        for index, entry in enumerate(entries)
        if entry.child.history.epochs
    ]
    return StudyPage(
        kind=_("Comparison of {n} candidates", n=len(entries)),
        title=f"{spec.name}: {listed(names)}",
        verdict=tuple(_comparison_verdict(entries, winner, is_measured=is_measured)),
        columns=(
            Column(name=_("candidate"), is_number=False),
            *(Column(name=name) for name in names),
            Column(name=_("best loss")),
            Column(name=_("compared with the first")),
            *_last_columns(),
        ),
        rows=tuple(
            _entry_row(entry, settings, is_first=index == 0 and entry.is_contender)
            for index, entry in enumerate(entries)
        ),
        notes=(*_comparison_notes(), *hints),
        chart_path=CANDIDATES_CHART,
        chart_title=_("{name}: validation loss of {n} candidates", name=spec.name, n=len(curves)),
        chart_alt=_("Validation loss of each candidate by epoch"),
        curves=tuple(curves),
        command=f"python -m trainer run {study_dir / WINNER_FOLDER}" if is_winner_open else "",
    )


def _comparison_notes() -> tuple[str, ...]:
    return (
        _(
            "The loss is the best validation loss as a share of the base model's on the same images. All "
            "candidates share images, split, seeds and validation triples."
        ),
        _(
            "Compared with the first: how much more loss, with its 95 % interval over images, at the best epochs "
            "up to the one after which the worse ended. If the interval includes 0 %, the difference may be "
            "chance."
        ),
        _(
            "The first is the best of many, so its own figure is slightly too good. The test is not: nothing was "
            "chosen by it."
        ),
    )


def _last_columns() -> tuple[Column, ...]:
    """What every table of runs ends with."""
    return (
        Column(name=_("95 % interval")),
        Column(name=_("best epoch")),
        Column(name=_("epochs")),
        Column(name=_("time")),
        Column(name="", is_number=False),
    )


def _comparison_verdict(
    entries: Sequence[LeaderboardEntry], winner: Child | None, *, is_measured: bool
) -> Iterator[str]:
    first = entries[0]
    best = first.child.history.best
    if best is None or not first.is_contender:
        yield _("No candidate has completed an epoch.")
    else:
        sentence = (
            _("{name} wins: {verdict}, after epoch {epoch}.")
            if is_measured
            else _("{name} leads so far: {verdict}, after epoch {epoch}.")
        )
        yield sentence.format(name=first.candidate.label, verdict=verdict(best.validation.ratio), epoch=best.epoch)
        yield from _doubts([entry for entry in entries[1:] if not entry.has_failed])
    if winner is not None and winner.history.test is not None:
        yield _("On the test images it is {verdict}.", verdict=verdict(winner.history.test.test.ratio))
    if winner is not None and winner.state is ChildState.FAILED:
        yield _("Its test and export failed: {reason}", reason=winner.reason)
    for entry in entries:
        if entry.has_failed:
            yield _("{name} failed: {reason}", name=entry.candidate.label, reason=entry.child.reason)
    ended = [entry for entry in entries if entry.ended_after is not None]
    if ended:
        saved = sum(entry.candidate.spec.training.epochs - entry.child.history.last_epoch for entry in ended)
        yield _(
            "{n} of {total} candidates ended early, which saved {epochs}.",
            n=len(ended),
            total=len(entries),
            epochs=ngettext("{n} epoch", "{n} epochs", saved),
        )
    halted = sum(entry.child.state is ChildState.HALTED for entry in entries)
    if halted and not is_measured:
        yield ngettext(
            "Stopped before {n} candidate had finished; run the same command again to continue.",
            "Stopped before {n} candidates had finished; run the same command again to continue.",
            halted,
        )


def _doubts(others: Sequence[LeaderboardEntry]) -> Iterator[str]:
    """What chance may have decided between the first and the others."""
    equal = [
        f"{entry.candidate.label} ({_change_range(entry)})"
        for entry in others
        if entry.may_be_as_good and entry.ended_after is None
    ]
    early = [
        _("{name} (after epoch {epoch}: {range})", name=entry.candidate.label, epoch=entry.ended_after, range=text)
        for entry in others
        if entry.may_be_as_good and entry.ended_after is not None and (text := _change_range(entry))
    ]
    if equal:
        yield _("It is not clearly better than {names}.", names=listed(equal))
    if early:
        yield _(
            "It was not clearly better than {names} when that ended early; a comparison that lets every candidate "
            "finish would tell.",
            names=listed(early),
        )
    if others and all(entry.against_first is not None and not entry.may_be_as_good for entry in others):
        yield _("Every other candidate is worse by more than chance.")
    if others and all(entry.against_first is None for entry in others):
        yield _("There are too few validation images to tell how much of this is chance.")


def _change_range(entry: LeaderboardEntry) -> str:
    against = entry.against_first
    return _("{low} to {high}", low=change(against.low), high=change(against.high)) if against else ""


def _entry_row(entry: LeaderboardEntry, settings: Sequence[str], *, is_first: bool) -> TableRow:
    history, against, best = entry.child.history, entry.against_first, entry.child.history.best
    remarks = [_("first") if is_first else "", _remark(entry.child)]
    return TableRow(
        cells=(
            entry.candidate.name,
            *(format_value(entry.candidate.values[setting]) for setting in settings),
            percent(best.validation.ratio, 1) if best else "",
            change(against.ratio) if against else "",
            _change_range(entry),
            str(best.epoch) if best else "",
            str(history.last_epoch),
            duration(history.seconds) if history.epochs else "",
            ", ".join(filter(None, remarks)),
        ),
        is_first=is_first,
        is_faint=entry.has_failed or entry.ended_after is not None,
    )


def _curve(child: Child, name: str, *, is_first: bool = False, is_ended: bool = False) -> RunCurve:
    best = child.history.best
    return RunCurve(
        name=name,
        ratios=child.history.ratios,
        best_epoch=best.epoch if best else 0,
        is_first=is_first,
        is_ended=is_ended,
    )
