"""Runs the children of a study as processes on this machine, several at once, and takes over those that run already.

Like the bot, it knows a training by its folder alone: `spec.json` goes in, `events.jsonl` comes out, and SIGTERM stops
it at a checkpoint. Children outlive the death of the study; the next one adopts them (`process.json`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from trainer.exchange.job_dir import LOG_FILE
from trainer.exchange.process import ProcessIdentity, identify, read_process_file
from trainer.protocol.events import EXIT_BUSY, Event, Failed, Finished
from trainer.protocol.study import ChildGoal, ChildOutcome, EndedChild, StudyStep
from trainer.protocol.text import _
from trainer.studies.planner import Planner, study_folder
from trainer.studies.run_history import failure_reason, read_history

POLL_S = 0.1
#: A child has failed after this many starts without a completed epoch.
MAX_STARTS = 3

#: Called with a child's name and each of its new events.
ChildListener: TypeAlias = Callable[[str, Event], None]


@dataclass(frozen=True, kw_only=True)
class DevicePool:
    """Where children run: `parallel` at once, spread over the devices."""

    parallel: int = 1
    #: As in CUDA_VISIBLE_DEVICES; empty: the CPU.
    devices: tuple[str, ...] = ()

    def environment(self, used: Sequence[str]) -> Mapping[str, str]:
        """Return what to add to the environment of the next child, given the devices of those that run."""
        if self.devices:
            return {"CUDA_VISIBLE_DEVICES": min(self.devices, key=used.count)}
        if self.parallel > 1 and "OMP_NUM_THREADS" not in os.environ:
            # Each child would take all cores, and they would wait for one another at every barrier.
            return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.parallel))}
        return {}


class ChildRunner:
    """Runs children until each has reached its goal or failed, or until the study must stop."""

    def __init__(
        self,
        *,
        pool: DevicePool,
        must_stop: Callable[[], bool],
        listener: ChildListener = lambda child, event: None,
        command: Sequence[str] = (sys.executable, "-m", "trainer"),
    ) -> None:
        self._pool = pool
        self._must_stop = must_stop
        self._listener = listener
        self._command = tuple(command)

    def run(self, study_dir: Path, goals: Sequence[ChildGoal]) -> list[EndedChild]:
        """Run children to their goals; return those that failed, and those that were stopped before."""
        children = [_Process(goal, study_dir / goal.folder) for goal in goals]
        while not all(child.is_settled for child in children):
            is_stopping = self._must_stop()
            for child in children:
                if not child.is_settled:
                    child.step(self._listener, is_stopping=is_stopping)
            running = [child.device for child in children if child.is_running]
            for child in children:
                if len(running) < self._pool.parallel and child.is_waiting and not is_stopping:
                    child.start(self._command, self._pool.environment(running))
                    running.append(child.device)
            time.sleep(POLL_S)
        return [child.ended for child in children if child.ended is not None]


class _Process:
    """One child on its way to a goal; its process was started here, or found running."""

    def __init__(self, goal: ChildGoal, job_dir: Path) -> None:
        self.goal = goal
        #: Set if the child failed or was stopped before its goal.
        self.ended: EndedChild | None = None
        self.is_settled = False
        self.device = ""
        self._job_dir = job_dir
        # The listener has heard these events already.
        self._history = read_history(job_dir)
        self._started: subprocess.Popen[bytes] | None = None
        self._adopted: ProcessIdentity | None = None
        self._is_asked_to_stop = False
        self._starts = 0
        self._epochs_at_first_start = -1
        self._adopt()

    @property
    def is_running(self) -> bool:
        if self._started is not None and self._started.poll() is None:
            return True
        return self._adopted is not None and self._adopted.is_alive()

    @property
    def is_waiting(self) -> bool:
        return not self.is_settled and not self.is_running

    @property
    def _has_reached_goal(self) -> bool:
        return self.goal.until_epoch is not None and self._history.last_epoch >= self.goal.until_epoch

    def step(self, listener: ChildListener, *, is_stopping: bool) -> None:
        """Report new events, stop the process if it is time to, and settle the child if it has exited."""
        # Poll before reading: once the process has exited, its event file is complete.
        is_running = self.is_running
        for event in self._history.follow():
            listener(self.goal.name, event)
        if not is_running:
            self._settle(is_stopping=is_stopping)
        elif is_stopping or self._has_reached_goal:
            self._stop()

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a process in a session of its own, so that Ctrl-C at the terminal reaches only the study."""
        if self._history.last_epoch > self._epochs_at_first_start:
            self._starts, self._epochs_at_first_start = 0, self._history.last_epoch
        self._starts += 1
        self._is_asked_to_stop = False
        self.device = environment.get("CUDA_VISIBLE_DEVICES", "")
        with (self._job_dir / LOG_FILE).open("ab") as log:
            self._started = subprocess.Popen(
                [*command, "run", str(self._job_dir)],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _adopt(self) -> None:
        """Take over the trainer that runs in the folder, if there is one."""
        holder = read_process_file(self._job_dir)
        if holder is not None and holder.is_alive():
            self._adopted, self.device = holder, _device_of(holder.pid)

    def _stop(self) -> None:
        """Ask the process once to stop at a checkpoint."""
        if self._is_asked_to_stop:
            return
        self._is_asked_to_stop = True
        if self._started is not None and self._started.poll() is None:
            self._started.terminate()
        elif self._adopted is not None and identify(self._adopted.pid) == self._adopted:
            os.kill(self._adopted.pid, signal.SIGTERM)

    def _settle(self, *, is_stopping: bool) -> None:
        """Decide the outcome of a child that does not run; if there is none yet, it waits for another start."""
        was_run = self._started is not None or self._adopted is not None
        match self._history.terminal_event:
            case Finished():
                self.is_settled = True
            case _ if self._has_reached_goal:
                self.is_settled = True
            # A child that failed under an earlier study gets another try.
            case Failed() if was_run:
                self._end(ChildOutcome.FAILED, failure_reason(self._history))
            case _ if is_stopping:
                self._end(ChildOutcome.HALTED)
            case _ if self._started is not None and self._started.returncode == EXIT_BUSY:
                self._started = None
                self._adopt()
            case _ if self._starts >= MAX_STARTS:
                log = self._job_dir / LOG_FILE
                reason = _("It ended {n} times without an error; {log} may say why.", n=MAX_STARTS, log=log)
                self._end(ChildOutcome.FAILED, reason)

    def _end(self, outcome: ChildOutcome, reason: str = "") -> None:
        self.ended = EndedChild(name=self.goal.name, outcome=outcome, reason=reason)
        self.is_settled = True


def _device_of(pid: int) -> str:
    """Return the CUDA_VISIBLE_DEVICES of a running process; empty if it has none or has just exited."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    return next((one.partition(b"=")[2].decode() for one in variables if one.startswith(b"CUDA_VISIBLE_DEVICES=")), "")


def run_study(job_dir: Path, planner: Planner, runner: ChildRunner) -> tuple[StudyStep, bool]:
    """Run a study to its end: ask the planner for goals, run them, and ask again.

    Returns:
        The last step, and whether the study was stopped before its end.

    Raises:
        JobFolderBusyError: another process runs a study there.
        UsageError: the folder holds another study.
    """
    ended: dict[str, EndedChild] = {}
    with study_folder(job_dir, planner) as folder:
        while not (step := planner.advance(folder, ended)).is_over:
            ended |= {child.name: child for child in runner.run(job_dir, step.goals)}
    return step, any(child.outcome is ChildOutcome.HALTED for child in ended.values())
