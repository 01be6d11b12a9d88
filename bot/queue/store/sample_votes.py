"""Votes in a drawn sampling, for a model and for an image: one of each for each person, which can be changed."""

from __future__ import annotations

from enum import StrEnum

from bot.queue.domain.job import Job
from bot.queue.store.transitions import Transitions, first

_TAKE_BACK = """
DELETE FROM sample_vote WHERE job_id = :job_id AND user_id = :user_id AND ballot = :ballot AND number = :number
RETURNING number
"""
_VOTE = """
INSERT INTO sample_vote (job_id, user_id, ballot, number) VALUES (:job_id, :user_id, :ballot, :number)
ON CONFLICT (job_id, user_id, ballot) DO UPDATE SET number = excluded.number
"""
_COUNT = """
SELECT ballot, number, COUNT(*) AS votes FROM sample_vote WHERE job_id = ? GROUP BY ballot, number ORDER BY number
"""


class Ballot(StrEnum):
    """What a vote is for, by its index: one of the models that drew, or one of the images."""

    MODEL = "model"
    IMAGE = "image"


class SampleVotes:
    """The table `sample_vote`."""

    def __init__(self, transitions: Transitions) -> None:
        self._transitions = transitions
        self._db = transitions.db

    async def vote(self, job: Job, user_id: int, ballot: Ballot, number: int) -> bool:
        """Vote; the same vote again takes it back. True if the person has a vote now."""
        values = {"job_id": job.id, "user_id": user_id, "ballot": ballot, "number": number}
        async with self._db.transaction() as connection:
            is_back = await first(connection, _TAKE_BACK, values) is not None
            if not is_back:
                await connection.execute_fetchall(_VOTE, values)
            cards = self._transitions.outbox.cards
            await cards.touch(connection, job.id, channel_id=job.channel_id, at_once=True, is_threaded=False)
        return not is_back

    async def counts(self, job_id: int) -> dict[Ballot, dict[int, int]]:
        """Return the votes of each model and image that has some."""
        counts: dict[Ballot, dict[int, int]] = {ballot: {} for ballot in Ballot}
        for row in await self._db.all(_COUNT, (job_id,)):
            counts[Ballot(row["ballot"])][row["number"]] = row["votes"]
        return counts
