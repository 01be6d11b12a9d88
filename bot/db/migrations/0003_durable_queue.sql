-- The queue that never loses a night (docs/reliability.md): more states, slots, history of starts, audit, limits.
-- A CHECK leaves a table only with the table, so `job` is made anew (see 0002), and takes the drafts in: a request that
-- waits for "Go on" is a job that is not queued yet.
PRAGMA defer_foreign_keys = ON;

CREATE TABLE job_before AS SELECT * FROM job;

DROP TABLE job;

CREATE TABLE job (
    id                INTEGER PRIMARY KEY AUTOINCREMENT,
    -- NULL: a study's child, which nobody typed.
    interaction_id    INTEGER UNIQUE,
    guild_id          INTEGER NOT NULL,
    channel_id        INTEGER NOT NULL,
    owner_id          INTEGER NOT NULL,
    dataset_id        INTEGER NOT NULL REFERENCES dataset (id),
    name              TEXT    NOT NULL,
    -- What was asked for, as it was typed (JSON); of a draft, and kept.
    wishes            TEXT,
    -- NULL while it is a draft.
    spec              TEXT,
    state             TEXT    NOT NULL
        CHECK (state IN ('draft', 'queued', 'preparing', 'running', 'stopping', 'paused',
                         'succeeded', 'stopped', 'failed', 'cancelled')),
    -- Order of the line: interrupted ones first, then priority, then turns between people (bot/queue/sql.py).
    is_front          INTEGER NOT NULL DEFAULT 0,
    priority          INTEGER NOT NULL DEFAULT 0 CHECK (priority BETWEEN -1 AND 1),
    turn              INTEGER NOT NULL DEFAULT 0,
    run_after         REAL    NOT NULL DEFAULT 0,
    -- Slots that it needs; 0: a study, whose children need them.
    gpus              INTEGER NOT NULL DEFAULT 1 CHECK (gpus >= 0),
    -- Jobs of its owner that may run at once; NULL: any number.
    max_running       INTEGER,
    stop_intent       TEXT CHECK (stop_intent IN ('cancel', 'keep_best', 'pause', 'requeue')),
    stopped_by        INTEGER,
    -- When the trainer was told to stop; NULL before it.
    stop_sent_at      REAL,
    -- 1: the next start only finishes (`trainer run --finish`).
    is_finishing      INTEGER NOT NULL DEFAULT 0,
    -- Starts (the fence), and those among them that do not count against the limit.
    attempt           INTEGER NOT NULL DEFAULT 0,
    excused           INTEGER NOT NULL DEFAULT 0,
    -- One more with each Retry of a person; a job ends once a round.
    round             INTEGER NOT NULL DEFAULT 1,
    -- Most pictures in memory at once, after it ran out of memory.
    micro_batch       INTEGER,
    -- Rises over all claims.
    claim_number      INTEGER,
    handle            TEXT,
    -- Of events.jsonl: bytes read, and the last event's number.
    read_bytes        INTEGER NOT NULL DEFAULT 0,
    last_seq          INTEGER NOT NULL DEFAULT 0,
    heard_at          REAL,
    -- Newest `step_done`; the others are not kept.
    step              TEXT,
    last_word         TEXT,
    end_reason        TEXT,
    -- Of data and settings: two living jobs of one are duplicates.
    fingerprint       TEXT,
    -- Seconds that it was believed to need when it was queued.
    estimate_s        REAL,
    -- Of a study's child: the study, its name there, its folder below jobs/, and how far it is to get for now.
    parent_id         INTEGER REFERENCES job (id),
    child_name        TEXT,
    folder            TEXT,
    until_epoch       INTEGER,
    -- Of a study: what was ordered (JSON), and its newest step.
    study             TEXT,
    study_step        TEXT,
    pinned_at         REAL,
    shared_at         REAL,
    files_deleted_at  REAL,
    created_at        REAL    NOT NULL,
    started_at        REAL,
    ended_at          REAL,
    CHECK (read_bytes >= 0 AND excused <= attempt),
    CHECK (spec IS NOT NULL OR state IN ('draft', 'cancelled')),
    UNIQUE (parent_id, child_name)
) STRICT;

INSERT INTO job (id, interaction_id, guild_id, channel_id, owner_id, dataset_id, name, spec, state, stop_intent,
    stopped_by, stop_sent_at, is_finishing, is_front, attempt, excused, claim_number, handle, read_bytes, last_seq,
    heard_at, step, last_word, end_reason, created_at, started_at, ended_at, turn)
SELECT id, interaction_id, guild_id, channel_id, owner_id, dataset_id, name, spec, state, stop_intent,
    stopped_by, stop_sent_at, is_finishing, is_front, attempt, excused, claim_number, handle, read_bytes, last_seq,
    heard_at, step, last_word, end_reason, created_at, started_at, ended_at,
    ROW_NUMBER() OVER (PARTITION BY owner_id, state = 'queued' ORDER BY id) * (state = 'queued')
FROM job_before;

INSERT INTO job (interaction_id, guild_id, channel_id, owner_id, dataset_id, name, wishes, state, created_at)
SELECT draft.interaction_id, draft.guild_id, draft.channel_id, draft.owner_id, dataset_id, dataset.name, wishes,
    'draft', draft.created_at
FROM draft JOIN dataset ON dataset.id = dataset_id
WHERE state != 'cancelled' AND NOT EXISTS (SELECT 1 FROM job_before WHERE job_before.interaction_id = draft.interaction_id);

DROP TABLE job_before;

DROP TABLE draft;

CREATE INDEX job_by_state ON job (state, id);
CREATE INDEX job_by_guild ON job (guild_id, id);
CREATE INDEX job_by_owner ON job (owner_id, state);
-- The last turn in line of each person, by priority.
CREATE INDEX job_turns ON job (owner_id, priority, turn) WHERE state = 'queued' AND gpus > 0 AND NOT is_front;
CREATE INDEX job_by_parent ON job (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX job_by_fingerprint ON job (fingerprint) WHERE fingerprint IS NOT NULL;
-- The line, in its order.
CREATE INDEX job_line ON job (is_front DESC, priority DESC, turn, id) WHERE state = 'queued';
CREATE INDEX job_study_line ON job (is_front DESC, priority DESC, turn, id) WHERE state = 'queued' AND gpus = 0;
CREATE INDEX job_claims ON job (claim_number) WHERE claim_number IS NOT NULL;
CREATE INDEX job_active ON job (owner_id, gpus) WHERE state IN ('preparing', 'running', 'stopping');

-- The last turn of each person that was served, by priority; it never goes back, whatever becomes of the job.
CREATE TABLE served (
    priority INTEGER NOT NULL,
    owner_id INTEGER NOT NULL,
    turn     INTEGER NOT NULL,
    PRIMARY KEY (priority, owner_id)
) STRICT, WITHOUT ROWID;

-- The turn that is being served: the last of anybody.
CREATE INDEX served_turns ON served (priority, turn);

-- Where trainings run: one row for each GPU, or for each place that the configuration names.
CREATE TABLE slot (
    id           TEXT PRIMARY KEY,
    -- As in CUDA_VISIBLE_DEVICES; empty: whatever the machine or the cluster gives.
    device       TEXT    NOT NULL DEFAULT '',
    name         TEXT    NOT NULL,
    memory_bytes INTEGER,
    position     INTEGER NOT NULL,
    -- 0: gone from the machine or switched off; a job that holds it keeps it.
    is_enabled   INTEGER NOT NULL DEFAULT 1,
    -- 1: switched off, also over restarts.
    is_off       INTEGER NOT NULL DEFAULT 0,
    job_id       INTEGER REFERENCES job (id),
    attempt      INTEGER,
    CHECK ((job_id IS NULL) = (attempt IS NULL))
) STRICT, WITHOUT ROWID;

CREATE INDEX slot_of_job ON slot (job_id) WHERE job_id IS NOT NULL;

-- Every start of a job: when, where, and how it ended.
CREATE TABLE attempt (
    job_id     INTEGER NOT NULL REFERENCES job (id),
    attempt    INTEGER NOT NULL,
    guild_id   INTEGER NOT NULL,
    owner_id   INTEGER NOT NULL,
    gpus       INTEGER NOT NULL,
    -- Names of the slots, with commas between them.
    slots      TEXT    NOT NULL,
    started_at REAL    NOT NULL,
    ended_at   REAL,
    -- The state that followed, and why.
    outcome    TEXT,
    why        TEXT,
    PRIMARY KEY (job_id, attempt)
) STRICT, WITHOUT ROWID;

CREATE INDEX attempt_by_owner ON attempt (owner_id, started_at);
CREATE INDEX attempt_by_start ON attempt (started_at);

-- Who did what, when, and why; never changed and never deleted.
CREATE TABLE audit (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    at       REAL NOT NULL,
    -- NULL: the queue, a limit, the machine.
    job_id   INTEGER,
    guild_id INTEGER,
    -- NULL: the bot itself.
    actor_id INTEGER,
    verb     TEXT NOT NULL,
    before   TEXT,
    after    TEXT,
    why      TEXT
) STRICT;

CREATE INDEX audit_of_job ON audit (job_id, id);

-- What the members of a role may ask for; NULL: as the configuration says.
CREATE TABLE role_limit (
    guild_id           INTEGER NOT NULL,
    role_id            INTEGER NOT NULL,
    max_waiting        INTEGER,
    max_running        INTEGER,
    max_epochs         INTEGER,
    max_dataset_mib    INTEGER,
    gpu_hours_per_week REAL,
    PRIMARY KEY (guild_id, role_id)
) STRICT, WITHOUT ROWID;

-- How long finished jobs took, for estimates.
CREATE TABLE measure (
    job_id     INTEGER PRIMARY KEY REFERENCES job (id),
    -- From the most to the least alike: base, method, resolution, batch, device (`bot/queue/estimates.py`).
    signature  TEXT    NOT NULL,
    steps      INTEGER NOT NULL,
    seconds    REAL    NOT NULL,
    -- What was believed when it was queued.
    estimate_s REAL,
    ended_at   REAL    NOT NULL
) STRICT;

CREATE INDEX measure_by_signature ON measure (signature, ended_at);

-- What people hand in, from before its download until they are answered; what a bot that ended left, the next one
-- brings to its end.
CREATE TABLE upload (
    interaction_id INTEGER PRIMARY KEY,
    guild_id       INTEGER NOT NULL,
    channel_id     INTEGER NOT NULL,
    owner_id       INTEGER NOT NULL,
    kind           TEXT    NOT NULL CHECK (kind IN ('finetune', 'import', 'add')),
    -- What was asked for beside the files (JSON).
    wishes         TEXT    NOT NULL,
    -- 1: to be queued without a question.
    is_at_once     INTEGER NOT NULL,
    -- The dataset that they are added to.
    dataset_id     INTEGER REFERENCES dataset (id),
    -- What to call the files to their owner.
    title          TEXT    NOT NULL,
    -- Once they are on the disk: their content, and name, SHA-256 and bytes of each (JSON).
    sha256         TEXT,
    files          TEXT,
    -- 1: they are in the dataset that they were to be added to.
    is_done        INTEGER NOT NULL DEFAULT 0,
    created_at     REAL    NOT NULL,
    CHECK ((sha256 IS NULL) = (files IS NULL)),
    CHECK ((kind = 'add') = (dataset_id IS NOT NULL))
) STRICT;
