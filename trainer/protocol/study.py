"""What a study (cross-validation or comparison) is asked for, and what it needs next from the queue that runs it.

The queue writes `study_request.json` beside the parent's `spec.json` and calls `python -m trainer study JOB_DIR` after
each change of a child. The answer, a `StudyStep` on one line, lists the children that must run now; by then their
folders exist, with a `spec.json` in each. All other state is read from the children's own events, so a call may come at
any time, twice, or after a crash, and gives the same answer as long as nothing new has happened.

The queue promises three things:

- It runs a child by `trainer run` in its folder like any other job, in any free slot.
- It stops a child with `until_epoch` (SIGTERM) after the `epoch_ended` event of that epoch. The child then emits
  `stopped` and keeps its checkpoint; a later step may ask it to go further. Stopping later than asked does no harm.
- `study_ended.json` is complete at each call: it lists the children that failed for good or were halted, which their
  events cannot tell.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any, Literal, TypeAlias

from pydantic import Field, ValidationError

from trainer.protocol.frozen import Frozen, RelativePath
from trainer.protocol.setting_problems import problem_sentences
from trainer.protocol.text import _

STUDY_VERSION: Literal[1] = 1


class StudyRequestError(ValueError):
    """A study that cannot be run; the message is a sentence for the user."""


class KfoldRequest(Frozen):
    """Cross-validation: a run for each fold, then one on all images."""

    version: Literal[1] = STUDY_VERSION
    kind: Literal["kfold"] = "kfold"
    folds: int = Field(default=5, ge=2, le=20)


class CompareRequest(Frozen):
    """Comparison: a run for each combination of values; the worse end early, the best is tested and exported."""

    version: Literal[1] = STUDY_VERSION
    kind: Literal["compare"] = "compare"
    #: Settings and the values to try, such as `training.learning_rate=1e-4,3e-4`; several make a grid.
    vary: tuple[str, ...] = Field(min_length=1, max_length=8)
    #: Keep one in this many candidates at each rung; None: end none early.
    keep_one_in: int | None = Field(default=2, ge=2, le=64)
    #: End none before this epoch; None: a fifth of the epochs.
    first_look: int | None = Field(default=None, ge=2, le=1000)
    #: Test and export the winner too.
    finishes: bool = True


StudyRequest: TypeAlias = KfoldRequest | CompareRequest


def make_study_request(content: Any) -> StudyRequest:
    """Validate a request that is given as a mapping; its `kind` chooses the model.

    Raises:
        StudyRequestError: one sentence for each problem, with the nearest known name or the allowed range.
    """
    kinds: dict[str, type[StudyRequest]] = {"kfold": KfoldRequest, "compare": CompareRequest}
    kind = content.get("kind") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise StudyRequestError(_("A study is of kind {kinds}, not {kind!r}.", kinds=" or ".join(kinds), kind=kind))
    model = kinds[kind]
    try:
        return model.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise StudyRequestError(" ".join(problem_sentences(error, model))) from error


class ChildOutcome(StrEnum):
    """Why the queue no longer runs a child that has not finished."""

    #: Out of retries, or cancelled by a user: the study continues without it.
    FAILED = "failed"
    #: The study ends with the results so far; the child could continue.
    HALTED = "halted"


class EndedChild(Frozen):
    """A child that the queue will not run again, whatever its last event was."""

    name: str
    outcome: ChildOutcome
    #: One sentence for the results; empty: take it from the child's terminal event.
    reason: str = ""


class ChildGoal(Frozen):
    """A child that must run now."""

    name: str
    #: Holds its `spec.json`; relative to the study's job folder.
    folder: RelativePath
    #: Stop it after this epoch; None: let it finish.
    until_epoch: int | None = None


class ChildState(StrEnum):
    """State of a child as the study sees it."""

    #: Must run to reach its goal.
    OPEN = "open"
    #: Has reached its goal and waits for the others.
    WAITING = "waiting"
    FINISHED = "finished"
    #: Ended for good by the comparison.
    ENDED_EARLY = "ended_early"
    FAILED = "failed"
    HALTED = "halted"


class StudyRow(Frozen):
    """One child, for a card."""

    name: str
    folder: RelativePath
    #: The values that it tries, such as `learning rate 0.0003, rank 8`; empty for a fold.
    label: str = ""
    state: ChildState
    #: Completed epochs.
    epochs: int
    #: Best validation loss so far, divided by the base model's; None before the first epoch.
    ratio: float | None = None
    #: Loss on the test images, divided by the base model's; None for all but the last run.
    test_ratio: float | None = None


class StudyStep(Frozen):
    """What a study needs next, and its results so far. Paths are relative to its job folder."""

    version: Literal[1] = STUDY_VERSION
    #: Children that must run now; empty once the study is over.
    goals: tuple[ChildGoal, ...] = ()
    is_over: bool = False
    #: The study is over without a usable result: every run failed, or the last one did.
    has_failed: bool = False
    #: The findings so far, one sentence each, the most important first.
    verdict: tuple[str, ...] = ()
    #: Every child that has been created: in a comparison the best first, the final run last.
    table: tuple[StudyRow, ...] = ()
    #: The results as a page (HTML) and as text (Markdown).
    page: RelativePath
    report: RelativePath
    #: All curves in one image (PNG); None before the first epoch.
    chart: RelativePath | None = None
    chart_alt: str = ""
    #: Samples of the runs beside each other, the best first (PNG); None before the first of them has finished.
    samples: RelativePath | None = None
    samples_alt: str = ""
    #: How to read them, and which runs are not among them, one sentence each.
    samples_notes: tuple[str, ...] = ()
    #: Folder of the run whose `output/` is the study's result; None until it has finished.
    result: RelativePath | None = None
