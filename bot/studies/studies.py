"""Brings studies on: asks `python -m trainer study` what comes next, and sees to it that it runs.

What a study decides (folds, who is ended early, who wins) is decided by the trainer, from what stands in the children's
folders; what is remembered here can be forgotten at any moment.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from bot.db import Row
from bot.errors import DatabaseUnwritable, JobRefused
from bot.outbox import NoticeKind
from bot.queue import JobStore, State, StopIntent
from bot.queue.store.children import NewChild, is_of_earlier_round
from bot.queue.store.job_rows import Busy
from bot.studies.asking import StudyFailed, StudyRefused, ask_study
from trainer.protocol.spec import Spec, read_spec
from trainer.protocol.study import (
    ChildEnd,
    GivenUp,
    StudyOrder,
    StudyStep,
    make_study_order,
    write_study_ended,
    write_study_order,
)

log = logging.getLogger(__name__)

#: Times in a row that the trainer may fail to say what comes next before the study ends: after some 20 minutes.
MAX_FAILURES = 8
#: Pause before it is asked again: 5 s, 10 s, 20 s … The process that an earlier bot asked may still be there.
_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 300.0


class Studies:
    """A plain service: the dispatcher calls `advance` for each study that runs."""

    def __init__(
        self,
        store: JobStore,
        *,
        command: Sequence[str],
        env: Mapping[str, str],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._studies = store.studies
        self._command = tuple(command)
        self._env = dict(env)
        #: How the children stood when the trainer was last asked; asked again only when that changes.
        self._asked: dict[tuple[int, int], tuple[object, ...]] = {}
        self._monotonic = monotonic
        #: How often in a row there was no answer, and when to ask again.
        self._failures: dict[tuple[int, int], int] = {}
        self._asks_at: dict[tuple[int, int], float] = {}
        self._asking: dict[int, asyncio.Task[None]] = {}

    async def check(self, spec: Spec, order: StudyOrder) -> None:
        """Nothing, if that study can be run.

        Raises:
            JobRefused: it cannot, in the trainer's words; nothing was queued.
        """
        with TemporaryDirectory(prefix="darkroom-study-") as scratch:
            folder = Path(scratch)
            await asyncio.to_thread(spec.write, folder)
            write_study_order(folder, order)
            try:
                await ask_study(folder, command=self._command, env=self._env, only_check=True)
            except (StudyRefused, StudyFailed) as error:
                raise JobRefused(f"{error} Nothing was queued.") from error

    async def advance(self, busy: Busy) -> None:
        """Look at a study once; asking the trainer goes on beside the queue, which never waits for it."""
        if busy.job_id in self._asking:
            return
        if busy.state is State.STOPPING:
            await self._stop(busy)
            return
        if self._monotonic() < self._asks_at.get((busy.job_id, busy.attempt), 0.0):
            return
        children = await self._studies.children(busy.job_id)
        signature = tuple((row["id"], row["state"], row["round"], row["until_epoch"]) for row in children)
        if self._asked.get((busy.job_id, busy.attempt)) == signature:
            return
        task = asyncio.create_task(self._ask(busy, signature), name=f"study {busy.job_id}")
        self._asking[busy.job_id] = task
        task.add_done_callback(lambda _: self._asking.pop(busy.job_id, None))

    async def close(self) -> None:
        """End what is being asked; the next bot asks again."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, busy: Busy, signature: tuple[object, ...]) -> None:
        key = (busy.job_id, busy.attempt)
        try:
            step = await self._step(busy)
            self._failures.pop(key, None)
            if step is None or not step.is_over:
                self._asked[key] = signature
                return
            outcome = State.FAILED if step.has_failed else State.SUCCEEDED
            await self._end(busy, outcome, " ".join(step.verdict), step.model_dump_json())
        except StudyRefused as error:
            await self._end(busy, State.FAILED, str(error), None)
        except Exception as error:  # noqa: BLE001 - whatever it was, the study asks again, and not for ever.
            await self._failed(busy, error)

    async def _failed(self, busy: Busy, error: Exception) -> None:
        """There was no answer: ask again later, and not for ever. A full disk is no fault of the study's."""
        key = (busy.job_id, busy.attempt)
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        self._asks_at[key] = self._monotonic() + min(_PAUSE_S * 2 ** (failures - 1), _LONGEST_PAUSE_S)
        is_known = isinstance(error, StudyFailed | OSError | DatabaseUnwritable)
        log.warning("#%d: the study could not go on (%s)", busy.job_id, error, exc_info=None if is_known else error)
        if failures >= MAX_FAILURES and not isinstance(error, OSError | DatabaseUnwritable):
            await self._end(busy, State.FAILED, f"The study of #{busy.job_id} cannot go on: {error}", None)

    async def _step(self, busy: Busy) -> StudyStep | None:
        """Ask, and let run what it says; None if that attempt no longer runs."""
        study = await self._studies.row(busy.job_id, busy.attempt)
        if study is None:
            return None
        folder = self._store.job_dir(busy)
        await asyncio.to_thread(_lay_out, folder, study)
        ended = [row for row in await self._studies.children(busy.job_id) if row["state"] in {"failed", "cancelled"}]
        write_study_ended(folder, [_given_up(row) for row in ended if not is_of_earlier_round(row, study)])
        step = await ask_study(folder, command=self._command, env=self._env)
        wanted = [
            NewChild(
                name=goal.name,
                folder=goal.folder,
                spec=await asyncio.to_thread(read_spec, folder / goal.folder),
                until_epoch=goal.until_epoch,
            )
            for goal in step.goals
        ]
        is_there = await self._studies.want(busy.job_id, busy.attempt, wanted, step.model_dump_json())
        return step if is_there else None

    async def _end(self, busy: Busy, outcome: State, detail: str, step: str | None) -> None:
        """End it once nothing below it holds a slot; what waits there, ended early, is ended with it."""
        if await self._studies.stop_children(busy.job_id, StopIntent.CANCEL, why=f"#{busy.job_id} has ended"):
            self._asks_at[busy.job_id, busy.attempt] = self._monotonic() + _PAUSE_S
            return
        notice = NoticeKind.FAILED if outcome is State.FAILED else NoticeKind.DONE
        await self._studies.end(busy.job_id, busy.attempt, outcome, notice=notice, detail=detail, step=step)
        self._asked.pop((busy.job_id, busy.attempt), None)

    async def _stop(self, busy: Busy) -> None:
        """Pause or cancel what is below, and the study once nothing there holds a slot."""
        pauses = busy.stop_intent is StopIntent.PAUSE
        intent = StopIntent.PAUSE if pauses else StopIntent.CANCEL
        if await self._studies.stop_children(busy.job_id, intent, why=f"#{busy.job_id} is told to stop"):
            return
        outcome, notice = (State.PAUSED, NoticeKind.PAUSED) if pauses else (State.CANCELLED, NoticeKind.CANCELLED)
        await self._studies.end(busy.job_id, busy.attempt, outcome, notice=notice, detail="")


def _lay_out(folder: Path, study: Row) -> None:
    """The study's folder: its spec and its order, each written once."""
    if not (folder / "spec.json").exists():
        Spec.model_validate_json(study["spec"]).write(folder)
    write_study_order(folder, make_study_order(json.loads(study["study"])))


def _given_up(child: Row) -> ChildEnd:
    reason = child["end_reason"] or ""
    if child["state"] == State.CANCELLED:
        reason = reason or "It was cancelled."
    return ChildEnd(name=child["child_name"], end=GivenUp.FAILED, reason=reason)
