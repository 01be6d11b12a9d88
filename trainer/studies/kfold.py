"""k-fold cross-validation: a run for each fold, then one on all pictures, as long as the folds were best on average."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trainer.dataset.split.folds import assign_folds
from trainer.errors import DatasetError
from trainer.protocol.report import read_report
from trainer.protocol.spec import Spec
from trainer.report.study import write_study_pages
from trainer.studies.children import End, Goal, Outcome, unfinished
from trainer.studies.fold_summary import summarize_folds
from trainer.studies.kfold_page import kfold_page
from trainer.studies.plans import final_spec, fold_spec
from trainer.studies.results import MakeChildren, StudyResult, study_row
from trainer.studies.state import Study, StudyKind
from trainer.studies.stories import read_story

FOLDS_FOLDER, FINAL_FOLDER = "folds", "final"


def check_folds(spec: Spec, folds: int) -> None:
    """Raises: DatasetError: the dataset is none, or has fewer different pictures than folds."""
    try:
        report = read_report(Path(spec.dataset))
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{spec.dataset} is not a prepared dataset.", "Make it with `python -m trainer prepare`."
        ) from error
    assign_folds(report.images, folds, report.split_seed)


def run_kfold(folder: Path, spec: Spec, folds: int, make_children: MakeChildren) -> StudyResult:
    """Run the study of a job folder, or go on with it; `results.md` and `.html` tell of it whenever it ends.

    Raises:
        JobFolderBusyError: another process runs a study there.
        UsageError: the folder holds another study.
        DatasetError: too few different pictures.
        SpecError: the job's settings contradict those of a fold.
    """
    check_folds(spec, folds)
    specs = {fold: fold_spec(spec, fold, folds) for fold in range(1, folds + 1)}
    with Study(folder, StudyKind.KFOLD, f"{folds} folds", spec) as study:
        children = make_children(study)
        goals = [_goal(folder / FOLDS_FOLDER / str(fold), f"fold {fold}", one) for fold, one in specs.items()]
        outcomes = children.run(goals)
        if (end := unfinished(outcomes.values())) is not None:
            return _write(folder, spec, outcomes, None, end)
        good = [outcome.story for outcome in outcomes.values() if outcome.end is End.FINISHED]
        summary = summarize_folds(good, spec.training.epochs)
        if summary is None:
            return _write(folder, spec, outcomes, None, End.FAILED)
        _write(folder, spec, outcomes, None, End.REACHED)
        final = _goal(folder / FINAL_FOLDER, FINAL_FOLDER, final_spec(spec, summary.final_epochs))
        ended = children.run([final])[FINAL_FOLDER]
        return _write(folder, spec, outcomes, ended, ended.end)


def _goal(job_dir: Path, name: str, spec: Spec) -> Goal:
    if not (job_dir / "spec.json").exists():
        spec.write(job_dir)
    return Goal(name=name, job_dir=job_dir)


def _write(folder: Path, spec: Spec, outcomes: Mapping[str, Outcome], final: Outcome | None, end: End) -> StudyResult:
    if final is None and (folder / FINAL_FOLDER).exists():
        final = Outcome(end=End.HALTED, story=read_story(folder / FINAL_FOLDER))
    page = kfold_page(folder, spec, outcomes, final)
    write_study_pages(page, folder)
    rows = [
        study_row(name, outcome.story.job_dir.relative_to(folder).as_posix(), outcome)
        for name, outcome in {**outcomes, **({FINAL_FOLDER: final} if final else {})}.items()
    ]
    is_done = final is not None and final.end is End.FINISHED
    return StudyResult(end=end, page=page, rows=tuple(rows), result=FINAL_FOLDER if is_done else None)
