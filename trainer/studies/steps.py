"""One step of a study whose children somebody else runs: as far as it can go, and what it needs to go on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer.protocol.spec import Spec
from trainer.protocol.study import ChildEnd, ChildGoal, CompareOrder, KfoldOrder, StudyOrder, StudyStep
from trainer.report.study import HTML_NAME, MARKDOWN_NAME
from trainer.studies.children import End
from trainer.studies.compare import Halving, first_look, run_compare
from trainer.studies.grid import candidates, parse_axis
from trainer.studies.kfold import run_kfold
from trainer.studies.replay import Replay
from trainer.studies.results import StudyResult


def advance(folder: Path, spec: Spec, order: StudyOrder, ended: Sequence[ChildEnd] = ()) -> StudyStep:
    """Decide all that can be decided, and make the folders of those that must run next.

    Raises:
        JobFolderBusyError: another process is at it.
        UsageError: a candidate cannot be trained with (each is named), or the folder holds another study.
        DatasetError: the dataset is none, or has too few different pictures.
        SpecError: the job's settings contradict those of a run.
    """
    replay = Replay(ended)
    result = _run(folder, spec, order, replay)
    return StudyStep(
        goals=tuple(
            ChildGoal(name=goal.name, folder=goal.job_dir.relative_to(folder).as_posix(), until_epoch=goal.until_epoch)
            for goal in replay.open
        ),
        is_over=result.end is not End.OPEN,
        has_failed=result.end is End.FAILED,
        verdict=result.page.verdict,
        table=result.rows,
        page=HTML_NAME,
        report=MARKDOWN_NAME,
        chart=result.page.chart,
        chart_alt=result.page.chart_alt if result.page.chart else "",
        result=result.result,
    )


def _run(folder: Path, spec: Spec, order: StudyOrder, replay: Replay) -> StudyResult:
    match order:
        case KfoldOrder():
            return run_kfold(folder, spec, order.folds, lambda study: replay)
        case CompareOrder():
            return run_compare(
                folder,
                spec,
                candidates(spec, [parse_axis(text) for text in order.vary]),
                Halving(first_epoch=order.first_look or first_look(spec), keep_one_in=order.keep_one_in),
                lambda study: replay,
                finishes=order.finishes,
            )
