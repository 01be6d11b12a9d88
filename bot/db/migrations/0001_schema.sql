-- Times are seconds since the epoch, UTC. IDs of guilds, channels, users and messages are Discord's.

-- Values that the bot keeps between two runs (`bot.db.read_setting`).
CREATE TABLE setting (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- A dataset's prepared folder never changes: a decision creates the next revision (docs/adr/0005). A deleted dataset
-- keeps its row, since jobs refer to it, and frees its name.
CREATE TABLE dataset (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    guild_id       INTEGER NOT NULL,
    owner_id       INTEGER NOT NULL,
    name           TEXT    NOT NULL,
    -- Of the uploaded files; names the folder.
    sha256         TEXT    NOT NULL,
    -- All of these files together.
    bytes          INTEGER NOT NULL DEFAULT 0,
    -- The folder below it that `trainer prepare` wrote; digest, counts and summary are of it.
    revision       TEXT    NOT NULL DEFAULT 'prepared',
    -- The version of the report in `revision`: one of another version is prepared again (0: not known).
    report_version INTEGER NOT NULL DEFAULT 0,
    -- `<sha256>/<revision>` of the dataset that this one extends and whose split it keeps; or empty.
    earlier        TEXT    NOT NULL DEFAULT '',
    -- All decisions (`trainer/protocol/edits.py`), also those that are in no revision yet.
    edits          TEXT    NOT NULL DEFAULT '{}',
    -- Of what training sees (`DatasetReport.digest`).
    digest         TEXT    NOT NULL,
    counts         TEXT    NOT NULL,
    summary        TEXT    NOT NULL,
    -- 1: for its owner, the managers, and the members of `guests` (JSON), who may train on it too.
    is_private     INTEGER NOT NULL DEFAULT 0,
    guests         TEXT    NOT NULL DEFAULT '[]',
    created_at     REAL    NOT NULL,
    deleted_at     REAL
) STRICT;

CREATE UNIQUE INDEX dataset_name ON dataset (guild_id, name) WHERE deleted_at IS NULL;
CREATE INDEX dataset_by_owner ON dataset (owner_id, bytes) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX dataset_content ON dataset (guild_id, sha256) WHERE deleted_at IS NULL;

-- Requests that wait for [Start training] (`bot.queue.store.draft_store`). The job of one has its interaction; numbers
-- of jobs have no holes.
CREATE TABLE draft (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    interaction_id INTEGER NOT NULL UNIQUE,
    guild_id       INTEGER NOT NULL,
    channel_id     INTEGER NOT NULL,
    owner_id       INTEGER NOT NULL,
    dataset_id     INTEGER NOT NULL REFERENCES dataset (id),
    -- As it was typed (JSON).
    request        TEXT    NOT NULL,
    cancelled_at   REAL,
    created_at     REAL    NOT NULL
) STRICT;

CREATE INDEX draft_by_owner ON draft (owner_id, dataset_id);

-- Jobs, from the queue to the end (`bot.queue.domain.job`).
CREATE TABLE job (
    id                INTEGER PRIMARY KEY AUTOINCREMENT,
    -- A sampling draws with what a training learned; it goes before trainings that wait.
    kind              TEXT    NOT NULL DEFAULT 'train' CHECK (kind IN ('sample', 'train')),
    -- NULL: a child of a study.
    interaction_id    INTEGER UNIQUE,
    guild_id          INTEGER NOT NULL,
    channel_id        INTEGER NOT NULL,
    owner_id          INTEGER NOT NULL,
    -- NULL: a sampling of a base model, or of a file from elsewhere.
    dataset_id        INTEGER REFERENCES dataset (id),
    -- The training whose results it draws with, or starts from; its files are kept until this job has ended.
    source_id         INTEGER REFERENCES job (id),
    name              TEXT    NOT NULL,
    -- `Spec`, or `SamplingSpec`.
    spec              TEXT    NOT NULL,
    state             TEXT    NOT NULL
        CHECK (state IN ('queued', 'preparing', 'running', 'stopping', 'paused',
                         'succeeded', 'stopped', 'failed', 'cancelled')),
    -- Order of the queue: samplings, then interrupted jobs, then priority, then owners round-robin
    -- (bot/queue/store/job_sql.py).
    is_front          INTEGER NOT NULL DEFAULT 0,
    priority          INTEGER NOT NULL DEFAULT 0 CHECK (priority BETWEEN -1 AND 1),
    turn              INTEGER NOT NULL DEFAULT 0,
    run_after         REAL    NOT NULL DEFAULT 0,
    -- Slots that it needs; 0: a study, whose children need them.
    gpus              INTEGER NOT NULL DEFAULT 1 CHECK (gpus >= 0),
    -- Jobs of its owner that may run at once; NULL: any number.
    max_running       INTEGER,
    -- … and that may be queued at once, children of studies included; NULL: the configured number.
    max_waiting       INTEGER,
    stop_intent       TEXT CHECK (stop_intent IN ('cancel', 'keep_best', 'pause', 'requeue')),
    stopped_by        INTEGER,
    -- When the trainer was asked to stop, or killed because it hung.
    stop_sent_at      REAL,
    -- 1: the next attempt only finishes (`trainer run --finish`).
    is_finishing      INTEGER NOT NULL DEFAULT 0,
    -- The epoch that a person made the result; NULL: the best one.
    chosen_epoch      INTEGER,
    -- Number of the newest attempt (the fence), and how many do not count against the limit.
    attempt           INTEGER NOT NULL DEFAULT 0,
    uncounted         INTEGER NOT NULL DEFAULT 0,
    -- One more with each Retry; a job ends once a round.
    round             INTEGER NOT NULL DEFAULT 1,
    -- Upper limit of the images in memory at once, after it ran out of memory.
    micro_batch       INTEGER,
    -- Rises over all claims.
    claim_number      INTEGER,
    handle            TEXT,
    -- Of events.jsonl: bytes read, and `seq` of the last event.
    read_bytes        INTEGER NOT NULL DEFAULT 0,
    last_seq          INTEGER NOT NULL DEFAULT 0,
    last_event_at     REAL,
    -- The newest `step_done`; the others are not stored.
    step              TEXT,
    -- Folded from the events, `step` excluded (`Progress`).
    progress          TEXT    NOT NULL DEFAULT '{}',
    terminal_event    TEXT,
    -- `EndReason`.
    end_reason        TEXT,
    -- Of data and settings: two jobs that have not ended and share one are duplicates.
    fingerprint       TEXT,
    -- Expected seconds, as estimated when it was queued.
    estimate_s        REAL,
    -- Of a study's child: the study, its name there, its folder below jobs/, and its goal for now.
    parent_id         INTEGER REFERENCES job (id),
    child_name        TEXT,
    folder            TEXT,
    until_epoch       INTEGER,
    -- Of a study: `StudyRequest` and the newest `StudyStep`.
    study             TEXT,
    study_step        TEXT,
    -- What a person wrote on it.
    note              TEXT    NOT NULL DEFAULT '',
    pinned_at         REAL,
    shared_at         REAL,
    files_deleted_at  REAL,
    created_at        REAL    NOT NULL,
    started_at        REAL,
    ended_at          REAL,
    CHECK (read_bytes >= 0 AND uncounted <= attempt),
    CHECK (dataset_id IS NOT NULL OR kind = 'sample'),
    UNIQUE (parent_id, child_name)
) STRICT;

CREATE INDEX job_by_state ON job (state, id);
-- With what a search compares: it reads no row but those that it finds.
CREATE INDEX job_by_guild ON job (guild_id, id, name, parent_id, state, kind, owner_id);
CREATE INDEX job_living ON job (guild_id, state, id, name, parent_id, ended_at, kind, owner_id)
    WHERE parent_id IS NULL AND ended_at IS NULL;
CREATE INDEX job_by_owner ON job (owner_id, state);
CREATE INDEX job_by_parent ON job (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX job_by_fingerprint ON job (fingerprint) WHERE fingerprint IS NOT NULL;
-- The queue, in its order, and whose jobs these are.
CREATE INDEX job_queue ON job (kind, is_front DESC, priority DESC, turn, id, guild_id, parent_id)
    WHERE state = 'queued';
CREATE INDEX job_study_queue ON job (kind, is_front DESC, priority DESC, turn, id) WHERE state = 'queued' AND gpus = 0;
-- The last queued turn of each owner, by kind and priority.
CREATE INDEX job_turns ON job (owner_id, kind, priority, turn) WHERE state = 'queued' AND gpus > 0 AND NOT is_front;
CREATE INDEX job_claims ON job (claim_number, kind, gpus) WHERE claim_number IS NOT NULL;
CREATE INDEX job_active ON job (owner_id, gpus, kind) WHERE state IN ('preparing', 'running', 'stopping');
-- Samplings of a training.
CREATE INDEX job_by_source ON job (source_id) WHERE source_id IS NOT NULL;

-- Which model of a drawn sampling a person likes best: its index in `SamplingSpec.models`.
CREATE TABLE sample_vote (
    job_id  INTEGER NOT NULL REFERENCES job (id),
    user_id INTEGER NOT NULL,
    -- Of all models the best one, or of all images; `number` is its index.
    ballot  TEXT    NOT NULL CHECK (ballot IN ('model', 'image')),
    number  INTEGER NOT NULL,
    PRIMARY KEY (job_id, user_id, ballot)
) STRICT, WITHOUT ROWID;

-- Presets that members saved; `content` is `trainer.protocol.presets.Preset`.
CREATE TABLE preset (
    id         INTEGER PRIMARY KEY,
    guild_id   INTEGER NOT NULL,
    owner_id   INTEGER NOT NULL,
    name       TEXT    NOT NULL,
    -- Label of its base model; empty: it brings its own.
    base       TEXT    NOT NULL,
    content    TEXT    NOT NULL,
    created_at REAL    NOT NULL,
    UNIQUE (guild_id, name)
) STRICT;

-- Pictures that members show to their server (`bot.queue.store.gallery_store`); each is a file of a job, which keeps its
-- files as long as one of them is shown (`job.shared_at`).
CREATE TABLE gallery_post (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    guild_id     INTEGER NOT NULL,
    job_id       INTEGER NOT NULL REFERENCES job (id),
    owner_id     INTEGER NOT NULL,
    -- The training whose weights drew it; NULL: none of this bot's.
    model_job_id INTEGER REFERENCES job (id),
    -- Below the job's folder, and what it shows (`Picture`, JSON).
    path         TEXT    NOT NULL,
    picture      TEXT    NOT NULL,
    -- Name of the base model.
    base         TEXT    NOT NULL,
    -- Words of its owner (JSON).
    tags         TEXT    NOT NULL DEFAULT '[]',
    likes        INTEGER NOT NULL DEFAULT 0 CHECK (likes >= 0),
    created_at   REAL    NOT NULL,
    withdrawn_at REAL
) STRICT;

CREATE UNIQUE INDEX gallery_picture ON gallery_post (job_id, path) WHERE withdrawn_at IS NULL;
CREATE INDEX gallery_of_model ON gallery_post (model_job_id) WHERE withdrawn_at IS NULL;
CREATE INDEX gallery_of_guild ON gallery_post (guild_id, likes, id) WHERE withdrawn_at IS NULL;

CREATE TABLE gallery_vote (
    post_id INTEGER NOT NULL REFERENCES gallery_post (id),
    user_id INTEGER NOT NULL,
    at      REAL    NOT NULL,
    PRIMARY KEY (post_id, user_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX gallery_vote_at ON gallery_vote (at);

-- Models that are to be uploaded to the Hugging Face hub (`bot.publishing`), until they are there or refused.
CREATE TABLE publication (
    job_id     INTEGER PRIMARY KEY REFERENCES job (id),
    user_id    INTEGER NOT NULL,
    repository TEXT    NOT NULL,
    tries      INTEGER NOT NULL DEFAULT 0,
    retry_at   REAL    NOT NULL DEFAULT 0,
    created_at REAL    NOT NULL
) STRICT;

-- The last served turn of each owner, by kind and priority; it never goes back, whatever becomes of the job.
CREATE TABLE served (
    kind     TEXT    NOT NULL,
    priority INTEGER NOT NULL,
    owner_id INTEGER NOT NULL,
    turn     INTEGER NOT NULL,
    PRIMARY KEY (kind, priority, owner_id)
) STRICT, WITHOUT ROWID;

-- The turn that is being served: the last of any owner.
CREATE INDEX served_turns ON served (kind, priority, turn);

-- Where trainings run: one row for each GPU, or for each place that the configuration names.
CREATE TABLE slot (
    id           TEXT PRIMARY KEY,
    -- As in CUDA_VISIBLE_DEVICES; empty: whatever the machine or the cluster gives.
    device       TEXT    NOT NULL DEFAULT '',
    name         TEXT    NOT NULL,
    memory_bytes INTEGER,
    position     INTEGER NOT NULL,
    -- 0: gone from the machine, or switched off; a job that holds it keeps it.
    is_enabled   INTEGER NOT NULL DEFAULT 1,
    -- 1: switched off, also over restarts.
    is_off       INTEGER NOT NULL DEFAULT 0,
    job_id       INTEGER REFERENCES job (id),
    attempt      INTEGER,
    CHECK ((job_id IS NULL) = (attempt IS NULL))
) STRICT, WITHOUT ROWID;

CREATE INDEX slot_of_job ON slot (job_id) WHERE job_id IS NOT NULL;

-- Every attempt of a job: when, where, and how it ended.
CREATE TABLE attempt (
    job_id     INTEGER NOT NULL REFERENCES job (id),
    attempt    INTEGER NOT NULL,
    guild_id   INTEGER NOT NULL,
    owner_id   INTEGER NOT NULL,
    gpus       INTEGER NOT NULL,
    -- Names of the slots, separated by ", ".
    slots      TEXT    NOT NULL,
    started_at REAL    NOT NULL,
    ended_at   REAL,
    -- The job's next state, and `EndReason`; the reason is there before the end if the attempt is killed.
    outcome    TEXT,
    end_reason TEXT,
    PRIMARY KEY (job_id, attempt)
) STRICT, WITHOUT ROWID;

CREATE INDEX attempt_by_owner ON attempt (owner_id, started_at);
CREATE INDEX attempt_by_start ON attempt (started_at);

-- The events of trainers, all but `step_done` and `phase_progress` (one a second; only the newest matters) and
-- `keep_alive`.
CREATE TABLE job_event (
    job_id  INTEGER NOT NULL REFERENCES job (id),
    seq     INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    type    TEXT    NOT NULL,
    body    TEXT    NOT NULL,
    PRIMARY KEY (job_id, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE outbox (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    dedupe_key    TEXT    NOT NULL UNIQUE,
    job_id        INTEGER NOT NULL,
    -- 0: a direct message.
    channel_id    INTEGER NOT NULL,
    -- The receiver of a direct message; 0: it goes to the channel.
    recipient_id  INTEGER NOT NULL DEFAULT 0,
    -- The job in whose thread in the channel it belongs; 0: it goes to the channel itself.
    thread_of     INTEGER NOT NULL DEFAULT 0,
    -- The server whose matter it is; 0: none.
    guild_id      INTEGER NOT NULL DEFAULT 0,
    notification  TEXT    NOT NULL,
    -- Sent to Discord, which returns the message that already has it. Random, so that no other database uses it.
    nonce         TEXT    NOT NULL UNIQUE,
    -- merged: shown by a later message (epochs that end within seconds; all of a job without a thread).
    state         TEXT    NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'sending', 'sent', 'merged', 'dead')),
    -- Failed requests that lengthen the back-off, and errors of the bot itself.
    tries         INTEGER NOT NULL DEFAULT 0,
    errors        INTEGER NOT NULL DEFAULT 0,
    retry_at      REAL    NOT NULL DEFAULT 0,
    message_id    INTEGER,
    reason        TEXT,
    created_at    REAL    NOT NULL,
    sent_at       REAL
) STRICT;

CREATE INDEX outbox_unsent ON outbox (channel_id, recipient_id, thread_of, id) WHERE state IN ('waiting', 'sending');
CREATE INDEX outbox_dead ON outbox (created_at) WHERE state = 'dead';

-- Channels that take no messages for now: theirs wait. One is looked at again after a while, with each new message,
-- and when roles or channels change.
CREATE TABLE channel_hold (
    channel_id INTEGER PRIMARY KEY,
    -- `HoldReason`, and Discord's words.
    reason     TEXT    NOT NULL,
    detail     TEXT    NOT NULL,
    since      REAL    NOT NULL,
    -- When it is tried again, and the newest message at the last try.
    recheck_at    REAL    NOT NULL,
    seen_id    INTEGER NOT NULL
) STRICT;

-- The messages of a job that are edited, however often they change: its live card; where it has no thread, one with the
-- newest of what would be there; and its pictures in the gallery channel.
CREATE TABLE card (
    job_id         INTEGER NOT NULL,
    kind           TEXT    NOT NULL DEFAULT 'card' CHECK (kind IN ('card', 'latest', 'gallery', 'upload')),
    -- Of a picture: its `gallery_post`; of an upload: its interaction (`job_id` is 0); else 0.
    post_id        INTEGER NOT NULL DEFAULT 0,
    -- 1: the message is to be deleted.
    is_removed     INTEGER NOT NULL DEFAULT 0,
    channel_id     INTEGER NOT NULL,
    -- Of a card: its thread; NULL: none yet; 0: there can be none.
    thread_id      INTEGER,
    -- Of the other one: the notifications that it shows (JSON).
    parts          TEXT,
    -- Rises with each change; the version that is shown; the last one that must be shown at once.
    version        INTEGER NOT NULL,
    shown_version  INTEGER NOT NULL DEFAULT 0,
    urgent_version INTEGER NOT NULL DEFAULT 0,
    nonce          TEXT    NOT NULL UNIQUE,
    state          TEXT    NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'sending', 'sent')),
    tries          INTEGER NOT NULL DEFAULT 0,
    errors         INTEGER NOT NULL DEFAULT 0,
    retry_at       REAL    NOT NULL DEFAULT 0,
    message_id     INTEGER,
    sent_at        REAL,
    shown_at       REAL,
    -- Why the newest version is not shown; a version that is refused is left out, and the next one is tried.
    reason         TEXT,
    PRIMARY KEY (job_id, kind, post_id),
    CHECK ((kind = 'latest') = (parts IS NOT NULL)),
    CHECK ((kind IN ('gallery', 'upload')) = (post_id > 0))
) STRICT;

CREATE INDEX card_by_thread ON card (thread_id) WHERE thread_id > 0;
CREATE INDEX card_failed ON card (job_id) WHERE reason IS NOT NULL;

CREATE INDEX card_changed ON card (channel_id) WHERE shown_version < version;

-- Where a person is notified of an event of a job (`bot.outbox.audience`): what differs from the default.
CREATE TABLE notify_choice (
    user_id INTEGER NOT NULL,
    event   TEXT    NOT NULL,
    place   TEXT    NOT NULL,
    PRIMARY KEY (user_id, event)
) STRICT, WITHOUT ROWID;

-- Hours in which a person's messages make no sound; minutes of the day, in their time zone.
CREATE TABLE quiet_hours (
    user_id INTEGER PRIMARY KEY,
    begins  INTEGER NOT NULL CHECK (begins BETWEEN 0 AND 1439),
    ends    INTEGER NOT NULL CHECK (ends BETWEEN 0 AND 1439),
    zone    TEXT    NOT NULL
) STRICT;

-- Who is notified of a job: others than its owner (1), or not even its owner (0).
CREATE TABLE watcher (
    job_id      INTEGER NOT NULL,
    user_id     INTEGER NOT NULL,
    is_watching INTEGER NOT NULL,
    PRIMARY KEY (job_id, user_id)
) STRICT, WITHOUT ROWID;

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
    -- A user's words, an `AuditReason`, or an `EndReasonKind`.
    why      TEXT
) STRICT;

CREATE INDEX audit_of_job ON audit (job_id, id);

-- Limits for the members of a role; NULL: as configured.
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
    -- What determines the speed, the most important first (`bot/queue/store/measures.py`).
    signature  TEXT    NOT NULL,
    steps      INTEGER NOT NULL,
    seconds    REAL    NOT NULL,
    -- The estimate from when it was queued.
    estimate_s REAL,
    ended_at   REAL    NOT NULL
) STRICT;

CREATE INDEX measure_by_signature ON measure (signature, ended_at);

-- Uploads, from before their download until their owner is answered; the next bot completes what one that died left.
CREATE TABLE upload (
    interaction_id INTEGER PRIMARY KEY,
    guild_id       INTEGER NOT NULL,
    channel_id     INTEGER NOT NULL,
    owner_id       INTEGER NOT NULL,
    kind           TEXT    NOT NULL CHECK (kind IN ('finetune', 'import', 'add')),
    -- The request beside the files (JSON).
    request        TEXT    NOT NULL,
    -- 1: queue it without a confirmation.
    is_at_once     INTEGER NOT NULL,
    -- The dataset that they are added to.
    dataset_id     INTEGER REFERENCES dataset (id),
    -- What the files are called in messages to their owner.
    title          TEXT    NOT NULL,
    -- 1: the dataset that they become is private.
    is_private     INTEGER NOT NULL DEFAULT 0,
    -- Once they are on the disk: their content, and name, SHA-256 and bytes of each (JSON).
    sha256         TEXT,
    files          TEXT,
    -- 1: its files come by the upload page, in pieces; and more of them may come.
    is_by_page     INTEGER NOT NULL DEFAULT 0,
    is_open        INTEGER NOT NULL DEFAULT 0,
    -- How often its files were refused, and others could be sent.
    tries          INTEGER NOT NULL DEFAULT 0,
    -- 1: they are in the dataset that they were to be added to.
    is_done        INTEGER NOT NULL DEFAULT 0,
    created_at     REAL    NOT NULL,
    CHECK ((sha256 IS NULL) = (files IS NULL)),
    CHECK (NOT is_open OR (is_by_page AND sha256 IS NULL)),
    CHECK ((kind = 'add') = (dataset_id IS NOT NULL))
) STRICT;

-- Files of an upload by page; how much of each has arrived, its size on the disk says.
CREATE TABLE upload_file (
    -- Random; a part of its address.
    id             TEXT    PRIMARY KEY,
    interaction_id INTEGER NOT NULL REFERENCES upload (interaction_id),
    -- Its name in the dataset, folders included.
    path           TEXT    NOT NULL,
    bytes          INTEGER NOT NULL CHECK (bytes >= 0),
    -- The page's name for it: announced again, it is the same file.
    client_key     TEXT,
    -- As the sender described it.
    metadata       TEXT    NOT NULL,
    UNIQUE (interaction_id, path),
    UNIQUE (interaction_id, client_key)
) STRICT;

-- Links to web pages (`bot.web.links`); only the member has the token itself.
CREATE TABLE web_link (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    token_sha256 TEXT    NOT NULL UNIQUE,
    kind         TEXT    NOT NULL CHECK (kind IN ('upload', 'job', 'dataset', 'gallery')),
    -- The job, the dataset, or the interaction of the upload; 0: none.
    subject_id   INTEGER NOT NULL DEFAULT 0,
    guild_id     INTEGER NOT NULL,
    user_id      INTEGER NOT NULL,
    created_at   REAL    NOT NULL,
    expires_at   REAL    NOT NULL,
    revoked_at   REAL
) STRICT;

CREATE INDEX web_link_by_subject ON web_link (kind, subject_id);
