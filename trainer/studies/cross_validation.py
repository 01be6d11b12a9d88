"""k-fold cross-validation: a run for each fold, then one on all images for the mean best number of epochs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from trainer.dataset.split.group_split import check_folds
from trainer.protocol.spec import Spec
from trainer.protocol.study import ChildGoal, ChildState, EndedChild, KfoldRequest, StudyStep
from trainer.protocol.text import ngettext
from trainer.studies.child_specs import final_spec, fold_spec
from trainer.studies.fold_summary import summarize_folds
from trainer.studies.results_page import kfold_page, make_step
from trainer.studies.run_history import Child, read_child, read_history
from trainer.studies.run_samples import final_run_samples
from trainer.studies.study_folder import StudyFolder, StudyKind, dataset_report

FOLDS_FOLDER, FINAL_FOLDER = "folds", "final"


class KfoldPlanner:
    """Plans a cross-validation.

    Raises:
        DatasetError: the dataset is not prepared, or has fewer different images than folds.
        SpecError: the job's settings contradict those of a fold.
    """

    kind: ClassVar = StudyKind.KFOLD

    def __init__(self, spec: Spec, request: KfoldRequest) -> None:
        check_folds(dataset_report(spec).images, request.folds)
        self.spec = spec
        self._specs = {fold: fold_spec(spec, fold, request.folds) for fold in range(1, request.folds + 1)}

    @property
    def plan(self) -> str:
        """The request in words."""
        return ngettext("{n} fold", "{n} folds", len(self._specs))

    def advance(self, folder: StudyFolder, ended: Mapping[str, EndedChild]) -> StudyStep:
        """Make the folders of the runs that come next, write the results so far, and return what must run now."""
        folds = []
        for fold, spec in self._specs.items():
            goal = ChildGoal(name=f"fold {fold}", folder=f"{FOLDS_FOLDER}/{fold}")
            folder.add_child(goal.folder, spec)
            folds.append(read_child(folder.path, goal, ended))
        is_measured = not any(child.is_pending for child in folds)
        planned = self.spec.training.epochs
        summary = summarize_folds([fold.history for fold in folds if fold.state is not ChildState.FAILED], planned)
        goal = ChildGoal(name=FINAL_FOLDER, folder=FINAL_FOLDER)
        final: Child | None = None
        if is_measured and summary is not None:
            folder.add_child(goal.folder, final_spec(self.spec, summary.final_epochs))
            final = read_child(folder.path, goal, ended)
        elif (folder.path / FINAL_FOLDER).exists():
            # A fold gets another try after the final run has begun.
            final = Child(goal=goal, history=read_history(folder.path / FINAL_FOLDER), state=ChildState.HALTED)
        children = [*folds, *([final] if final else [])]
        page = kfold_page(self.spec, folds, summary, final)
        return make_step(
            folder.path,
            replace(page, samples=final_run_samples(folder.path, self.spec, final)),
            [child.row() for child in children],
            goals=[child.goal for child in children if child.state is ChildState.OPEN],
            has_failed=is_measured and (summary is None or final is None or final.state is ChildState.FAILED),
            result=FINAL_FOLDER if final is not None and final.state is ChildState.FINISHED else None,
        )
