"""A queue that runs a study's children in this process: it drives the planner in tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.trainer.studies.fake_trainer import begin, end_epoch, finish
from tests.trainer.studies.study_helpers import make_study
from trainer.exchange.job_dir import read_spec
from trainer.exchange.study_dir import read_study_ended, read_study_request, write_study_ended, write_study_request
from trainer.protocol.events import EpochEnded, Failed, FailureKind, Stopped
from trainer.protocol.study import (
    ChildGoal,
    ChildOutcome,
    ChildState,
    EndedChild,
    StudyStep,
    make_study_request,
)
from trainer.reporter import Reporter
from trainer.studies.planner import advance

Goals = list[tuple[str, int | None]]


def request_study(folder: Path, kind: str, *, settings: dict[str, Any] | None = None, **request: Any) -> Path:
    """Make the job folder of a study, as a bot would write it."""
    make_study(folder, **(settings or {}))
    job = folder / "job"
    write_study_request(job, make_study_request({"kind": kind, **request}))
    return job


class FakeQueue:
    """Runs the goals of each step, one child after another, until the study is over."""

    def __init__(self, job: Path, *, failing: tuple[str, ...] = ()) -> None:
        self.job = job
        self.failing = failing
        #: Every child that was started, with its goal.
        self.started: Goals = []
        self._ended: dict[str, EndedChild] = {}

    def step(self) -> StudyStep:
        """Take the study one step further."""
        ended = read_study_ended(self.job)
        return advance(self.job, read_spec(self.job), read_study_request(self.job), ended)

    def end(self, name: str, outcome: ChildOutcome, reason: str = "") -> None:
        """Record a child that will not run again."""
        self._ended[name] = EndedChild(name=name, outcome=outcome, reason=reason)
        write_study_ended(self.job, list(self._ended.values()))

    def run(self, *goals: ChildGoal) -> None:
        """Start children until they reach their goals, or fail for good."""
        for goal in goals:
            self.started.append((goal.name, goal.until_epoch))
            if goal.name in self.failing:
                fail(self.job / goal.folder)
                self.end(goal.name, ChildOutcome.FAILED)
            else:
                train(self.job / goal.folder, goal.until_epoch)

    def run_all(self, between: Callable[[], None] = lambda: None) -> StudyStep:
        """Run to the end, one child between two steps; `between` is called before each step."""
        between()
        while not (step := self.step()).is_over:
            self.run(step.goals[0])
            between()
        return step


def goals_of(step: StudyStep) -> Goals:
    """Return the names of the children that must run, and until which epoch."""
    return [(goal.name, goal.until_epoch) for goal in step.goals]


def states_of(step: StudyStep) -> dict[str, ChildState]:
    """Return the state of each child."""
    return {row.name: row.state for row in step.table}


def train(job_dir: Path, until_epoch: int | None) -> None:
    """Do what a trainer does that finishes, or is stopped after an epoch."""
    spec = read_spec(job_dir)
    with Reporter(job_dir) as reporter:
        done = sum(isinstance(event, EpochEnded) for event in reporter.history)
        begin(reporter, spec, done)
        last = spec.training.epochs if until_epoch is None else until_epoch
        for epoch in range(done + 1, last + 1):
            end_epoch(reporter, spec, epoch)
        if until_epoch is None:
            finish(reporter, spec)
        else:
            reporter.emit(Stopped, epoch=last, step=10 * last, checkpoint="checkpoints/x")


def fail(job_dir: Path) -> None:
    """Do what a trainer does that cannot go on."""
    with Reporter(job_dir) as reporter:
        reporter.emit(Failed, kind=FailureKind.OUT_OF_MEMORY, message="The device is full.", hint="Take less.")
