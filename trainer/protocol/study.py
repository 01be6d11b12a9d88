"""A study (k-fold, comparison) whose runs are jobs of somebody else's queue: what is asked for, and what comes next.

Whoever runs the queue writes `study_order.json` beside the parent's `spec.json` and calls `python -m trainer study
JOB_DIR`, again whenever something happened to a child. The answer, a `StudyStep` on one line, says which children must
run now; their folders, `spec.json` in each, are made by then. Everything else is read from the children's own events:
a call may come at any time, twice, or after a crash, and says the same as long as nothing new happened.

Three promises of the caller:

- A child is run by `trainer run` in its folder like any other job, in whatever slot is free.
- One with `until_epoch` is stopped (SIGTERM) once its `epoch_ended` of that epoch was said. It says `stopped` and keeps
  its checkpoint; it runs on later if a further step asks for more. A later epoch than asked for harms nothing.
- What its events cannot tell stands in `study_ended.json`, complete at each call: who was given up, who was halted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field, ValidationError

from trainer.protocol.frozen import Frozen
from trainer.protocol.spec_errors import sentences

ORDER_FILE, ENDED_FILE = "study_order.json", "study_ended.json"
STUDY_VERSION: Literal[1] = 1


class StudyOrderError(ValueError):
    """A study that cannot be run; the message is a sentence for a person."""


class KfoldOrder(Frozen):
    """Cross-validation: a run for each fold, then one on all pictures."""

    version: Literal[1] = STUDY_VERSION
    kind: Literal["kfold"] = "kfold"
    folds: int = Field(default=5, ge=2, le=20)


class CompareOrder(Frozen):
    """Comparison: a run for each combination of values, the worse ended early, the best tested and exported."""

    version: Literal[1] = STUDY_VERSION
    kind: Literal["compare"] = "compare"
    #: Settings and the values to try, such as `training.learning_rate=1e-4,3e-4`; several make a grid.
    vary: tuple[str, ...] = Field(min_length=1, max_length=8)
    #: One in so many goes on at each look; None: nobody is ended early.
    keep_one_in: int | None = Field(default=2, ge=2, le=64)
    #: Nobody is ended before this epoch; None: a fifth of the epochs.
    first_look: int | None = Field(default=None, ge=2, le=1000)
    #: Test and export the winner too.
    finishes: bool = True


StudyOrder: TypeAlias = KfoldOrder | CompareOrder


def make_study_order(content: Any) -> StudyOrder:
    """An order from its fields, `kind` among them.

    Raises:
        StudyOrderError: one sentence for each problem, with the nearest known name or the allowed range.
    """
    kinds: dict[str, type[StudyOrder]] = {"kfold": KfoldOrder, "compare": CompareOrder}
    kind = content.get("kind") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise StudyOrderError(f"A study is of kind {' or '.join(kinds)}, not {kind!r}.")
    model = kinds[kind]
    try:
        return model.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise StudyOrderError(" ".join(sentences(error, model))) from error


def write_study_order(job_dir: Path, order: StudyOrder) -> None:
    """Write `study_order.json` by rename; `spec.json` stands beside it."""
    _write(job_dir / ORDER_FILE, order)


def read_study_order(job_dir: Path) -> StudyOrder:
    """The study of a job folder.

    Raises:
        StudyOrderError: there is none, or it cannot be run.
    """
    path = job_dir / ORDER_FILE
    try:
        return make_study_order(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise StudyOrderError(f"{job_dir} has no {ORDER_FILE}, so it is no study.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StudyOrderError(f"{path} is not JSON ({error}).") from error


class GivenUp(StrEnum):
    """What the caller made of a child that has not finished."""

    #: No more retries, or a person took it out: the study goes on without it.
    FAILED = "failed"
    #: The study is to end with what is known; the child could run on.
    HALTED = "halted"


class ChildEnd(Frozen):
    """A child that the caller will not run any more, whatever its last word was."""

    name: str
    end: GivenUp
    #: One sentence for the results; empty: what the child's own last word says.
    reason: str = ""


class _Ended(Frozen):
    version: Literal[1] = STUDY_VERSION
    children: tuple[ChildEnd, ...] = ()


def write_study_ended(job_dir: Path, children: Sequence[ChildEnd]) -> None:
    """Write `study_ended.json` by rename: all that are given up as of now. One that is retried stands there no more."""
    _write(job_dir / ENDED_FILE, _Ended(children=tuple(children)))


def read_study_ended(job_dir: Path) -> tuple[ChildEnd, ...]:
    """Who was given up; nobody where nothing was written.

    Raises:
        StudyOrderError: the file cannot be read.
    """
    path = job_dir / ENDED_FILE
    try:
        return _Ended.model_validate_json(path.read_bytes()).children
    except FileNotFoundError:
        return ()
    except ValidationError as error:
        raise StudyOrderError(f"{path} does not say which runs were given up: {error.errors()[0]['msg']}.") from error


class ChildGoal(Frozen):
    """A child that must run now."""

    name: str
    #: Holds its `spec.json`; relative to the study's job folder.
    folder: str
    #: Stop it once it has ended this epoch; None: let it finish.
    until_epoch: int | None = None


class ChildState(StrEnum):
    """Where a child stands, as the study sees it."""

    #: Has a goal.
    OPEN = "open"
    #: Has come as far as the others must come first.
    WAITING = "waiting"
    FINISHED = "finished"
    #: The comparison ended it for good; it has no goal any more.
    ENDED_EARLY = "ended_early"
    FAILED = "failed"
    HALTED = "halted"


class StudyRow(Frozen):
    """One child, for a card."""

    name: str
    folder: str
    #: What it is tried with: `learning_rate 0.0003, rank 8`; empty for a fold.
    label: str = ""
    state: ChildState
    #: Epochs that it has ended.
    epochs: int
    #: Best validation loss so far over the base's; None before the first epoch.
    ratio: float | None = None
    #: Its loss on the test pictures over the base's; None for all but the last run.
    test_ratio: float | None = None


class StudyStep(Frozen):
    """What a study needs next, and how it stands. Paths are relative to its job folder."""

    version: Literal[1] = STUDY_VERSION
    #: Children that must run now; none where it is over.
    goals: tuple[ChildGoal, ...] = ()
    is_over: bool = False
    #: It is over and nothing usable came out: each run failed, or the last one did.
    has_failed: bool = False
    #: What was found out so far, a sentence each, the most important first.
    verdict: tuple[str, ...] = ()
    #: Every child that was begun, the best first in a comparison, the final run last.
    table: tuple[StudyRow, ...] = ()
    #: The results as a page (HTML) and as text (Markdown), with everything known so far.
    page: str
    report: str
    #: All curves in one picture (PNG); None before the first epoch.
    chart: str | None = None
    chart_alt: str = ""
    #: Folder of the run whose `output/` is the study's result; None before it has finished, and where there is none.
    result: str | None = None


def _write(path: Path, content: Frozen) -> None:
    part = path.with_suffix(".json.part")
    part.write_text(content.model_dump_json(indent=1) + "\n", encoding="utf-8")
    part.replace(path)
