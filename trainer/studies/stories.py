"""What a child run has told so far: its `events.jsonl`, followed line by line and summed up."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from trainer.protocol.events import (
    BaseValidated,
    EpochEnded,
    Event,
    Failed,
    Finished,
    LastWord,
    Started,
    Stopped,
    StoppedEarly,
    Tested,
    parse_event,
)

EVENTS_FILE = "events.jsonl"


@dataclass(kw_only=True)
class Story:
    """One child run; `follow` reads on."""

    job_dir: Path
    started: Started | None = None
    base: BaseValidated | None = None
    epochs: list[EpochEnded] = field(default_factory=list)
    stopped_early: StoppedEarly | None = None
    test: Tested | None = None
    #: None while it runs, or if it died.
    last_word: LastWord | None = None
    _offset: int = 0

    def follow(self) -> list[Event]:
        """The events since the last call; a line that is not complete yet is left for the next one.

        What is no event is passed over, as the trainer does that goes on from there.
        """
        try:
            with (self.job_dir / EVENTS_FILE).open("rb") as file:
                file.seek(self._offset)
                fresh = file.read()
        except FileNotFoundError:
            return []
        complete = fresh[: fresh.rfind(b"\n") + 1]
        self._offset += len(complete)
        events = [event for line in complete.splitlines() if (event := event_of(line)) is not None]
        for event in events:
            self._take(event)
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
    def best(self) -> EpochEnded | None:
        """Its best epoch so far, as the trainer sees it; None before the first."""
        return self.best_until(self.last_epoch)

    def best_until(self, epoch: int) -> EpochEnded | None:
        """Its best epoch, had it ended after `epoch`; None before the first."""
        known = [one for one in self.epochs if one.epoch <= epoch]
        return next((one for one in known if one.epoch == known[-1].best_epoch), None)

    def _take(self, event: Event) -> None:
        self.last_word = event if isinstance(event, Finished | Stopped | Failed) else None
        match event:
            case Started():
                self.started = event
            case BaseValidated():
                self.base = event
            case EpochEnded():
                self.epochs.append(event)
            case StoppedEarly():
                self.stopped_early = event
            case Tested():
                self.test = event


def event_of(line: bytes) -> Event | None:
    """The event of a line; None where it is none of this version."""
    try:
        return parse_event(line)
    except ValidationError:
        return None


def read_story(job_dir: Path) -> Story:
    """What the child of a folder has told so far; empty if it was never started."""
    story = Story(job_dir=job_dir)
    story.follow()
    return story
