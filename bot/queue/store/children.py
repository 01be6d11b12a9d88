"""A study's side of the queue: its children are ordinary jobs below it, made, aimed, and outlived by it."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from bot.db import Connection, Row
from bot.outbox import NoticeKind
from bot.queue.domain.job import LIVING, State, StopIntent
from bot.queue.domain.rules import Outcome
from bot.queue.store import job_sql
from bot.queue.store.ingest import first
from bot.queue.store.job_rows import folder_of
from bot.queue.store.transitions import Moves
from trainer.protocol.spec import Spec

log = logging.getLogger(__name__)

_AIM = "UPDATE job SET until_epoch = :until_epoch WHERE id = :id AND until_epoch IS NOT :until_epoch"
_ROUND = "UPDATE job SET round = :round WHERE id = :id"
_CHILDREN = "SELECT * FROM job WHERE parent_id = ? ORDER BY id"


@dataclass(frozen=True, kw_only=True)
class NewChild:
    """A run that a study wants."""

    name: str
    #: Below the study's folder; holds its spec.json.
    folder: str
    spec: Spec
    #: Stop it at the end of this epoch; None: let it finish.
    until_epoch: int | None


def is_of_earlier_round(child: Row, study: Row) -> bool:
    """Whether a child ended before its study was retried: it has another try."""
    return bool(child["round"] < study["round"])


class StudyStore:
    """Every change of a study and its children, each in one transaction under the study's attempt as the fence."""

    def __init__(self, moves: Moves) -> None:
        self._moves = moves
        self._db = moves.db

    async def row(self, job_id: int, attempt: int) -> Row | None:
        """The study, None if that attempt no longer runs."""
        return await self._db.one(job_sql.ONE_BUSY, (job_id, attempt))

    async def children(self, job_id: int) -> list[Row]:
        """Its children, in the order in which they were made."""
        return await self._db.all(_CHILDREN, (job_id,))

    async def want(self, job_id: int, attempt: int, wanted: list[NewChild], step: str) -> bool:
        """Write down the study's newest step, and see to it that these children run; False if it no longer does."""
        async with self._db.transaction() as connection:
            study = await first(connection, job_sql.ONE_BUSY, (job_id, attempt))
            if study is None or study["state"] == State.STOPPING:
                return False
            if study["state"] == State.PREPARING:
                began = await first(connection, job_sql.BEGAN, {"id": job_id, "attempt": attempt})
                assert began is not None
                await self._moves.moved(connection, began, verb="begin", before=study["state"])
            await self._note(connection, study, step)
            known = {row["child_name"]: row for row in await connection.execute_fetchall(_CHILDREN, (job_id,))}
            for child in wanted:
                if (row := known.get(child.name)) is None:
                    await self._make(connection, study, child)
                else:
                    await self._aim(connection, study, row, child.until_epoch)
        return True

    async def _note(self, connection: Connection, study: Row, step: str) -> None:
        await connection.execute_fetchall("UPDATE job SET study_step = ? WHERE id = ?", (step, study["id"]))
        await self._moves.touch(connection, study)

    async def _make(self, connection: Connection, study: Row, child: NewChild) -> None:
        turn = await first(
            connection, job_sql.NEXT_TURN, {"owner_id": study["owner_id"], "priority": study["priority"]}
        )
        assert turn is not None
        same = ("guild_id", "channel_id", "owner_id", "dataset_id", "priority", "max_running")
        values = {name: study[name] for name in same} | {
            "interaction_id": None,
            "name": child.spec.name,
            "spec": child.spec.model_dump_json(),
            "turn": turn[0],
            "gpus": 1,
            "run_after": 0.0,
            "fingerprint": None,
            "estimate_s": None,
            "study": None,
            "parent_id": study["id"],
            "child_name": child.name,
            "folder": f"{folder_of(study)}/{child.folder}",
            "until_epoch": child.until_epoch,
            "is_finishing": 0,
            "now": self._moves.now(),
        }
        row = await first(connection, job_sql.SUBMIT, values)
        assert row is not None
        await self._moves.moved(
            connection, row, verb="submit", before=None, why=f"a run of #{study['id']}: {child.name}"
        )
        log.info("#%d queued (%s of #%d)", row["id"], child.name, study["id"])

    async def _aim(self, connection: Connection, study: Row, child: Row, until_epoch: int | None) -> None:
        """Let a child that is there run (on) to a new goal; after a Retry of its study also one that had ended."""
        await connection.execute_fetchall(_AIM, {"id": child["id"], "until_epoch": until_epoch})
        row, verb = await first(connection, job_sql.RESUME, {"id": child["id"]}), "resume"
        if row is None and is_of_earlier_round(child, study):
            row, verb = await first(connection, job_sql.RETRY, {"id": child["id"]}), "retry"
            await connection.execute_fetchall(_ROUND, {"id": child["id"], "round": study["round"]})
        if row is not None:
            await self._moves.moved(connection, row, verb=verb, before=child["state"])

    async def stop_children(self, job_id: int, intent: StopIntent, *, why: str) -> int:
        """Cancel or pause whatever lives below a study; how many still hold slots."""
        holding = 0
        for child in await self.children(job_id):
            if State(child["state"]) not in LIVING or (intent is StopIntent.PAUSE and child["state"] == State.PAUSED):
                continue
            values = {"id": child["id"], "by": None, "intent": intent, "now": self._moves.now()}
            async with self._db.transaction() as connection:
                for statement in (
                    job_sql.CANCEL_WAITING,
                    job_sql.PAUSE_QUEUED,
                    job_sql.STOP_HARDER,
                    job_sql.STOP_ACTIVE,
                ):
                    row = await first(connection, statement, values)
                    if row is not None:
                        await self._moves.moved(connection, row, verb=intent, before=child["state"], why=why)
                        break
            holding += State(child["state"]).is_active
        return holding

    async def end(
        self,
        job_id: int,
        attempt: int,
        outcome: State,
        *,
        notice: NoticeKind | None,
        detail: str,
        step: str | None = None,
    ) -> bool:
        """End a study (or pause it) once nothing below it holds a slot; False if it no longer runs."""
        async with self._db.transaction() as connection:
            study = await first(connection, job_sql.ONE_BUSY, (job_id, attempt))
            if study is None:
                return False
            if step is not None:
                await self._note(connection, study, step)
            settled = Outcome(state=outcome, notice=notice, detail=detail, is_excused=outcome is State.PAUSED)
            await self._moves.settle(connection, study, settled, None)
        return True
