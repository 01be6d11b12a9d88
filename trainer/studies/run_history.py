"""The events of a child run, summed up, and the child's state that follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from trainer.exchange.event_file import read_events
from trainer.exchange.job_dir import sample_folder
from trainer.protocol.events import (
    BaseValidated,
    EpochEnded,
    Event,
    Failed,
    Finished,
    Sampled,
    Started,
    Stopped,
    StoppedEarly,
    TerminalEvent,
    Tested,
)
from trainer.protocol.study import ChildGoal, ChildOutcome, ChildState, EndedChild, StudyRow
from trainer.protocol.text import _


@dataclass(kw_only=True)
class RunHistory:
    """What one run has emitted so far; `follow` reads the events that are new."""

    job_dir: Path
    started: Started | None = None
    base: BaseValidated | None = None
    #: The newest samples, epoch 0 for the base model's.
    sampled: Sampled | None = None
    epochs: list[EpochEnded] = field(default_factory=list)
    stopped_early: StoppedEarly | None = None
    test: Tested | None = None
    #: None while the run goes on, and if its process died.
    terminal_event: TerminalEvent | None = None
    _offset: int = 0

    def follow(self) -> list[Event]:
        """Read and return the events since the last call."""
        events: list[Event] = []
        while True:
            read = read_events(self.job_dir, self._offset)
            if read.end == self._offset:
                break
            self._offset = read.end
            events += [line.event for line in read.lines]
        for event in events:
            self._apply(event)
        return events

    @property
    def last_epoch(self) -> int:
        """The last epoch that is validated and kept; 0 before the first."""
        return self.epochs[-1].epoch if self.epochs else 0

    @property
    def seconds(self) -> float:
        """Seconds of work in all epochs."""
        return sum(epoch.seconds for epoch in self.epochs)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Validation loss over the base model's, for each epoch."""
        return tuple(epoch.validation.ratio for epoch in self.epochs)

    @property
    def best(self) -> EpochEnded | None:
        """The best epoch so far, as the trainer chose it; None before the first."""
        return self.best_until(self.last_epoch)

    def best_until(self, epoch: int) -> EpochEnded | None:
        """The best epoch if the run had ended after `epoch`; None before the first."""
        known = [each for each in self.epochs if each.epoch <= epoch]
        return next((each for each in known if each.epoch == known[-1].best_epoch), None)

    def samples_at(self, epoch: int) -> dict[tuple[str, int], Path]:
        """The files of an epoch's samples, 0 for the base model, by prompt and seed; they may not exist.

        Those of the best epoch may be drawn at the end of the run, without an event. They have the same names.
        """
        folder = sample_folder(self.job_dir, epoch)
        samples = self.sampled.samples if self.sampled is not None else ()
        return {(each.prompt, each.seed): folder / PurePosixPath(each.path).name for each in samples}

    def _apply(self, event: Event) -> None:
        self.terminal_event = event if isinstance(event, Finished | Stopped | Failed) else None
        match event:
            case Started():
                self.started = event
            case BaseValidated():
                self.base = event
            case Sampled():
                self.sampled = event
            case EpochEnded():
                self.epochs.append(event)
            case StoppedEarly():
                self.stopped_early = event
            case Tested():
                self.test = event


def read_history(job_dir: Path) -> RunHistory:
    """Read all events of a run; empty if it was never started."""
    history = RunHistory(job_dir=job_dir)
    history.follow()
    return history


@dataclass(frozen=True, kw_only=True)
class Child:
    """A child run with its state in the study."""

    goal: ChildGoal
    history: RunHistory
    state: ChildState
    #: Why it failed, as a sentence.
    reason: str = ""

    @property
    def is_pending(self) -> bool:
        """True if the study cannot decide anything that depends on this child yet."""
        return self.state in {ChildState.OPEN, ChildState.HALTED}

    @property
    def ratio(self) -> float | None:
        """Best validation loss over the base model's; None before the first epoch."""
        best = self.history.best
        return best.validation.ratio if best else None

    def row(self, label: str = "") -> StudyRow:
        """Return the row of this child for a card."""
        test = self.history.test
        return StudyRow(
            name=self.goal.name,
            folder=self.goal.folder,
            label=label,
            state=self.state,
            epochs=self.history.last_epoch,
            ratio=self.ratio,
            test_ratio=test.test.ratio if test else None,
        )


def read_child(study_dir: Path, goal: ChildGoal, ended: Mapping[str, EndedChild]) -> Child:
    """Read a child's events and derive its state; see `child_of`."""
    return child_of(goal, read_history(study_dir / goal.folder), ended)


def child_of(goal: ChildGoal, history: RunHistory, ended: Mapping[str, EndedChild]) -> Child:
    """Derive the state of a child from its events and from the children that will not run again.

    A `failed` event alone does not make a child failed: the queue may retry it, with a smaller micro-batch for example.
    It has failed once the queue lists it in `ended`.
    """
    end = ended.get(goal.name)
    reason = ""
    if isinstance(history.terminal_event, Finished):
        state = ChildState.FINISHED
    elif end is not None and end.outcome is ChildOutcome.FAILED:
        state, reason = ChildState.FAILED, end.reason or failure_reason(history)
    elif goal.until_epoch is not None and history.last_epoch >= goal.until_epoch:
        state = ChildState.WAITING
    else:
        state = ChildState.OPEN if end is None else ChildState.HALTED
    return Child(goal=goal, history=history, state=state, reason=reason)


def failure_reason(history: RunHistory) -> str:
    """Return why a run failed, in the trainer's words if it had any."""
    failed = history.terminal_event
    return f"{failed.message} {failed.hint}" if isinstance(failed, Failed) else _("Its process ended without an error.")
