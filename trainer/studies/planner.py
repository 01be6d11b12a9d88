"""Plans a study step by step: decides what can be decided, and lists the children that must run next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from trainer.protocol.spec import Spec
from trainer.protocol.study import CompareRequest, EndedChild, KfoldRequest, StudyRequest, StudyStep
from trainer.studies.comparison import ComparisonPlanner
from trainer.studies.cross_validation import KfoldPlanner
from trainer.studies.study_folder import StudyFolder

Planner: TypeAlias = KfoldPlanner | ComparisonPlanner


def planner_for(spec: Spec, request: StudyRequest) -> Planner:
    """Return the planner of a study; a request that cannot be run is refused here, before anything is written.

    Raises:
        UsageError: a candidate cannot be trained; the sentence names each of them.
        DatasetError: the dataset is not prepared, or has fewer different images than folds.
        SpecError: the job's settings contradict those of a fold.
    """
    match request:
        case KfoldRequest():
            return KfoldPlanner(spec, request)
        case CompareRequest():
            return ComparisonPlanner(spec, request)


def study_folder(job_dir: Path, planner: Planner) -> StudyFolder:
    """Return the folder of a planner's study, to be entered."""
    return StudyFolder(job_dir, planner.kind, planner.plan, planner.spec)


def advance(job_dir: Path, spec: Spec, request: StudyRequest, ended: Sequence[EndedChild] = ()) -> StudyStep:
    """Take a study one step further, for a queue that runs its children; `ended` are those that will not run again.

    Raises:
        JobFolderBusyError: another process is working on it.
        UsageError: the folder holds another study; and what `planner_for` raises.
    """
    planner = planner_for(spec, request)
    with study_folder(job_dir, planner) as folder:
        return planner.advance(folder, {child.name: child for child in ended})
