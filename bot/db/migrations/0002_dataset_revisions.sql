-- A dataset's prepared folder never changes: what people decide makes another one (docs/adr/0005).
-- A deleted dataset keeps its row, since jobs point to it, and frees its name; so UNIQUE becomes two partial indexes,
-- and SQLite takes a constraint out of a table only with the table. Its rows are put back before the commit, when
-- the references of jobs are looked at again.
PRAGMA defer_foreign_keys = ON;

CREATE TABLE dataset_before AS SELECT * FROM dataset;

DROP TABLE dataset;

CREATE TABLE dataset (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    guild_id   INTEGER NOT NULL,
    owner_id   INTEGER NOT NULL,
    name       TEXT    NOT NULL,
    -- Of what was handed in; names the folder.
    sha256     TEXT    NOT NULL,
    -- The folder below it that `trainer prepare` wrote; digest, counts and summary are of it.
    revision   TEXT    NOT NULL DEFAULT 'prepared',
    -- `<sha256>/<revision>` of the dataset that this one grew out of, whose sides of the split it holds; or empty.
    earlier    TEXT    NOT NULL DEFAULT '',
    -- What people decided (`trainer/protocol/edits.py`), also what is in no revision yet.
    edits      TEXT    NOT NULL DEFAULT '{}',
    -- Of what training sees (`DatasetReport.digest`).
    digest     TEXT    NOT NULL,
    counts     TEXT    NOT NULL,
    summary    TEXT    NOT NULL,
    created_at REAL    NOT NULL,
    deleted_at REAL
) STRICT;

INSERT INTO dataset (id, guild_id, owner_id, name, sha256, digest, counts, summary, created_at)
SELECT id, guild_id, owner_id, name, sha256, digest, counts, summary, created_at FROM dataset_before;

DROP TABLE dataset_before;

CREATE UNIQUE INDEX dataset_name ON dataset (guild_id, name) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX dataset_content ON dataset (guild_id, sha256) WHERE deleted_at IS NULL;

-- A `/finetune` that shows its dataset and waits for "Go on".
CREATE TABLE draft (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    -- Becomes the job's: pressed twice, it is one job.
    interaction_id INTEGER NOT NULL UNIQUE,
    guild_id       INTEGER NOT NULL,
    channel_id     INTEGER NOT NULL,
    owner_id       INTEGER NOT NULL,
    dataset_id     INTEGER NOT NULL REFERENCES dataset (id),
    -- What was asked for, as it was typed (JSON).
    wishes         TEXT    NOT NULL,
    state          TEXT    NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'going', 'cancelled')),
    created_at     REAL    NOT NULL
) STRICT;

CREATE INDEX draft_by_owner ON draft (owner_id, dataset_id);
