"""What a study hands back to the command that ran it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from trainer.report.study import StudyPage
from trainer.studies.children import Children, End
from trainer.studies.state import Study

#: The runner of a study's children, once the study's folder is held.
MakeChildren: TypeAlias = Callable[[Study], Children]


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """How a study ended, and what it found."""

    end: End
    page: StudyPage
