"""Trainings as child processes: so many at once, on a device each, followed by their events, stopped without loss.

As the bot does, a study knows a training by its folder alone: `spec.json` goes in, `events.jsonl` comes out, SIGTERM
stops it at a checkpoint. A child outlives the study's own death; the next study takes it over (`process.json`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from trainer.protocol.events import EXIT_BUSY, Event, Failed, Finished
from trainer.protocol.process import ProcessIdentity, identify, read_process_file
from trainer.studies.stories import Story

LOG_FILE = "trainer.log"
POLL_S = 0.1
#: Starts without a finished epoch in between, after which a child is given up.
MAX_STARTS = 3


class Listener(Protocol):
    """Is told each new event of a child."""

    def __call__(self, child: str, event: Event, /) -> None: ...


class End(StrEnum):
    """How it ended with a child."""

    FINISHED = "finished"
    #: Stopped after the epoch that it was asked to reach; can go on.
    REACHED = "reached"
    FAILED = "failed"
    #: Stopped before that, because the study stops; can go on.
    HALTED = "halted"
    #: Not ended yet: somebody else runs it (`replay.py`).
    OPEN = "open"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A child and how far it should get."""

    name: str
    #: Holds spec.json.
    job_dir: Path
    #: Stop it after this epoch; None: let it finish.
    until_epoch: int | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How it ended with a child, with its whole story."""

    end: End
    story: Story
    #: Why it failed, as a sentence.
    reason: str = ""


class Runs(Protocol):
    """What a study needs of whoever runs its children."""

    def given_up(self, goals: Sequence[Goal]) -> dict[str, Outcome]:
        """Those that failed before and get no other try, by their names."""
        ...

    def run(self, goals: Sequence[Goal]) -> dict[str, Outcome]:
        """The outcome of each goal, by its name."""
        ...


def unfinished(outcomes: Iterable[Outcome]) -> End | None:
    """Why a study cannot go on: a child is OPEN, else one was HALTED; None where all have ended."""
    ends = {outcome.end for outcome in outcomes}
    return next((end for end in (End.OPEN, End.HALTED) if end in ends), None)


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where children run: `parallel` at once, dealt over the devices."""

    parallel: int = 1
    #: As in CUDA_VISIBLE_DEVICES; empty: the CPU.
    devices: tuple[str, ...] = ()

    def environment(self, device: str) -> Mapping[str, str]:
        """What a child's environment has beside ours."""
        if device:
            return {"CUDA_VISIBLE_DEVICES": device}
        if self.parallel > 1 and "OMP_NUM_THREADS" not in os.environ:
            # Each child would take all cores, and they would wait for one another at every barrier.
            return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.parallel))}
        return {}

    def freest(self, used: Sequence[str]) -> str:
        """The device that fewest children run on."""
        return min(self.devices, key=used.count, default="")


class Children:
    """Runs children until each has reached its goal, has failed, or the study is told to halt."""

    def __init__(
        self,
        *,
        places: Places,
        must_halt: Callable[[], bool],
        devices: Mapping[str, str],
        remember_device: Callable[[str, str], None],
        listener: Listener = lambda child, event: None,
        command: Sequence[str] = (sys.executable, "-m", "trainer"),
    ) -> None:
        self._places = places
        self._must_halt = must_halt
        self._devices = devices
        self._remember_device = remember_device
        self._listener = listener
        self._command = tuple(command)

    def given_up(self, goals: Sequence[Goal]) -> dict[str, Outcome]:
        """Nobody: one that failed under an earlier study gets another try."""
        return {}

    def run(self, goals: Sequence[Goal]) -> dict[str, Outcome]:
        """The outcome of each goal, by its name."""
        children = [_Child(goal) for goal in goals]
        for child in children:
            child.adopt(self._devices.get(child.goal.name, ""))
        while not all(child.outcome for child in children):
            is_halting = self._must_halt()
            for child in children:
                self._step(child, is_halting=is_halting)
            running = [child for child in children if child.is_running]
            for child in children:
                if len(running) < self._places.parallel and child.is_waiting and not is_halting:
                    self._start(child, [one.device for one in running])
                    running.append(child)
            time.sleep(POLL_S)
        return {child.goal.name: child.outcome for child in children if child.outcome}

    def _step(self, child: _Child, *, is_halting: bool) -> None:
        if child.outcome is not None:
            return
        # In this order: what a child says before it goes is read after it is gone.
        is_running = child.is_running
        for event in child.story.follow():
            self._listener(child.goal.name, event)
        if is_running:
            if is_halting or child.has_reached_goal:
                child.stop()
            return
        child.settle(is_halting=is_halting)

    def _start(self, child: _Child, used: Sequence[str]) -> None:
        child.device = self._places.freest(used)
        self._remember_device(child.goal.name, child.device)
        child.start(self._command, {**os.environ, **self._places.environment(child.device)})


@dataclass
class _Child:
    """One child, while the study runs."""

    goal: Goal
    device: str = ""
    outcome: Outcome | None = None
    story: Story = field(init=False)
    _process: subprocess.Popen[bytes] | None = None
    _adopted: ProcessIdentity | None = None
    _is_asked_to_stop: bool = False
    _starts: int = 0
    #: Epochs at the first of these starts.
    _epochs_then: int = -1

    def __post_init__(self) -> None:
        self.story = Story(job_dir=self.goal.job_dir)
        # What an earlier study was told already is nobody's news.
        self.story.follow()

    @property
    def is_running(self) -> bool:
        if self._process is not None and self._process.poll() is None:
            return True
        return self._adopted is not None and self._adopted.is_alive()

    @property
    def is_waiting(self) -> bool:
        return self.outcome is None and not self.is_running

    @property
    def has_reached_goal(self) -> bool:
        until = self.goal.until_epoch
        return until is not None and self.story.last_epoch >= until

    def adopt(self, device: str) -> None:
        """Take over the trainer that runs in the folder already, if there is one; on `device` as far as we know."""
        holder = read_process_file(self.goal.job_dir)
        if holder is not None and holder.is_alive():
            self._adopted, self.device = holder, device

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it in a session of its own: Ctrl-C at our terminal is for us, who stop it in order."""
        if self.story.last_epoch > self._epochs_then:
            self._starts, self._epochs_then = 0, self.story.last_epoch
        self._starts += 1
        self._is_asked_to_stop = False
        with (self.goal.job_dir / LOG_FILE).open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "run", str(self.goal.job_dir)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self) -> None:
        """Ask it to stop at a checkpoint; once is enough."""
        if self._is_asked_to_stop:
            return
        self._is_asked_to_stop = True
        pid = self._process.pid if self._process and self._process.poll() is None else None
        if pid is None and self._adopted is not None and identify(self._adopted.pid) == self._adopted:
            pid = self._adopted.pid
        if pid is not None:
            os.kill(pid, signal.SIGTERM)

    def settle(self, *, is_halting: bool) -> None:
        """Decide how it ended with a child that does not run; undecided, it waits for another start."""
        match self.story.last_word:
            case Finished():
                self._end(End.FINISHED)
            case _ if self.has_reached_goal:
                self._end(End.REACHED)
            case Failed() as failed if self._was_started:
                self._end(End.FAILED, f"{failed.message} {failed.hint}")
            case _ if is_halting:
                self._end(End.HALTED)
            case _ if self._process is not None and self._process.returncode == EXIT_BUSY:
                self._process = None
                self.adopt(self.device)
            case _ if self._starts >= MAX_STARTS:
                self._end(
                    End.FAILED,
                    f"It died {MAX_STARTS} times without a word; {self.goal.job_dir / LOG_FILE} may say why.",
                )

    @property
    def _was_started(self) -> bool:
        """Whether it ran under this study: one that failed under an earlier one gets another try."""
        return self._process is not None or self._adopted is not None

    def _end(self, end: End, reason: str = "") -> None:
        self.outcome = Outcome(end=end, story=self.story, reason=reason)
