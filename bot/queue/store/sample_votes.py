"""Votes for the models of a drawn sampling: one for each person, which can be changed and taken back."""

from __future__ import annotations

from bot.queue.domain.job import Job
from bot.queue.store.transitions import Transitions, first

_TAKE_BACK = """
DELETE FROM sample_vote WHERE job_id = :job_id AND user_id = :user_id AND model = :model RETURNING model
"""
_VOTE = """
INSERT INTO sample_vote (job_id, user_id, model) VALUES (:job_id, :user_id, :model)
ON CONFLICT (job_id, user_id) DO UPDATE SET model = excluded.model
"""


class SampleVotes:
    """The table `sample_vote`."""

    def __init__(self, transitions: Transitions) -> None:
        self._transitions = transitions
        self._db = transitions.db

    async def vote(self, job: Job, user_id: int, model: int) -> bool:
        """Vote for a model by its index; the same vote again takes it back. True if the person has a vote now."""
        values = {"job_id": job.id, "user_id": user_id, "model": model}
        async with self._db.transaction() as connection:
            is_back = await first(connection, _TAKE_BACK, values) is not None
            if not is_back:
                await connection.execute_fetchall(_VOTE, values)
            cards = self._transitions.outbox.cards
            await cards.touch(connection, job.id, channel_id=job.channel_id, at_once=True, is_threaded=False)
        return not is_back

    async def counts(self, job_id: int) -> dict[int, int]:
        """Return the votes of each model that has some, by its index."""
        rows = await self._db.all(
            "SELECT model, COUNT(*) AS votes FROM sample_vote WHERE job_id = ? GROUP BY model", (job_id,)
        )
        return {row["model"]: row["votes"] for row in rows}
