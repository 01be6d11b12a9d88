"""A comparison: candidates that differ in some settings, the worse ended early, the winner made a job of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path

from trainer.errors import DatasetError
from trainer.protocol.checks import idle_settings
from trainer.protocol.report import read_report
from trainer.protocol.spec import Spec
from trainer.protocol.study import StudyRow
from trainer.report.study import StudyPage, write_study_pages
from trainer.studies.children import End, Goal, Outcome, Runs, unfinished
from trainer.studies.compare_page import WINNER_FOLDER, compare_page
from trainer.studies.grid import Candidate
from trainer.studies.halving import FEWEST_SURVIVORS, FIRST_EPOCH, rungs, survivors
from trainer.studies.plans import child_spec
from trainer.studies.results import MakeChildren, StudyResult, study_row
from trainer.studies.standings import Standing, rank
from trainer.studies.state import Rung, Study, StudyKind
from trainer.studies.stories import read_story
from trainer.studies.winner import make_winner

CANDIDATES_FOLDER = "candidates"


@dataclass(frozen=True, kw_only=True)
class Halving:
    """When the worse candidates are ended."""

    #: Epochs before anybody is ended; at least 2.
    first_epoch: int
    #: One in so many goes on; None: nobody is ended.
    keep_one_in: int | None = 2

    @property
    def words(self) -> str:
        return "all to their end" if self.keep_one_in is None else f"1 in {self.keep_one_in} from {self.first_epoch}"


def first_look(spec: Spec) -> int:
    """The epoch before which nobody is ended: a fifth of the training, and no less than early stopping's warm-up.

    From a tenth on the best of 9 simulated candidates won in 65 % of studies, from a fifth in 82 %, for 76 epochs in
    place of 58, where all to their end take 180 (`bench/halving.py`).
    """
    return max(FIRST_EPOCH, spec.early_stopping.warmup_epochs, ceil(spec.training.epochs / 5))


@dataclass(kw_only=True)
class _Comparison:
    """What the steps of one comparison share."""

    folder: Path
    spec: Spec
    candidates: Mapping[str, Candidate]
    halving: Halving
    study: Study
    children: Runs
    #: Group of near duplicates by the hash of a picture's pixels.
    groups: Mapping[str, int]
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @property
    def alive(self) -> tuple[str, ...]:
        """Neither ended at a rung nor failed."""
        ended = {name for rung in self.study.state.rungs for name in rung.ended}
        failed = {name for name, outcome in self.outcomes.items() if outcome.end is End.FAILED}
        return tuple(name for name in self.candidates if name not in ended | failed)

    def run(self, until_epoch: int | None) -> bool:
        """Bring all that are alive to an epoch; False where some are not there yet."""
        goals = [self._goal(name, until_epoch) for name in self.alive]
        self.outcomes |= self.children.run(goals)
        return unfinished(self.outcomes.values()) is None

    def leave_out_given_up(self) -> None:
        """Those that failed before and get no other try: who is alive hangs on them."""
        goals = [self._goal(name, None) for name in self.alive]
        self.outcomes |= self.children.given_up(goals)

    def decide(self, epoch: int, keep_one_in: int) -> None:
        """End the worse of those that are alive; durable."""
        bests = {name: self.outcomes[name].story.best_until(epoch) for name in self.alive}
        ratios = {name: best.validation.ratio for name, best in bests.items() if best is not None}
        kept = survivors(ratios, keep_one_in) if ratios else ()
        rung = Rung(epoch=epoch, ratios=ratios, ended=tuple(name for name in ratios if name not in kept))
        self.study.remember(rungs=(*self.study.state.rungs, rung))

    def ranked(self) -> tuple[Standing, ...]:
        """How each candidate stands, best first; one that was ended at an earlier time is read from its folder."""
        ended = {name: rung.epoch for rung in self.study.state.rungs for name in rung.ended}
        found = []
        for name, candidate in self.candidates.items():
            known = self.outcomes.get(name)
            outcome = known or Outcome(end=End.HALTED, story=read_story(self.folder / CANDIDATES_FOLDER / name))
            if name in ended:
                outcome = replace(outcome, end=End.REACHED)
            found.append(Standing(candidate=candidate, outcome=outcome, ended_after=ended.get(name)))
        return rank(found, self.groups)

    def _goal(self, name: str, until_epoch: int | None) -> Goal:
        epochs = self.candidates[name].spec.training.epochs
        until = until_epoch if until_epoch is not None and until_epoch < epochs else None
        return Goal(name=name, job_dir=self.folder / CANDIDATES_FOLDER / name, until_epoch=until)


def run_compare(
    folder: Path,
    spec: Spec,
    candidates: Sequence[Candidate],
    halving: Halving,
    make_children: MakeChildren,
    *,
    finishes: bool,
) -> StudyResult:
    """Run the study of a job folder, or go on with it; `results.md` and `.html` tell of it whenever it ends.

    With `finishes` the winner is tested and exported too; else its folder is ready for `trainer run`.

    Raises:
        JobFolderBusyError: another process runs a study there.
        UsageError: the folder holds another study.
        DatasetError: the job's dataset is none.
    """
    labels = "; ".join(candidate.label for candidate in candidates)
    with Study(folder, StudyKind.COMPARE, f"{labels}; {halving.words}", spec) as study:
        for candidate in candidates:
            if not ((job_dir := folder / CANDIDATES_FOLDER / candidate.name) / "spec.json").exists():
                child_spec(candidate.spec).write(job_dir)
        comparison = _Comparison(
            folder=folder,
            spec=spec,
            candidates={candidate.name: candidate for candidate in candidates},
            halving=halving,
            study=study,
            children=make_children(study),
            groups=_groups(spec),
        )
        comparison.leave_out_given_up()
        is_whole = _run_rungs(comparison) and comparison.run(None)
        return _finish(comparison, is_whole=is_whole, finishes=finishes)


def _groups(spec: Spec) -> dict[str, int]:
    try:
        report = read_report(Path(spec.dataset))
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{spec.dataset} is not a prepared dataset.", "Make it with `python -m trainer prepare`."
        ) from error
    return {
        image.pixels_sha256: image.group for image in report.images if image.pixels_sha256 and image.group is not None
    }


def _run_rungs(comparison: _Comparison) -> bool:
    """All rungs that are not decided yet; False where some are not there yet."""
    keep_one_in = comparison.halving.keep_one_in
    if keep_one_in is None:
        return True
    epochs = max(candidate.spec.training.epochs for candidate in comparison.candidates.values())
    all_rungs = rungs(comparison.halving.first_epoch, keep_one_in, epochs)
    for epoch in all_rungs[len(comparison.study.state.rungs) :]:
        if len(comparison.alive) <= FEWEST_SURVIVORS:
            break
        if not comparison.run(epoch):
            return False
        comparison.decide(epoch, keep_one_in)
        _write(comparison, is_whole=False)
    return True


def _finish(comparison: _Comparison, *, is_whole: bool, finishes: bool) -> StudyResult:
    """Make the winner's folder, and with `finishes` let it be tested and exported."""
    first = comparison.ranked()[0]
    winner: Outcome | None = None
    folder = comparison.folder / WINNER_FOLDER
    if is_whole and first.is_in_the_running:
        child = first.outcome.story.job_dir
        make_winner(child, folder, comparison.spec, first.candidate.spec)
        if finishes:
            winner = comparison.children.run([Goal(name=WINNER_FOLDER, job_dir=folder)])[WINNER_FOLDER]
    page = _write(comparison, is_whole=is_whole, winner=winner)
    if not is_whole:
        end = unfinished(comparison.outcomes.values()) or End.HALTED
    elif winner is not None:
        end = winner.end
    else:
        end = End.FINISHED if first.is_in_the_running else End.FAILED
    is_done = winner is not None and winner.end is End.FINISHED
    return StudyResult(
        end=end, page=page, rows=tuple(_rows(comparison, winner)), result=WINNER_FOLDER if is_done else None
    )


def _rows(comparison: _Comparison, winner: Outcome | None) -> Iterator[StudyRow]:
    for one in comparison.ranked():
        name = one.candidate.name
        yield study_row(
            name,
            f"{CANDIDATES_FOLDER}/{name}",
            one.outcome,
            label=one.candidate.label,
            is_ended_early=one.ended_after is not None,
        )
    if winner is not None:
        yield study_row(WINNER_FOLDER, WINNER_FOLDER, winner)


def _write(comparison: _Comparison, *, is_whole: bool, winner: Outcome | None = None) -> StudyPage:
    hints = dict.fromkeys(
        f"With {candidate.label}: {sentence}"
        for candidate in comparison.candidates.values()
        for sentence in idle_settings(candidate.spec)
        if any(setting in sentence for setting in candidate.values)
    )
    page = compare_page(
        comparison.folder, comparison.spec, comparison.ranked(), winner, is_whole=is_whole, hints=tuple(hints)
    )
    write_study_pages(page, comparison.folder)
    return page
