"""The queue's SQL."""

from __future__ import annotations

from bot.queue.job import MOVES, State

#: Everybody in line, in the order in which they are claimed: interrupted jobs first, then in turn between people.
#:
#: `turn` is a job's number among the waiting ones of its owner: everybody's first comes before anybody's second.
#: Within a turn, who was served longest ago comes first; whoever has an interrupted job is about to be served.
#: This is the order that is shown to people, and it stays true while it is worked off: see the test that claims
#: a random line to its end.
LINE = """
WITH served AS (
    SELECT owner_id,
           MAX(COALESCE(claim_number, 0)) AS last_claim,
           MAX(CASE WHEN state = 'queued' AND is_front THEN id + (1 << 40) ELSE 0 END) AS front
    FROM job GROUP BY owner_id
), waiting AS (
    SELECT id, owner_id, is_front,
           ROW_NUMBER() OVER (PARTITION BY owner_id, is_front ORDER BY id) AS turn,
           MIN(id) OVER (PARTITION BY owner_id, is_front) AS first_id
    FROM job WHERE state = 'queued'
), line AS (
    SELECT waiting.id AS id, ROW_NUMBER() OVER (
        ORDER BY is_front DESC,
                 CASE WHEN is_front THEN id END,
                 turn, MAX(last_claim, front), first_id
    ) AS place
    FROM waiting JOIN served USING (owner_id)
)
"""

WHOLE_LINE = LINE + "SELECT id FROM line ORDER BY place"
PLACE = LINE + "SELECT place FROM line WHERE id = ?"

CLAIM = (
    LINE
    + """
UPDATE job SET
    state = 'running', attempt = attempt + 1, is_front = 0, handle = NULL, stop_sent_at = NULL,
    stop_intent = CASE WHEN is_finishing THEN stop_intent END,
    claim_number = (SELECT COALESCE(MAX(claim_number), 0) + 1 FROM job),
    started_at = COALESCE(started_at, :now), heard_at = NULL
WHERE id = (SELECT id FROM line ORDER BY place LIMIT 1)
  AND state = 'queued'
  AND (SELECT COUNT(*) FROM job WHERE state IN ('running', 'stopping')) < :slots
RETURNING *
"""
)

SUBMIT = """
INSERT INTO job (interaction_id, guild_id, channel_id, owner_id, dataset_id, name, spec, state, created_at)
VALUES (:interaction_id, :guild_id, :channel_id, :owner_id, :dataset_id, :name, :spec, 'queued', :now)
RETURNING *
"""

#: Interrupted jobs were started once, and do not count.
WAITING = "SELECT COUNT(*) FROM job WHERE state = 'queued' AND attempt = 0 AND owner_id = ? AND guild_id = ?"

JOBS = "SELECT job.*, dataset.name AS dataset_name FROM job JOIN dataset ON dataset.id = dataset_id "

#: What a `Progress` is made of.
PROGRESS = """
SELECT job_id, body FROM job_event
WHERE type IN ('started', 'phase_began', 'base_validated', 'epoch_ended') AND job_id IN (SELECT value FROM json_each(?))
ORDER BY job_id, seq
"""

OTHERS_WAITING = "SELECT id, channel_id FROM job WHERE state = 'queued' AND id != ?"

ONE_BUSY = "SELECT * FROM job WHERE id = ? AND attempt = ? AND state IN ('running', 'stopping')"

HEARD = """
UPDATE job SET read_bytes = MAX(read_bytes, :read_bytes), last_seq = :last_seq,
    step = COALESCE(:step, step), heard_at = :now
WHERE id = :id RETURNING *
"""

BUSY = "SELECT * FROM job WHERE state IN ('running', 'stopping') ORDER BY id"


def states_before(state: State) -> str:
    """The states from which `state` may be reached, as an SQL list: `('running', 'stopping')`."""
    return "(" + ", ".join(f"'{before}'" for before, after in MOVES.items() if state in after) + ")"


_HAS_EPOCH = "EXISTS (SELECT 1 FROM job_event WHERE job_id = job.id AND type = 'epoch_ended')"

CANCEL_QUEUED = f"""
UPDATE job SET state = 'cancelled', stop_intent = 'cancel', stopped_by = :by, ended_at = :now
WHERE id = :id AND state = 'queued' AND state IN {states_before(State.CANCELLED)}
  AND (:intent = 'cancel' OR NOT {_HAS_EPOCH})
RETURNING *
"""

#: A job that was interrupted, has something to keep, and waits to go on: it will only finish.
FINISH_QUEUED = f"""
UPDATE job SET is_finishing = 1, stop_intent = 'keep_best', stopped_by = :by
WHERE id = :id AND state = 'queued' AND NOT is_finishing AND :intent = 'keep_best' AND {_HAS_EPOCH}
RETURNING *
"""

#: A cancel is the stronger word: it also stops a job that finishes.
STOP_RUNNING = f"""
UPDATE job SET state = 'stopping', stop_intent = :intent, stopped_by = :by
WHERE id = :id AND state IN {states_before(State.STOPPING)} AND (:intent = 'cancel' OR NOT is_finishing)
RETURNING *
"""

STOP_HARDER = """
UPDATE job SET stop_intent = 'cancel', stopped_by = :by
WHERE id = :id AND state = 'stopping' AND stop_intent != 'cancel' AND :intent = 'cancel'
RETURNING *
"""

#: End of a start: to an end, or back into the line.
SETTLE = {
    state: f"""
UPDATE job SET
    state = '{state}', handle = NULL,
    is_front = {int(state is State.QUEUED)},
    is_finishing = COALESCE(:finish, is_finishing),
    excused = excused + :excused,
    last_word = COALESCE(:last_word, last_word),
    end_reason = :reason,
    ended_at = {"NULL" if state is State.QUEUED else ":now"}
WHERE id = :id AND attempt = :attempt AND state IN {states_before(state)} AND state IN ('running', 'stopping')
RETURNING *
"""
    for state in (State.QUEUED, State.SUCCEEDED, State.FAILED, State.CANCELLED)
}
