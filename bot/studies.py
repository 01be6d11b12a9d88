"""Studies (k-fold, compare) in the queue: asks `python -m trainer study` what comes next, and runs it as child jobs.

The trainer makes every decision of a study (folds, early ends, the winner) from the files in the folders of its
children. All state that is held here may be lost at any moment.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from pydantic import ValidationError

from bot.clock import SYSTEM_CLOCK, Clock, backoff_s
from bot.config import LimitSettings
from bot.db.errors import DatabaseUnwritable
from bot.errors import DarkroomError, JobRefused, TooManyEpochs, TooManyRuns
from bot.queue import ActiveJob, EndReasonKind, Job, JobStore, State, StopIntent
from bot.queue.store.history import AuditReason
from bot.queue.store.study_store import StudyGoal, is_of_earlier_round
from bot.runners.child_process import run_and_capture
from trainer.exchange.job_dir import SPEC_FILE, read_spec, write_spec
from trainer.exchange.study_dir import write_study_ended, write_study_request
from trainer.protocol.events import EXIT_REFUSED, Failed
from trainer.protocol.spec import Spec
from trainer.protocol.study import (
    ChildOutcome,
    EndedChild,
    KfoldRequest,
    StudyRequest,
    StudyStep,
    make_study_request,
)
from trainer.protocol.text import _, ngettext

log = logging.getLogger(__name__)

#: A step reads events and draws a chart, which takes seconds; more on a machine under load.
STEP_TIMEOUT_S = 300.0
#: Failed steps in a row after which the study fails; with these pauses that takes about 20 minutes.
MAX_FAILURES = 8
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 300.0

#: A job and its attempt.
_Key: TypeAlias = tuple[int, int]


class StudyRefused(DarkroomError):
    """The study cannot be run; the message is the trainer's sentence."""


class StudyStepFailed(DarkroomError):
    """The trainer did not answer: it died, took too long, or has another version."""


def require_run(run: Spec, study: Spec, *, max_epochs: int) -> None:
    """Raise unless a run is what the owner of its study may train: on the study's own model and images.

    Args:
        run: The settings of the run, which values that a member typed are part of.
        study: The settings of the study, which were checked like those of any job.
        max_epochs: Epochs of one job that are allowed.

    Raises:
        TooManyEpochs: It trains longer.
        JobRefused: It starts from, or reads, something else than its study.
    """
    if run.training.epochs > max_epochs:
        raise TooManyEpochs(epochs=run.training.epochs, allowed=max_epochs)
    wanted, given = _what_it_reads(study), _what_it_reads(run)
    if changed := [name for name in wanted if wanted[name] != given[name]]:
        raise JobRefused(
            _(
                "All runs of a study have its model and its images, so {setting} has to stay the same. Vary other "
                "settings.",
                setting=changed[0],
            )
        )


def _what_it_reads(spec: Spec) -> dict[str, object]:
    """The settings that name models and images, by their names."""
    return {
        "task": spec.task,
        "base": spec.base,
        "dataset": spec.dataset,
        "mix": [(part.dataset, part.role) for part in spec.mix],
        "samples.similarity_model": spec.samples.similarity_model,
    }


class StudyService:
    """Takes studies further; the dispatcher calls `advance` for each study that runs."""

    def __init__(
        self,
        store: JobStore,
        *,
        command: Sequence[str],
        env: Mapping[str, str],
        limits: LimitSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._store = store
        self._limits = limits or LimitSettings()
        self._studies = store.studies
        self._command = tuple(command)
        self._env = dict(env)
        self._clock = clock
        #: State of the children at the last step; there is no other step until it changes.
        self._stepped: dict[_Key, tuple[object, ...]] = {}
        #: Failed steps in a row, and when the next one may start.
        self._failures: dict[_Key, int] = {}
        self._next_step_at: dict[_Key, float] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def plan(self, spec: Spec, request: StudyRequest, *, max_epochs: int) -> list[Spec]:
        """Ask the trainer for the runs of a study, and return their settings; a later one may be shorter than planned.

        Raises:
            TooManyRuns: There are more than a study may have.
            TooManyEpochs: One of them trains longer than `max_epochs`.
            JobRefused: The trainer cannot run it, or a run is not what its owner may train.
        """
        with TemporaryDirectory(prefix="darkroom-study-") as scratch:
            folder = Path(scratch)
            await asyncio.to_thread(write_spec, folder, spec)
            write_study_request(folder, request)
            try:
                step = await self._run_trainer(folder)
            except (StudyRefused, StudyStepFailed) as error:
                raise JobRefused(_("{reason} Nothing was queued.", reason=error)) from error
            runs = await asyncio.to_thread(lambda: [read_spec(folder / goal.folder) for goal in step.goals])
        if isinstance(request, KfoldRequest):
            # The last run, on all images, is made once the folds have ended.
            runs.append(spec)
        if len(runs) > self._limits.max_study_runs:
            raise TooManyRuns(runs=len(runs), allowed=self._limits.max_study_runs)
        for run in runs:
            require_run(run, spec, max_epochs=max_epochs)
        return runs

    async def advance(self, job: ActiveJob) -> None:
        """Start a step if the children have changed; it runs in a task, so that the queue never waits for it."""
        if job.id in self._tasks:
            return
        if job.state is State.STOPPING:
            await self._stop(job)
            return
        key = (job.id, job.attempt)
        if self._clock.monotonic() < self._next_step_at.get(key, 0.0):
            return
        children = tuple(
            (child.id, child.state, child.round, child.until_epoch) for child in await self._studies.children(job.id)
        )
        if self._stepped.get(key) == children:
            return
        task = asyncio.create_task(self._step(job, children), name=f"study {job.id}")
        self._tasks[job.id] = task
        task.add_done_callback(lambda done: self._tasks.pop(job.id, None))

    async def close(self) -> None:
        """Cancel the steps that run; the next bot repeats them."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _step(self, job: ActiveJob, children: tuple[object, ...]) -> None:
        key = (job.id, job.attempt)
        try:
            step = await self._take_step(job)
            self._failures.pop(key, None)
            if step is None or not step.is_over:
                self._stepped[key] = children
                return
            state = State.FAILED if step.has_failed else State.SUCCEEDED
            await self._end(job, state, " ".join(step.verdict), step.model_dump_json())
        except (StudyRefused, JobRefused) as error:
            await self._end(job, State.FAILED, str(error), None)
        except Exception as error:  # noqa: BLE001 - whatever happened, the step is repeated a limited number of times
            await self._handle_failure(job, error)

    async def _handle_failure(self, job: ActiveJob, error: Exception) -> None:
        """Repeat the step later; end the study after too many failures, except if the disk is full."""
        key = (job.id, job.attempt)
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        self._next_step_at[key] = self._clock.monotonic() + backoff_s(failures, _FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        is_expected = isinstance(error, StudyStepFailed | OSError | DatabaseUnwritable)
        log.warning("#%d: a step of the study failed: %s", job.id, error, exc_info=None if is_expected else error)
        if failures >= MAX_FAILURES and not isinstance(error, OSError | DatabaseUnwritable):
            message = _("The study of #{job} cannot continue: {error}", job=job.id, error=error)
            await self._end(job, State.FAILED, message, None)

    async def _take_step(self, job: ActiveJob) -> StudyStep | None:
        """Run one step and queue its goals; None if this attempt no longer runs."""
        study = await self._store.attempts.active_job(job.id, job.attempt)
        if study is None:
            return None
        folder = self._store.job_dir(job)
        await asyncio.to_thread(_write_files, folder, study)
        children = await self._studies.children(job.id)
        ended = [
            _ended_child(child)
            for child in children
            if child.state in {State.FAILED, State.CANCELLED} and not is_of_earlier_round(child, study)
        ]
        write_study_ended(folder, ended)
        step = await self._run_trainer(folder)
        goals = [
            StudyGoal(
                name=goal.name,
                folder=goal.folder,
                spec=await asyncio.to_thread(read_spec, folder / goal.folder),
                until_epoch=goal.until_epoch,
            )
            for goal in step.goals
        ]
        created = {child.child_name for child in children}
        # Checked when the study was requested; here against the limits of the server, lowered or not.
        max_epochs = max(self._limits.max_epochs, study.spec.training.epochs)
        for goal in goals:
            if goal.name not in created:
                require_run(goal.spec, study.spec, max_epochs=max_epochs)
        is_running = await self._studies.set_goals(job.id, job.attempt, goals, step.model_dump_json())
        return step if is_running else None

    async def _run_trainer(self, folder: Path, *options: str) -> StudyStep:
        """Run `trainer study FOLDER`, whose answer is the last line that it prints.

        Raises:
            StudyRefused: the study cannot be run.
            StudyStepFailed: there was no answer.
        """
        try:
            answer = await run_and_capture(
                [*self._command, "study", str(folder), *options], self._env, timeout_s=STEP_TIMEOUT_S
            )
        except TimeoutError:
            raise StudyStepFailed(_("The trainer took longer than {n:.0f} s.", n=STEP_TIMEOUT_S)) from None
        except OSError as error:
            why = error.strerror or error
            raise StudyStepFailed(_("The trainer could not be started ({why}).", why=why)) from error
        if answer.status == EXIT_REFUSED:
            raise StudyRefused(answer.error_text or _("The study was refused without a reason."))
        if answer.status != 0:
            why = answer.last_error_line or _("no output")
            raise StudyStepFailed(_("The trainer ended with status {status} ({why}).", status=answer.status, why=why))
        try:
            return StudyStep.model_validate_json(answer.last_line)
        except ValidationError as error:
            raise StudyStepFailed(
                _("The trainer's answer cannot be read; do the bot and the trainer have the same version?")
            ) from error

    async def _end(self, job: ActiveJob, state: State, message: str, step: str | None) -> None:
        """End the study once none of its children holds a slot; children that wait are cancelled."""
        if await self._studies.stop_children(job.id, StopIntent.CANCEL, why=AuditReason.STUDY_ENDED):
            self._next_step_at[job.id, job.attempt] = self._clock.monotonic() + _FIRST_PAUSE_S
            return
        await self._studies.end(job.id, job.attempt, state, message=message, step=step)
        self._stepped.pop((job.id, job.attempt), None)

    async def _stop(self, job: ActiveJob) -> None:
        """Pause or cancel the children, and the study once none of them holds a slot."""
        is_pause = job.stop_intent is StopIntent.PAUSE
        intent = StopIntent.PAUSE if is_pause else StopIntent.CANCEL
        if await self._studies.stop_children(job.id, intent, why=AuditReason.STUDY_STOPPING):
            return
        await self._studies.end(job.id, job.attempt, State.PAUSED if is_pause else State.CANCELLED)


def _write_files(folder: Path, study: ActiveJob) -> None:
    if not (folder / SPEC_FILE).exists():
        write_spec(folder, study.spec)
    write_study_request(folder, make_study_request(json.loads(study.study or "")))


def _ended_child(child: Job) -> EndedChild:
    if child.state is State.CANCELLED:
        reason = _("It was cancelled.")
    elif isinstance(child.terminal_event, Failed):
        reason = child.terminal_event.message
    elif child.end_reason is not None and child.end_reason.kind is EndReasonKind.LAUNCH_FAILED:
        reason = child.end_reason.message
    else:
        reason = ngettext(
            "Its process ended unexpectedly.", "Its process ended unexpectedly, after {n} attempts.", child.attempt
        )
    assert child.child_name is not None
    return EndedChild(name=child.child_name, outcome=ChildOutcome.FAILED, reason=reason)
