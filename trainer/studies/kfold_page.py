"""What a cross-validation found, as a chart, a table and sentences."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.protocol.spec import Spec
from trainer.report.study import Column, Row, StudyPage
from trainer.studies.children import End, Outcome
from trainer.studies.fold_summary import FoldSummary, summarize_folds
from trainer.studies.stories import Story
from trainer.studies.wording import count, duration, listed, percent

if TYPE_CHECKING:
    from trainer.report.study_chart import Curve

CHART = "charts/folds.png"

_COLUMNS = (
    Column(name="run", is_number=False),
    Column(name="trains on"),
    Column(name="measured on"),
    Column(name="best loss"),
    Column(name="95 % interval"),
    Column(name="best epoch"),
    Column(name="epochs"),
    Column(name="time"),
    Column(name="", is_number=False),
)
_NOTES = (
    (
        "The loss is the validation loss at the best epoch as a share of the base model's on the same pictures. A "
        "fold's interval is over its pictures."
    ),
    (
        "The mean's interval is over folds (Student's t, widened after Nadeau & Bengio 2003). Folds share training "
        "pictures and are few, so take it as a rough one; it is of these settings, not of one trained model."
    ),
    (
        "A fold trains on fewer pictures than the final run: one of the same number of epochs sees each picture as "
        "often, and takes more steps."
    ),
)


def kfold_page(folder: Path, spec: Spec, outcomes: Mapping[str, Outcome], final: Outcome | None) -> StudyPage:
    """The page of a study as it stands; draws its chart."""
    good = [outcome.story for outcome in outcomes.values() if outcome.end is not End.FAILED]
    summary = summarize_folds(good, spec.training.epochs)
    rows = [_row(name, outcome, _remark(outcome)) for name, outcome in outcomes.items()]
    if summary is not None:
        rows.append(_mean_row(summary))
        _draw(folder, spec, outcomes, summary)
    if final is not None:
        rows.append(_row("final, all pictures", final, _final_remark(final), is_first=True))
    return StudyPage(
        kind=f"{len(outcomes)}-fold cross-validation",
        title=spec.name,
        verdict=tuple(_verdict(spec, outcomes, summary, final)),
        columns=_COLUMNS,
        rows=tuple(rows),
        notes=_NOTES,
        chart=CHART if summary is not None else None,
        chart_alt="Validation loss of each fold by epoch, and their mean",
    )


def _verdict(
    spec: Spec, outcomes: Mapping[str, Outcome], summary: FoldSummary | None, final: Outcome | None
) -> list[str]:
    sentences = []
    if summary is None:
        sentences.append("No fold has ended an epoch.")
    else:
        sentences.append(_mean_sentence(summary))
        if 2 * summary.still_falling > len(summary.ratios):
            sentences.append(
                f"In {summary.still_falling} of {len(summary.ratios)} folds the last of {spec.training.epochs} epochs "
                "was the best: more epochs may do better."
            )
    if final is not None and final.end is End.FINISHED:
        epochs = final.story.last_epoch
        test = final.story.test
        words = f"The final run trained on all pictures for {count(epochs, 'epoch')}, their mean best epoch"
        sentences.append(words + (f"; on the test pictures its loss is {_of_base(test.test.ratio)}." if test else "."))
    failed = {name: outcome.reason for name, outcome in outcomes.items() if outcome.end is End.FAILED}
    if final is not None and final.end is End.FAILED:
        failed["the final run"] = final.reason
    sentences += [f"{name[0].upper()}{name[1:]} failed and is left out: {reason}" for name, reason in failed.items()]
    open_ = [name for name, outcome in outcomes.items() if outcome.end is End.HALTED]
    if open_:
        sentences.append(f"Stopped with {listed(open_)} still to train; started again, it goes on.")
    return sentences


def _mean_sentence(summary: FoldSummary) -> str:
    folds = len(summary.ratios)
    sure = (
        f" (95 % interval {percent(summary.interval[0])} to {percent(summary.interval[1])})" if summary.interval else ""
    )
    return (
        f"Over {count(folds, 'fold')} the best validation loss is {_of_base(summary.mean_ratio)} on average{sure}, "
        f"after {summary.mean_best_epoch:.1f} epochs (median {summary.median_best_epoch:g})."
    )


def _of_base(ratio: float) -> str:
    return f"{percent(ratio)} of the base's"


def _row(name: str, outcome: Outcome, remark: str, *, is_first: bool = False) -> Row:
    story = outcome.story
    best, started = story.best, story.started
    low, high = (best.validation.ratio_low, best.validation.ratio_high) if best else (None, None)
    return Row(
        cells=(
            name,
            str(started.train_images) if started else "",
            str(started.validation_images) if started and not is_first else "",
            percent(best.validation.ratio) if best and not is_first else "",
            f"{percent(low)} to {percent(high)}" if low is not None and high is not None and not is_first else "",
            str(best.epoch) if best and not is_first else "",
            str(story.last_epoch),
            duration(story.seconds) if story.epochs else "",
            remark,
        ),
        is_first=is_first,
        is_faint=outcome.end is End.FAILED,
    )


def _mean_row(summary: FoldSummary) -> Row:
    sure = f"{percent(summary.interval[0])} to {percent(summary.interval[1])}" if summary.interval else ""
    best = f"{summary.mean_best_epoch:.1f}"
    return Row(cells=("mean of the folds", "", "", percent(summary.mean_ratio), sure, best, "", "", ""))


def _remark(outcome: Outcome) -> str:
    match outcome.end:
        case End.FAILED:
            return "failed"
        case End.HALTED:
            return "stopped"
        case _:
            return "stopped early" if outcome.story.stopped_early else ""


def _final_remark(final: Outcome) -> str:
    if final.story.test is None:
        return _remark(final)
    return f"test {percent(final.story.test.test.ratio)}"


def _draw(folder: Path, spec: Spec, outcomes: Mapping[str, Outcome], summary: FoldSummary) -> None:
    # Half a second to load; a step that has nothing to draw yet does without.
    from trainer.report.study_chart import Mean, draw_study_chart

    curves = [_curve(name, outcome.story) for name, outcome in outcomes.items() if outcome.story.epochs]
    mean = Mean(
        ratios=summary.mean_curve,
        epoch=summary.final_epochs,
        label=f"final run: {count(summary.final_epochs, 'epoch')}",
    )
    draw_study_chart(
        folder / CHART, title=f"{spec.name}: validation loss of {len(curves)} folds", curves=curves, mean=mean
    )


def _curve(name: str, story: Story) -> Curve:
    from trainer.report.study_chart import Curve

    best = story.best
    return Curve(
        name=name,
        ratios=tuple(epoch.validation.ratio for epoch in story.epochs),
        best_epoch=best.epoch if best else 1,
    )
