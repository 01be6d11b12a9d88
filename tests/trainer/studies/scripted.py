"""A queue that runs a study's children in this process, by a script: what drives `trainer study` in its tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.studies.fake_trainer import begin, end_epoch, finish
from tests.trainer.studies.studying import make_study
from trainer.__main__ import main
from trainer.protocol.events import EpochEnded, Failed, FailureKind, Stopped
from trainer.protocol.spec import read_spec
from trainer.protocol.study import (
    ChildEnd,
    ChildGoal,
    GivenUp,
    StudyStep,
    make_study_order,
    write_study_ended,
    write_study_order,
)
from trainer.reporter import Reporter

#: Best of these is 3e-4; 2.9e-4 is next to it.
RATES = "training.learning_rate=1e-4,2.9e-4,3e-4,1e-3"


def order_study(folder: Path, kind: str, **order: Any) -> Path:
    """The job folder of a study, as a bot would write it."""
    make_study(folder)
    job = folder / "job"
    write_study_order(job, make_study_order({"kind": kind, **order}))
    return job


class Queue:
    """Runs what each step asks for, one child after another, until the study is over."""

    def __init__(self, job: Path, capsys: pytest.CaptureFixture[str], *, failing: tuple[str, ...] = ()) -> None:
        self.job = job
        self._capsys = capsys
        self._failing = failing
        self._ended: dict[str, ChildEnd] = {}
        #: Every child that was started, with how far it was to go.
        self.started: list[tuple[str, int | None]] = []

    def step(self) -> StudyStep:
        self._capsys.readouterr()
        assert main(["study", str(self.job)]) == 0, self._capsys.readouterr().err
        return StudyStep.model_validate_json(self._capsys.readouterr().out.splitlines()[-1])

    def end(self, name: str, end: GivenUp, reason: str = "") -> None:
        self._ended[name] = ChildEnd(name=name, end=end, reason=reason)
        write_study_ended(self.job, list(self._ended.values()))

    def run(self, goal: ChildGoal) -> None:
        """A start of a child until its goal, or until it fails and is given up."""
        self.started.append((goal.name, goal.until_epoch))
        if goal.name in self._failing:
            fail(self.job / goal.folder)
            self.end(goal.name, GivenUp.FAILED)
        else:
            train(self.job / goal.folder, goal.until_epoch)

    def run_all(self, between: Callable[[], None] = lambda: None) -> StudyStep:
        """To the end; `between` is called before each step. Only the first child of a step runs before the next."""
        between()
        while not (step := self.step()).is_over:
            self.run(step.goals[0])
            between()
        return step


def train(job_dir: Path, until_epoch: int | None) -> None:
    """What a trainer does that is stopped after an epoch, or finishes."""
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
            reporter.say(Stopped, epoch=last, step=10 * last, checkpoint="checkpoints/x")


def fail(job_dir: Path) -> None:
    """What a trainer says that cannot go on."""
    with Reporter(job_dir) as reporter:
        reporter.say(Failed, kind=FailureKind.OUT_OF_MEMORY, message="The device is full.", hint="Take less.")
