"""The queue's SQL."""

from __future__ import annotations

from bot.queue.domain.job import ACTIVE, ENDS, LIVING, MOVES, State
from bot.queue.domain.rules import MAX_RETRY_PAUSE_S


def listed(states: frozenset[State]) -> str:
    """States as an SQL list: `('running', 'stopping')`."""
    return "(" + ", ".join(f"'{state}'" for state in State if state in states) + ")"


def states_before(state: State) -> str:
    """The states from which `state` may be reached, as an SQL list."""
    return listed(frozenset(before for before, after in MOVES.items() if state in after))


_ACTIVE = listed(ACTIVE)

#: The one order of the line: interrupted jobs first, then priority, then turns between people (index `job_line`).
#:
#: A job gets its `turn` when it is queued: one more than its owner's last of that priority, in line or served, and no
#: less than the turn that is being served there (start-time fair queueing, Goyal, Vin and Cheng 1996, with jobs of one
#: size). So everybody's first comes before anybody's second, whoever comes late is not sent to the end, and the order
#: is a plain index: claiming, the place in line and the board read the same rows in the same order, whatever the number
#: of jobs. A study takes no turn, its children do. Out of line it says nothing; what was served stands in `served`.
ORDER = "is_front DESC, priority DESC, turn, id"

#: May start now, if there is a slot: its time has come, and its owner does not run as many as they may. A pause before
#: another try that is longer than any such pause is one by a clock that was set back since, and over.
READY = f"""(run_after <= :now OR (attempt > 0 AND run_after > :now + {MAX_RETRY_PAUSE_S}))
AND (max_running IS NULL OR max_running > (
    SELECT COUNT(*) FROM job AS other INDEXED BY job_active
    WHERE other.owner_id = job.owner_id AND other.gpus > 0 AND other.state IN {_ACTIVE}))"""

#: How many trainings of a job's owner run, and how many may while it waits.
OWNER_RUNS = f"""
SELECT max_running, (SELECT COUNT(*) FROM job AS other INDEXED BY job_active
    WHERE other.owner_id = job.owner_id AND other.gpus > 0 AND other.state IN {_ACTIVE}) AS runs
FROM job WHERE id = ?
"""

WHOLE_LINE = f"SELECT * FROM job INDEXED BY job_line WHERE state = 'queued' ORDER BY {ORDER}"

#: Place of a waiting job: those before it, and itself.
PLACE = """
WITH me AS (SELECT is_front, priority, turn, id FROM job WHERE id = :id AND state = 'queued')
SELECT 1 + COUNT(other.id) AS place FROM me LEFT JOIN job AS other INDEXED BY job_line
    ON other.state = 'queued'
    AND (-other.is_front, -other.priority, other.turn, other.id) < (-me.is_front, -me.priority, me.turn, me.id)
GROUP BY me.id
"""

#: The first that may start. A study (0 GPUs) holds no slot and never waits for one; a job that needs several is not
#: overtaken by those that need fewer, or it would wait for ever.
FIRST_READY = f"""
SELECT * FROM job INDEXED BY job_line WHERE state = 'queued' AND {READY} ORDER BY {ORDER} LIMIT 1
"""

FIRST_READY_STUDY = f"""
SELECT * FROM job INDEXED BY job_study_line WHERE state = 'queued' AND gpus = 0 AND {READY} ORDER BY {ORDER} LIMIT 1
"""

#: Slots that may be given away: those that are free, less what runs and may be on any GPU: jobs in a slot of no device
#: that is no longer there, and jobs without one (from before there were slots).
FREE_SLOTS = f"""
SELECT (SELECT COUNT(*) FROM slot WHERE is_enabled AND job_id IS NULL)
    - (SELECT COUNT(*) FROM slot WHERE NOT is_enabled AND job_id IS NOT NULL AND device = '')
    - COALESCE((SELECT SUM(gpus) FROM job INDEXED BY job_active WHERE state IN {_ACTIVE}
                AND NOT EXISTS (SELECT 1 FROM slot WHERE slot.job_id = job.id)), 0) AS free
"""

CLAIM = f"""
UPDATE job SET
    state = 'preparing', attempt = attempt + 1, is_front = 0, handle = NULL, stop_sent_at = NULL, run_after = 0,
    stop_intent = CASE WHEN is_finishing THEN 'keep_best' END,
    stopped_by = CASE WHEN is_finishing THEN stopped_by END,
    claim_number = (SELECT COALESCE(MAX(claim_number), 0) + 1 FROM job WHERE claim_number IS NOT NULL),
    started_at = COALESCE(started_at, :now), heard_at = NULL, end_reason = NULL
WHERE id = :id AND state IN {states_before(State.PREPARING)}
RETURNING *
"""

TAKE_SLOTS = """
UPDATE slot SET job_id = :id, attempt = :attempt
WHERE id IN (SELECT id FROM slot WHERE is_enabled AND job_id IS NULL ORDER BY position LIMIT :gpus)
RETURNING device, name, position
"""

FREE_SLOTS_OF = "UPDATE slot SET job_id = NULL, attempt = NULL WHERE job_id = :id"

BEGIN_ATTEMPT = """
INSERT INTO attempt (job_id, attempt, guild_id, owner_id, gpus, slots, started_at)
VALUES (:id, :attempt, :guild_id, :owner_id, :gpus, :slots, :now)
"""

#: Why a start that has not ended yet was killed.
KILLED_FOR = "UPDATE attempt SET why = :why WHERE job_id = :id AND attempt = :attempt AND ended_at IS NULL"

TO_BE_KILLED = f"""
UPDATE job SET stop_sent_at = :now WHERE id = :id AND attempt = :attempt AND state IN {_ACTIVE}
"""

WHY_KILLED = "SELECT why FROM attempt WHERE job_id = ? AND attempt = ?"

END_ATTEMPT = """
UPDATE attempt SET ended_at = :now, outcome = :outcome, why = :why
WHERE job_id = :id AND attempt = :attempt AND ended_at IS NULL
"""


def _next_turn(owner_id: str, priority: str) -> str:
    """The turn of a person's next job: one after their last in line or served, no less than what is being served."""
    return f"""MAX(
    COALESCE((SELECT MAX(other.turn) FROM job AS other INDEXED BY job_turns
              WHERE other.owner_id = {owner_id} AND other.priority = {priority}
                AND other.state = 'queued' AND other.gpus > 0 AND NOT other.is_front), 0) + 1,
    COALESCE((SELECT served.turn FROM served
              WHERE served.priority = {priority} AND served.owner_id = {owner_id}), 0) + 1,
    COALESCE((SELECT MAX(served.turn) FROM served WHERE served.priority = {priority}), 0))"""


NEXT_TURN = f"SELECT {_next_turn(':owner_id', ':priority')}"

#: What somebody was served never goes back: else a cancel and a Retry, or another priority, would give a turn away.
SERVE = """
INSERT INTO served (priority, owner_id, turn) VALUES (:priority, :owner_id, :turn)
ON CONFLICT (priority, owner_id) DO UPDATE SET turn = MAX(turn, excluded.turn)
"""

#: Somebody's later jobs move up when one of theirs leaves the line unserved.
MOVE_UP = """
UPDATE job SET turn = turn - 1
WHERE owner_id = :owner_id AND priority = :priority AND gpus > 0 AND turn > :turn AND state = 'queued' AND NOT is_front
"""

SUBMIT = """
INSERT INTO job (interaction_id, guild_id, channel_id, owner_id, dataset_id, name, spec, state, priority, turn, gpus,
    run_after, max_running, fingerprint, estimate_s, study, parent_id, child_name, folder, until_epoch, is_finishing,
    created_at)
VALUES (:interaction_id, :guild_id, :channel_id, :owner_id, :dataset_id, :name, :spec, 'queued', :priority, :turn,
    :gpus, :run_after, :max_running, :fingerprint, :estimate_s, :study, :parent_id, :child_name, :folder, :until_epoch,
    :is_finishing, :now)
RETURNING *
"""

#: A draft becomes the job; its number stays.
SUBMIT_DRAFT = f"""
UPDATE job SET state = 'queued', dataset_id = :dataset_id, name = :name, spec = :spec, priority = :priority,
    turn = :turn, gpus = :gpus, run_after = :run_after, max_running = :max_running, fingerprint = :fingerprint,
    estimate_s = :estimate_s, study = :study
WHERE interaction_id = :interaction_id AND state = 'draft' AND state IN {states_before(State.QUEUED)}
RETURNING *
"""

#: Interrupted jobs were started once, and do not count; a study counts as one.
WAITING = """
SELECT COUNT(*) FROM job
WHERE owner_id = ? AND state = 'queued' AND attempt = 0 AND parent_id IS NULL AND guild_id = ?
"""

DUPLICATE = f"""
SELECT * FROM job WHERE fingerprint = :fingerprint AND guild_id = :guild_id AND parent_id IS NULL
    AND state IN {listed(LIVING | {State.SUCCEEDED})}
ORDER BY state = 'succeeded', id DESC LIMIT 1
"""

JOBS = """
SELECT job.*, dataset.name AS dataset_name,
    (SELECT attempt.slots FROM attempt WHERE attempt.job_id = job.id AND attempt.attempt = job.attempt) AS slot_names
FROM job JOIN dataset ON dataset.id = dataset_id AND spec IS NOT NULL
"""

#: What a `Progress` is made of.
PROGRESS = """
SELECT job_id, body FROM job_event
WHERE type IN ('started', 'phase_began', 'base_validated', 'epoch_ended') AND job_id IN (SELECT value FROM json_each(?))
ORDER BY job_id, seq
"""

#: Cards of the first in line are redrawn when the line moves; those far behind change little, and Discord's limits
#: are for all of them.
NEXT_WAITING = f"""
SELECT id, channel_id FROM job INDEXED BY job_line WHERE state = 'queued' AND id != ? AND parent_id IS NULL
ORDER BY {ORDER} LIMIT 20
"""

ONE_BUSY = f"SELECT * FROM job WHERE id = ? AND attempt = ? AND state IN {_ACTIVE}"

HEARD = """
UPDATE job SET read_bytes = MAX(read_bytes, :read_bytes), last_seq = :last_seq,
    step = COALESCE(:step, step), heard_at = :now
WHERE id = :id RETURNING *
"""

BUSY = f"""
SELECT job.*, (SELECT group_concat(device, ',') FROM (
    SELECT device FROM slot WHERE slot.job_id = job.id AND device != '' ORDER BY position)) AS devices,
    (SELECT started_at FROM attempt WHERE attempt.job_id = job.id AND attempt.attempt = job.attempt) AS claimed_at,
    (SELECT type = 'phase_began' AND json_extract(body, '$.phase') = 'loading' FROM job_event
        WHERE job_id = job.id AND type IN ('started', 'phase_began') ORDER BY seq DESC LIMIT 1) AS is_loading
FROM job INDEXED BY job_active WHERE state IN {_ACTIVE} ORDER BY id
"""

BEGAN = f"""
UPDATE job SET state = 'running'
WHERE id = :id AND attempt = :attempt AND state = 'preparing' AND state IN {states_before(State.RUNNING)}
RETURNING *
"""

_HAS_EPOCH = "EXISTS (SELECT 1 FROM job_event WHERE job_id = job.id AND type = 'epoch_ended')"

#: At once: it waits, is paused, or was never queued. Keeping the best of nothing is a cancel.
CANCEL_WAITING = f"""
UPDATE job SET state = 'cancelled', stop_intent = 'cancel', stopped_by = :by, ended_at = :now
WHERE id = :id AND state IN ('draft', 'queued', 'paused') AND state IN {states_before(State.CANCELLED)}
  AND (:intent = 'cancel' OR (:intent = 'keep_best' AND NOT {_HAS_EPOCH}))
RETURNING *
"""

#: A job that was interrupted or paused, has something to keep, and waits to go on: it will only finish.
FINISH_WAITING = f"""
UPDATE job SET state = 'queued', is_finishing = 1, is_front = 1, stop_intent = 'keep_best', stopped_by = :by,
    run_after = 0
WHERE id = :id AND state IN ('queued', 'paused') AND NOT is_finishing AND :intent = 'keep_best' AND {_HAS_EPOCH}
RETURNING *
"""

PAUSE_QUEUED = f"""
UPDATE job SET state = 'paused', stop_intent = 'pause', stopped_by = :by
WHERE id = :id AND state = 'queued' AND state IN {states_before(State.PAUSED)} AND :intent = 'pause'
RETURNING *
"""

#: A cancel is the stronger word: it also stops a job that finishes. A drained one goes on to finish, for whoever asked.
STOP_ACTIVE = f"""
UPDATE job SET state = 'stopping', stop_intent = :intent,
    stopped_by = CASE WHEN is_finishing AND :intent = 'requeue' THEN stopped_by ELSE :by END
WHERE id = :id AND state IN {states_before(State.STOPPING)}
  AND (:intent = 'cancel' OR :intent = 'requeue' OR NOT is_finishing)
RETURNING *
"""

#: From the weakest to the strongest word; a stop that is under way becomes a stronger one, never a weaker one.
_STRENGTH = "CASE {} WHEN 'requeue' THEN 0 WHEN 'pause' THEN 1 WHEN 'keep_best' THEN 2 ELSE 3 END"
STOP_HARDER = f"""
UPDATE job SET stop_intent = :intent, stopped_by = :by
WHERE id = :id AND state = 'stopping' AND {_STRENGTH.format(":intent")} > {_STRENGTH.format("stop_intent")}
  AND (:intent = 'cancel' OR NOT is_finishing)
RETURNING *
"""

#: Before those that never started, if it was started; else it takes its turn like a new one.
RESUME = f"""
UPDATE job SET state = 'queued', run_after = 0, stop_intent = NULL, stopped_by = NULL,
    turn = CASE WHEN is_front THEN turn ELSE {_next_turn("job.owner_id", "job.priority")} END
WHERE id = :id AND state = 'paused' AND state IN {states_before(State.QUEUED)}
RETURNING *
"""

#: The next round of a job that failed or was cancelled: from its checkpoint, with all its starts to come.
RETRY = f"""
UPDATE job SET state = 'queued', turn = {_next_turn("job.owner_id", "job.priority")},
    round = round + 1, excused = attempt, run_after = 0, is_front = 0,
    stop_intent = NULL, stopped_by = NULL, is_finishing = 0, last_word = NULL, end_reason = NULL, ended_at = NULL
WHERE id = :id AND state IN ('failed', 'cancelled') AND state IN {states_before(State.QUEUED)}
  AND spec IS NOT NULL AND files_deleted_at IS NULL
RETURNING *
"""

#: Among those of the other priority it takes its turn like a new one.
BUMP = f"""
UPDATE job SET priority = :priority,
    turn = CASE WHEN is_front THEN 0 ELSE {_next_turn("job.owner_id", ":priority")} END
WHERE id = :id AND state = 'queued' AND priority != :priority RETURNING *
"""

PIN = f"""
UPDATE job SET pinned_at = CASE WHEN :is_pinned THEN COALESCE(pinned_at, :now) END
WHERE id = :id AND state IN {listed(ENDS | LIVING)} RETURNING *
"""

SHARE = "UPDATE job SET shared_at = CASE WHEN :is_shared THEN COALESCE(shared_at, :now) END WHERE id = :id RETURNING *"

#: End of a start: to an end, to a pause, or back into the line.
SETTLE = {
    state: f"""
UPDATE job SET
    state = '{state}', handle = NULL,
    is_front = {int(state in {State.QUEUED, State.PAUSED})},
    run_after = :run_after,
    is_finishing = COALESCE(:finish, is_finishing),
    micro_batch = COALESCE(:micro_batch, micro_batch),
    excused = excused + :excused,
    last_word = COALESCE(:last_word, last_word),
    end_reason = :reason,
    ended_at = {":now" if state.is_end else "NULL"}
WHERE id = :id AND attempt = :attempt AND state IN {states_before(state)} AND state IN {_ACTIVE}
RETURNING *
"""
    for state in (State.QUEUED, State.PAUSED, State.SUCCEEDED, State.STOPPED, State.FAILED, State.CANCELLED)
}
