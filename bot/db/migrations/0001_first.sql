-- Times are seconds since the epoch, UTC. Ids of guilds, channels, people and messages are Discord's.

-- Small facts that the bot remembers between two starts (`bot/db/setting.py`).
CREATE TABLE setting (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE dataset (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    guild_id   INTEGER NOT NULL,
    owner_id   INTEGER NOT NULL,
    name       TEXT    NOT NULL,
    -- Of what was handed in; names the folder.
    sha256     TEXT    NOT NULL,
    -- Of what training sees (`DatasetReport.digest`).
    digest     TEXT    NOT NULL,
    counts     TEXT    NOT NULL,
    summary    TEXT    NOT NULL,
    created_at REAL    NOT NULL,
    UNIQUE (guild_id, name),
    UNIQUE (guild_id, sha256)
) STRICT;

CREATE TABLE job (
    id                INTEGER PRIMARY KEY AUTOINCREMENT,
    interaction_id    INTEGER NOT NULL UNIQUE,
    guild_id          INTEGER NOT NULL,
    channel_id        INTEGER NOT NULL,
    owner_id          INTEGER NOT NULL,
    dataset_id        INTEGER NOT NULL REFERENCES dataset (id),
    name              TEXT    NOT NULL,
    spec              TEXT    NOT NULL,
    state             TEXT    NOT NULL
        CHECK (state IN ('queued', 'running', 'stopping', 'succeeded', 'failed', 'cancelled')),
    stop_intent       TEXT CHECK (stop_intent IN ('cancel', 'keep_best')),
    stopped_by        INTEGER,
    -- When the trainer was told to stop; NULL before it.
    stop_sent_at      REAL,
    -- 1: the next start only finishes (`trainer run --finish`).
    is_finishing      INTEGER NOT NULL DEFAULT 0,
    -- 1: it was interrupted and goes on before all that never started.
    is_front          INTEGER NOT NULL DEFAULT 0,
    -- Starts, and those among them that do not count against the limit.
    attempt           INTEGER NOT NULL DEFAULT 0,
    excused           INTEGER NOT NULL DEFAULT 0,
    -- Rises over all claims: who was served last, whatever the clock says.
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
    created_at        REAL    NOT NULL,
    started_at        REAL,
    ended_at          REAL,
    CHECK (read_bytes >= 0 AND excused <= attempt)
) STRICT;

CREATE INDEX job_by_state ON job (state, id);
CREATE INDEX job_by_guild ON job (guild_id, id);
CREATE INDEX job_by_owner ON job (owner_id, claim_number);

-- What a trainer said, `step_done` left out (one a second for hours; only the newest matters).
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
    channel_id    INTEGER NOT NULL,
    notice        TEXT    NOT NULL,
    -- Given to Discord, which returns the message already made for it. Random, so that it is no other database's.
    nonce         TEXT    NOT NULL UNIQUE,
    state         TEXT    NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'sending', 'sent', 'dead')),
    tries         INTEGER NOT NULL DEFAULT 0,
    retry_at      REAL    NOT NULL DEFAULT 0,
    message_id    INTEGER,
    reason        TEXT,
    created_at    REAL    NOT NULL,
    sent_at       REAL
) STRICT;

CREATE INDEX outbox_unsent ON outbox (channel_id, id) WHERE state IN ('waiting', 'sending');

-- The live card of a job: one row, however often it changes.
CREATE TABLE card (
    job_id         INTEGER PRIMARY KEY,
    channel_id     INTEGER NOT NULL,
    -- Rises with each change; what was shown; the last change that must be shown at once.
    version        INTEGER NOT NULL,
    shown_version  INTEGER NOT NULL DEFAULT 0,
    urgent_version INTEGER NOT NULL DEFAULT 0,
    nonce          TEXT    NOT NULL UNIQUE,
    state          TEXT    NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'sending', 'sent', 'dead')),
    tries          INTEGER NOT NULL DEFAULT 0,
    retry_at       REAL    NOT NULL DEFAULT 0,
    message_id     INTEGER,
    sent_at        REAL,
    shown_at       REAL,
    reason         TEXT
) STRICT;

CREATE INDEX card_changed ON card (channel_id) WHERE shown_version < version;
