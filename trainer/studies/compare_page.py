"""What a comparison found, as a chart, a table and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from trainer.protocol.spec import Spec
from trainer.report.study import Column, Row, StudyPage
from trainer.studies.children import End, Outcome
from trainer.studies.grid import shown
from trainer.studies.standings import Standing
from trainer.studies.wording import change, count, duration, listed, percent

CHART = "charts/candidates.png"
WINNER_FOLDER = "winner"

_NOTES = (
    (
        "The loss is the best validation loss as a share of the base model's on the same pictures. All candidates "
        "share pictures, split, seeds and questions."
    ),
    (
        "Beside the first: how much more loss, with its 95 % interval over pictures, both asked the same; at the best "
        "epochs up to the one that the worse was ended after. An interval that holds 0 % means that chance may have "
        "decided."
    ),
    "The first is the best of many: its own figure flatters it a little. The test, which nothing was chosen by, tells.",
)


def compare_page(
    folder: Path,
    spec: Spec,
    ranked: Sequence[Standing],
    winner: Outcome | None,
    *,
    is_whole: bool,
    hints: Sequence[str],
) -> StudyPage:
    """The page of a study as it stands, candidates best first; draws its chart. `hints` are put under the table."""
    settings = tuple(ranked[0].candidate.values)
    names = [name.rpartition(".")[2] for name in settings]
    has_curves = any(one.outcome.story.epochs for one in ranked)
    if has_curves:
        _draw(folder, spec, ranked)
    is_winner_open = is_whole and winner is None and ranked[0].is_in_the_running
    return StudyPage(
        kind=f"Comparison of {len(ranked)} candidates",
        title=f"{spec.name}: {listed(names)}",
        verdict=tuple(_verdict(ranked, winner, is_whole=is_whole)),
        columns=(
            Column(name="candidate", is_number=False),
            *(Column(name=name) for name in names),
            Column(name="best loss"),
            Column(name="beside the first"),
            Column(name="95 % interval"),
            Column(name="best epoch"),
            Column(name="epochs"),
            Column(name="time"),
            Column(name="", is_number=False),
        ),
        rows=tuple(
            _row(one, settings, is_first=place == 0 and one.is_in_the_running) for place, one in enumerate(ranked)
        ),
        notes=(*_NOTES, *hints),
        chart=CHART if has_curves else None,
        chart_alt="Validation loss of each candidate by epoch",
        command=f"python -m trainer run {folder / WINNER_FOLDER}" if is_winner_open else "",
    )


def _verdict(ranked: Sequence[Standing], winner: Outcome | None, *, is_whole: bool) -> Iterator[str]:
    first = ranked[0]
    best = first.outcome.story.best
    if best is None or not first.is_in_the_running:
        yield "No candidate has ended an epoch."
    else:
        verb = "wins" if is_whole else "leads so far"
        yield (
            f"{_name(first)} {verb}: {percent(best.validation.ratio)} of the base's validation loss, after epoch "
            f"{best.epoch}."
        )
        yield from _doubts(ranked[1:])
    if winner is not None and winner.story.test is not None:
        yield f"On the test pictures its loss is {percent(winner.story.test.test.ratio)} of the base's."
    if winner is not None and winner.end is End.FAILED:
        yield f"Its test and export failed: {winner.reason}"
    yield from (f"{_name(one)} failed: {one.outcome.reason}" for one in ranked if one.has_failed)
    yield from _saved(ranked)
    open_ = [_name(one) for one in ranked if one.outcome.end is End.HALTED]
    if open_ and not is_whole:
        yield f"Stopped with {count(len(open_), 'candidate')} still to train; started again, it goes on."


def _doubts(others: Sequence[Standing]) -> Iterator[str]:
    told = [one for one in others if not one.has_failed]
    equal = [one for one in told if one.may_be_as_good and one.ended_after is None]
    early = [one for one in told if one.may_be_as_good and one.ended_after is not None]
    if equal:
        yield f"{listed([f'{_name(one)} ({_interval(one)})' for one in equal])} cannot be told from it."
    if early:
        named = [f"{_name(one)} (after epoch {one.ended_after}: {_interval(one)})" for one in early]
        yield f"{listed(named)} could not be told from it when ended early; a comparison that ends nobody would tell."
    if told and all(one.against_first is not None and not one.may_be_as_good for one in told):
        yield "Every other candidate is worse by more than chance."
    if told and all(one.against_first is None for one in told):
        yield "There are too few validation pictures to say how much of this is chance."


def _saved(ranked: Sequence[Standing]) -> Iterator[str]:
    ended = [one for one in ranked if one.ended_after is not None]
    if ended:
        saved = sum(one.candidate.spec.training.epochs - one.outcome.story.last_epoch for one in ended)
        yield f"{len(ended)} of {len(ranked)} candidates were ended early, which saved {count(saved, 'epoch')}."


def _name(standing: Standing) -> str:
    return standing.candidate.label


def _interval(standing: Standing) -> str:
    against = standing.against_first
    return f"{change(against.low)} to {change(against.high)}" if against else ""


def _row(standing: Standing, settings: Sequence[str], *, is_first: bool) -> Row:
    story, against = standing.outcome.story, standing.against_first
    best = story.best
    return Row(
        cells=(
            standing.candidate.name,
            *(shown(standing.candidate.values[setting]) for setting in settings),
            percent(best.validation.ratio) if best else "",
            change(against.ratio) if against else "",
            _interval(standing),
            str(best.epoch) if best else "",
            str(story.last_epoch),
            duration(story.seconds) if story.epochs else "",
            _remark(standing, is_first=is_first),
        ),
        is_first=is_first,
        is_faint=standing.has_failed or standing.ended_after is not None,
    )


def _remark(standing: Standing, *, is_first: bool) -> str:
    if standing.has_failed:
        return "failed"
    if standing.ended_after is not None:
        return "ended early"
    if standing.outcome.end is End.HALTED:
        return "stopped"
    words = ["first"] if is_first else []
    return ", ".join([*words, *(["stopped early"] if standing.outcome.story.stopped_early else [])])


def _draw(folder: Path, spec: Spec, ranked: Sequence[Standing]) -> None:
    # Half a second to load; a step that has nothing to draw yet does without.
    from trainer.report.study_chart import Curve, draw_study_chart

    curves = [
        Curve(
            name=f"{one.candidate.name}  {_name(one)}",
            ratios=tuple(epoch.validation.ratio for epoch in one.outcome.story.epochs),
            best_epoch=best.epoch,
            is_first=place == 0 and one.is_in_the_running,
            is_ended=one.ended_after is not None or one.has_failed,
        )
        for place, one in enumerate(ranked)
        if (best := one.outcome.story.best) is not None
    ]
    draw_study_chart(folder / CHART, title=f"{spec.name}: validation loss of {len(curves)} candidates", curves=curves)
