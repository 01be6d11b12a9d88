"""The queue's SQL: the order of the queue, every transition as one guarded UPDATE, and the rows of jobs."""

from __future__ import annotations

from bot.queue.domain.job import ACTIVE, ENDS, LIVING, TRANSITIONS, State
from bot.queue.domain.rules import MAX_RETRY_PAUSE_S


def listed(states: frozenset[State]) -> str:
    """Return states as an SQL list: `('running', 'stopping')`."""
    return "(" + ", ".join(f"'{state}'" for state in State if state in states) + ")"


def states_before(state: State) -> str:
    """Return the states from which `state` may be reached, as an SQL list."""
    return listed(frozenset(before for before, after in TRANSITIONS.items() if state in after))


_ACTIVE = listed(ACTIVE)

#: The order of the queue: samplings (`sample` sorts before `train`), then interrupted jobs, then priority, then owners
#: round-robin (index `job_queue`).
#:
#: A job gets its `turn` when it is queued: one more than its owner's last of that kind and priority, queued or served,
#: and no less than the turn that is being served there (start-time fair queueing, Goyal, Vin and Cheng 1996, with jobs
#: of one size). So every owner's first job comes before anyone's second, a newcomer is not sent to the end, and the
#: order is a plain index: claims, positions and the board read the same rows in the same order, whatever the number of
#: jobs. A study takes no turn; its children do. `turn` means nothing for a job that is not queued; `served` keeps what
#: was served.
ORDER = "kind, is_front DESC, priority DESC, turn, id"

#: May start now, if a slot is free: its time has come, and its owner runs fewer jobs of its kind than they may. A
#: back-off longer than the longest one was set before the clock went back, and is over.
READY = f"""(run_after <= :now OR (attempt > 0 AND run_after > :now + {MAX_RETRY_PAUSE_S}))
AND (max_running IS NULL OR max_running > (
    SELECT COUNT(*) FROM job AS other INDEXED BY job_active
    WHERE other.owner_id = job.owner_id AND other.gpus > 0 AND other.kind = job.kind
        AND other.state IN {_ACTIVE}))"""

#: How many jobs of a job's owner and kind run, and how many may while it is queued.
OWNER_RUNS = f"""
SELECT max_running, (SELECT COUNT(*) FROM job AS other INDEXED BY job_active
    WHERE other.owner_id = job.owner_id AND other.gpus > 0 AND other.kind = job.kind AND other.state IN {_ACTIVE})
    AS runs
FROM job WHERE id = ?
"""

QUEUE = f"SELECT id FROM job INDEXED BY job_queue WHERE state = 'queued' ORDER BY {ORDER}"

_AHEAD = "SELECT COUNT(*) FROM job AS other INDEXED BY job_queue WHERE other.state = 'queued' AND other.kind"

#: Position of a queued job: those before it, and itself. Five ranges of the index; one comparison of rows would visit
#: the whole queue. For a condition on `me.id`.
POSITIONS = f"""
SELECT me.id, 1
    + ({_AHEAD} < me.kind)
    + ({_AHEAD} = me.kind AND other.is_front > me.is_front)
    + ({_AHEAD} = me.kind AND other.is_front = me.is_front AND other.priority > me.priority)
    + ({_AHEAD} = me.kind AND other.is_front = me.is_front AND other.priority = me.priority AND other.turn < me.turn)
    + ({_AHEAD} = me.kind AND other.is_front = me.is_front AND other.priority = me.priority AND other.turn = me.turn
       AND other.id < me.id)
    AS position
FROM job AS me WHERE me.state = 'queued' AND me.id"""

#: The first job of a kind that may start. A study (0 GPUs) never waits for a slot. A job that needs several slots is
#: not overtaken by those that need fewer, or it would wait forever.
FIRST_READY = f"""
SELECT * FROM job INDEXED BY job_queue WHERE state = 'queued' AND kind = :kind AND {READY} ORDER BY {ORDER} LIMIT 1
"""

#: How many of the newest claims in a row were samplings, up to `:most`.
SAMPLINGS_IN_A_ROW = """
WITH newest AS (
    SELECT kind, claim_number FROM job INDEXED BY job_claims
    WHERE claim_number IS NOT NULL AND gpus > 0 ORDER BY claim_number DESC LIMIT :most)
SELECT COUNT(*) AS samplings FROM newest WHERE kind = 'sample' AND claim_number > COALESCE(
    (SELECT MAX(claim_number) FROM newest WHERE kind = 'train'), 0)
"""

#: A sampling that runs.
RUNNING_SAMPLING = f"SELECT 1 FROM job INDEXED BY job_active WHERE kind = 'sample' AND state IN {_ACTIVE}"

FIRST_READY_STUDY = f"""
SELECT * FROM job INDEXED BY job_study_queue WHERE state = 'queued' AND gpus = 0 AND {READY} ORDER BY {ORDER} LIMIT 1
"""

#: Slots that may be taken: the free ones, less the jobs that may run on any GPU (their slot had no device and is gone).
FREE_SLOTS = """
SELECT (SELECT COUNT(*) FROM slot WHERE is_enabled AND job_id IS NULL)
    - (SELECT COUNT(*) FROM slot WHERE NOT is_enabled AND job_id IS NOT NULL AND device = '') AS free
"""

CLAIM = f"""
UPDATE job SET
    state = 'preparing', attempt = attempt + 1, is_front = 0, handle = NULL, stop_sent_at = NULL, run_after = 0,
    stop_intent = CASE WHEN is_finishing THEN 'keep_best' END,
    stopped_by = CASE WHEN is_finishing THEN stopped_by END,
    claim_number = (SELECT COALESCE(MAX(claim_number), 0) + 1 FROM job WHERE claim_number IS NOT NULL),
    started_at = COALESCE(started_at, :now), last_event_at = NULL, end_reason = NULL
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

#: Why an attempt is killed, before it has ended.
SET_KILL_REASON = """
UPDATE attempt SET end_reason = :reason WHERE job_id = :id AND attempt = :attempt AND ended_at IS NULL
"""

MARK_STOP_SENT = f"""
UPDATE job SET stop_sent_at = :now WHERE id = :id AND attempt = :attempt AND state IN {_ACTIVE}
"""

KILL_REASON = "SELECT end_reason FROM attempt WHERE job_id = ? AND attempt = ? AND end_reason IS NOT NULL"

END_ATTEMPT = """
UPDATE attempt SET ended_at = :now, outcome = :outcome, end_reason = :reason
WHERE job_id = :id AND attempt = :attempt AND ended_at IS NULL
"""


def _next_turn(owner_id: str, priority: str, kind: str = "job.kind") -> str:
    """Return SQL for the turn of an owner's next job: one after their last, and no less than what is being served."""
    return f"""MAX(
    COALESCE((SELECT MAX(other.turn) FROM job AS other INDEXED BY job_turns
              WHERE other.owner_id = {owner_id} AND other.kind = {kind} AND other.priority = {priority}
                AND other.state = 'queued' AND other.gpus > 0 AND NOT other.is_front), 0) + 1,
    COALESCE((SELECT served.turn FROM served
              WHERE served.kind = {kind} AND served.priority = {priority} AND served.owner_id = {owner_id}), 0) + 1,
    COALESCE((SELECT MAX(served.turn) FROM served
              WHERE served.kind = {kind} AND served.priority = {priority}), 0))"""


NEXT_TURN = f"SELECT {_next_turn(':owner_id', ':priority', ':kind')}"

#: Usage is never refunded: else cancel and Retry, or another priority, would let a user jump the queue.
SERVE = """
INSERT INTO served (kind, priority, owner_id, turn) VALUES (:kind, :priority, :owner_id, :turn)
ON CONFLICT (kind, priority, owner_id) DO UPDATE SET turn = MAX(turn, excluded.turn)
"""

#: An owner's later jobs move up when one of theirs leaves the queue unserved.
MOVE_UP = """
UPDATE job SET turn = turn - 1
WHERE owner_id = :owner_id AND kind = :kind AND priority = :priority AND gpus > 0 AND turn > :turn
    AND state = 'queued' AND NOT is_front
"""

SUBMIT = """
INSERT INTO job (kind, interaction_id, guild_id, channel_id, owner_id, dataset_id, source_id, name, spec, state,
    priority, turn, gpus, run_after, max_running, max_waiting, fingerprint, estimate_s, study, parent_id, child_name,
    folder, until_epoch, created_at)
VALUES (:kind, :interaction_id, :guild_id, :channel_id, :owner_id, :dataset_id, :source_id, :name, :spec, 'queued',
    :priority, :turn, :gpus, :run_after, :max_running, :max_waiting, :fingerprint, :estimate_s, :study, :parent_id,
    :child_name, :folder, :until_epoch, :now)
RETURNING *
"""

#: Interrupted jobs were started before and do not count. Children of a study do, each as a job. Of trainings and
#: samplings, each kind has its own number.
COUNT_QUEUED = """
SELECT COUNT(*) AS jobs, COUNT(*) FILTER (WHERE parent_id = :study_id) AS children FROM job
WHERE owner_id = :owner_id AND state = 'queued' AND kind = :kind AND attempt = 0 AND guild_id = :guild_id
"""

#: Samplings of a server that wait.
COUNT_SAMPLINGS = """
SELECT COUNT(*) AS jobs FROM job INDEXED BY job_queue
WHERE state = 'queued' AND kind = 'sample' AND guild_id = :guild_id
"""

DUPLICATE = f"""
SELECT * FROM job WHERE fingerprint = :fingerprint AND guild_id = :guild_id AND parent_id IS NULL
    AND state IN {listed(LIVING | {State.SUCCEEDED})}
ORDER BY state = 'succeeded', id DESC LIMIT 1
"""

_JOB_COLUMNS = """
job.*, (SELECT dataset.name FROM dataset WHERE dataset.id = job.dataset_id) AS dataset_name,
    (SELECT attempt.slots FROM attempt WHERE attempt.job_id = job.id AND attempt.attempt = job.attempt) AS slot_names,
    (SELECT json_array(dataset.owner_id, json(dataset.guests)) FROM dataset WHERE is_private AND dataset.id = COALESCE(
        job.dataset_id, (SELECT source.dataset_id FROM job AS source WHERE source.id = job.source_id))) AS private_to
"""

#: Rows of `Job.from_row`; append a condition.
JOBS = f"SELECT {_JOB_COLUMNS} FROM job WHERE "

#: Jobs of a server that have not ended, by an index of these; for a condition on their state.
_LIVING = (
    "FROM job INDEXED BY job_living WHERE guild_id = :guild_id AND parent_id IS NULL AND ended_at IS NULL AND state"
)

COUNT_LIVING = f"SELECT state, COUNT(*) AS jobs {_LIVING} IN {listed(LIVING)} GROUP BY state"

#: Jobs of a server that run or are paused, and the first ones of its queue.
BOARD = f"""
WITH shown (id) AS (
    SELECT * FROM (SELECT id {_LIVING} IN {_ACTIVE} ORDER BY id LIMIT :most)
    UNION ALL
    SELECT * FROM (SELECT id FROM job INDEXED BY job_queue
        WHERE state = 'queued' AND guild_id = :guild_id AND parent_id IS NULL ORDER BY {ORDER} LIMIT :most OFFSET :skip)
    UNION ALL
    SELECT * FROM (SELECT id {_LIVING} = 'paused' ORDER BY id LIMIT :most)
)
SELECT {_JOB_COLUMNS} FROM shown JOIN job USING (id)
ORDER BY state = 'queued', CASE state WHEN 'queued' THEN kind END, CASE state WHEN 'queued' THEN -is_front END,
    CASE state WHEN 'queued' THEN -priority END, CASE state WHEN 'queued' THEN turn END, id
"""

_MATCHES = "(instr(CAST(id AS TEXT), :text) = 1 OR instr(name, lower(:text)) > 0)"


def search(states: frozenset[State]) -> str:
    """Return SQL for jobs of a server in `states` whose ID or name matches a text; those that have not ended first."""
    ours = "(:owner_id IS NULL OR owner_id = :owner_id) AND (:kind IS NULL OR kind = :kind)"
    wanted = f"{_MATCHES} AND {ours} ORDER BY id DESC LIMIT :limit"
    parts = []
    # Only the parts that are needed: with no states at all, SQLite cannot use the index that it is told to use.
    if living := states & LIVING:
        parts.append(f"SELECT * FROM (SELECT id, 0 {_LIVING} IN {listed(living)} AND {wanted})")
    if ended := states & ENDS:
        parts.append(
            "SELECT * FROM (SELECT id, 1 FROM job INDEXED BY job_by_guild WHERE guild_id = :guild_id "
            f"AND parent_id IS NULL AND state IN {listed(ended)} AND {wanted})"
        )
    return f"""
WITH found (id, has_ended) AS ({" UNION ALL ".join(parts)})
SELECT {_JOB_COLUMNS} FROM found JOIN job USING (id) ORDER BY has_ended, id DESC LIMIT :limit
"""


_ACTIVE_COLUMNS = f"""
{_JOB_COLUMNS}, (SELECT group_concat(device, ',') FROM (
    SELECT device FROM slot WHERE slot.job_id = job.id AND device != '' ORDER BY position)) AS devices,
    (SELECT started_at FROM attempt WHERE attempt.job_id = job.id AND attempt.attempt = job.attempt) AS claimed_at
"""

#: Rows of `ActiveJob.from_row`.
ACTIVE_JOBS = f"SELECT {_ACTIVE_COLUMNS} FROM job INDEXED BY job_active WHERE state IN {_ACTIVE} ORDER BY id"

#: One of them, by ID and attempt (the fence).
ACTIVE_JOB = f"SELECT {_ACTIVE_COLUMNS} FROM job WHERE id = ? AND attempt = ? AND state IN {_ACTIVE}"

#: When the queue moves, the cards at its front are redrawn. Those far behind change little, and Discord's rate limits
#: are shared by all.
NEXT_QUEUED = f"""
SELECT id, channel_id FROM job INDEXED BY job_queue WHERE state = 'queued' AND id != ? AND parent_id IS NULL
ORDER BY {ORDER} LIMIT 20
"""

INGESTED = """
UPDATE job SET read_bytes = MAX(read_bytes, :read_bytes), last_seq = :last_seq, step = COALESCE(:step, step),
    progress = COALESCE(:progress, progress), last_event_at = :now
WHERE id = :id
"""

BEGAN = f"""
UPDATE job SET state = 'running'
WHERE id = :id AND attempt = :attempt AND state = 'preparing' AND state IN {states_before(State.RUNNING)}
RETURNING *
"""

_HAS_EPOCH = "EXISTS (SELECT 1 FROM job_event WHERE job_id = job.id AND type = 'epoch_ended')"

#: At once: it is queued or paused. To keep the best of nothing is a cancel.
CANCEL_WAITING = f"""
UPDATE job SET state = 'cancelled', stop_intent = 'cancel', stopped_by = :by, ended_at = :now
WHERE id = :id AND state IN ('queued', 'paused') AND state IN {states_before(State.CANCELLED)}
  AND (:intent = 'cancel' OR (:intent = 'keep_best' AND NOT {_HAS_EPOCH}))
RETURNING *
"""

#: A queued or paused job that has an epoch to keep: its next attempt only finishes.
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

#: Cancel overrides finish. A job that is drained while it finishes continues to finish, for the user who asked for it.
STOP_ACTIVE = f"""
UPDATE job SET state = 'stopping', stop_intent = :intent,
    stopped_by = CASE WHEN is_finishing AND :intent = 'requeue' THEN stopped_by ELSE :by END
WHERE id = :id AND state IN {states_before(State.STOPPING)}
  AND (:intent = 'cancel' OR :intent = 'requeue' OR NOT is_finishing)
RETURNING *
"""

#: From the weakest to the strongest intent; a stop that is under way only ever becomes a stronger one.
_STRENGTH = "CASE {} WHEN 'requeue' THEN 0 WHEN 'pause' THEN 1 WHEN 'keep_best' THEN 2 ELSE 3 END"
STOP_HARDER = f"""
UPDATE job SET stop_intent = :intent, stopped_by = :by
WHERE id = :id AND state = 'stopping' AND {_STRENGTH.format(":intent")} > {_STRENGTH.format("stop_intent")}
  AND (:intent = 'cancel' OR NOT is_finishing)
RETURNING *
"""

#: Before jobs that never started, if it was started; else with a turn like a new job.
RESUME = f"""
UPDATE job SET state = 'queued', run_after = 0, stop_intent = NULL, stopped_by = NULL,
    turn = CASE WHEN is_front THEN turn ELSE {_next_turn("job.owner_id", "job.priority")} END
WHERE id = :id AND state = 'paused' AND state IN {states_before(State.QUEUED)}
RETURNING *
"""

#: The next round of a job that has ended: from its checkpoint, with all its attempts again.
_NEXT_ROUND = f"""
    state = 'queued', turn = {_next_turn("job.owner_id", "job.priority")},
    round = round + 1, uncounted = attempt, run_after = 0, is_front = 0,
    stop_intent = NULL, stopped_by = NULL, is_finishing = 0, terminal_event = NULL, end_reason = NULL, ended_at = NULL
"""

RETRY = f"""
UPDATE job SET {_NEXT_ROUND}
WHERE id = :id AND state IN ('failed', 'cancelled') AND state IN {states_before(State.QUEUED)}
  AND files_deleted_at IS NULL
RETURNING *
"""

#: With more epochs; `before` is the spec that these were added to.
EXTEND = f"""
UPDATE job SET {_NEXT_ROUND}, chosen_epoch = NULL, spec = :spec, fingerprint = :fingerprint, estimate_s = :estimate_s
WHERE id = :id AND state IN ('succeeded', 'stopped') AND state IN {states_before(State.QUEUED)}
  AND kind = 'train' AND spec = :before AND study IS NULL AND parent_id IS NULL AND files_deleted_at IS NULL
RETURNING *
"""

#: Its next attempt only finishes, with this epoch in place of the best one.
CHOOSE_EPOCH = f"""
UPDATE job SET {_NEXT_ROUND}, is_finishing = 1, is_front = 1, chosen_epoch = :epoch
WHERE id = :id AND state IN ('succeeded', 'stopped') AND state IN {states_before(State.QUEUED)}
  AND kind = 'train' AND study IS NULL AND parent_id IS NULL AND files_deleted_at IS NULL
RETURNING *
"""

#: Within its new priority it gets a turn like a new job.
BUMP = f"""
UPDATE job SET priority = :priority,
    turn = CASE WHEN is_front THEN 0 ELSE {_next_turn("job.owner_id", ":priority")} END
WHERE id = :id AND state = 'queued' AND priority != :priority RETURNING *
"""

PIN = f"""
UPDATE job SET pinned_at = CASE WHEN :is_pinned THEN COALESCE(pinned_at, :now) END
WHERE id = :id AND state IN {listed(ENDS | LIVING)} RETURNING *
"""

NOTE = "UPDATE job SET note = :note WHERE id = :id RETURNING *"

SHARE = "UPDATE job SET shared_at = CASE WHEN :is_shared THEN COALESCE(shared_at, :now) END WHERE id = :id RETURNING *"

#: The end of an attempt: to an end, to a pause, or back into the queue.
SETTLE = {
    state: f"""
UPDATE job SET
    state = '{state}', handle = NULL,
    is_front = {int(state in {State.QUEUED, State.PAUSED})},
    run_after = :run_after,
    is_finishing = COALESCE(:finish, is_finishing),
    micro_batch = COALESCE(:micro_batch, micro_batch),
    uncounted = uncounted + :uncounted,
    terminal_event = COALESCE(:terminal_event, terminal_event),
    end_reason = :reason,
    ended_at = {":now" if state.is_end else "NULL"}
WHERE id = :id AND attempt = :attempt AND state IN {states_before(state)} AND state IN {_ACTIVE}
RETURNING *
"""
    for state in (State.QUEUED, State.PAUSED, State.SUCCEEDED, State.STOPPED, State.FAILED, State.CANCELLED)
}
