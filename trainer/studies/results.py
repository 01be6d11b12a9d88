"""What a study hands back to the command that ran it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from trainer.protocol.study import ChildState, StudyRow
from trainer.report.study import StudyPage
from trainer.studies.children import End, Outcome, Runs
from trainer.studies.state import Study

#: The runner of a study's children, once the study's folder is held.
MakeChildren: TypeAlias = Callable[[Study], Runs]


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """How a study ended, and what it found."""

    end: End
    page: StudyPage
    rows: tuple[StudyRow, ...]
    #: Folder of the run that the study was for, in the study's own; None before it has finished.
    result: str | None = None


_STATES = {
    End.FINISHED: ChildState.FINISHED,
    End.REACHED: ChildState.WAITING,
    End.FAILED: ChildState.FAILED,
    End.HALTED: ChildState.HALTED,
    End.OPEN: ChildState.OPEN,
}


def study_row(name: str, folder: str, outcome: Outcome, *, label: str = "", is_ended_early: bool = False) -> StudyRow:
    """How a child stands, for a card."""
    best, test = outcome.story.best, outcome.story.test
    return StudyRow(
        name=name,
        folder=folder,
        label=label,
        state=ChildState.ENDED_EARLY if is_ended_early else _STATES[outcome.end],
        epochs=outcome.story.last_epoch,
        ratio=best.validation.ratio if best else None,
        test_ratio=test.test.ratio if test else None,
    )
