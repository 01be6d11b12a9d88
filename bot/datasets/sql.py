"""The datasets' SQL. A deleted dataset keeps its row, for the jobs that were trained on it, and is not found."""

from __future__ import annotations

BY_ID = "SELECT * FROM dataset WHERE id = ? AND deleted_at IS NULL"
BY_NAME = "SELECT * FROM dataset WHERE guild_id = ? AND name = ? AND deleted_at IS NULL"
BY_CONTENT = "SELECT * FROM dataset WHERE guild_id = ? AND sha256 = ? AND deleted_at IS NULL"
NAMES = "SELECT name FROM dataset WHERE guild_id = ? AND deleted_at IS NULL"
COUNT = "SELECT COUNT(*) FROM dataset WHERE guild_id = ? AND deleted_at IS NULL"

SEARCH = """
SELECT * FROM dataset WHERE guild_id = ? AND instr(name, lower(?)) > 0 AND deleted_at IS NULL
ORDER BY id DESC LIMIT ? OFFSET ?
"""

INSERT = """
INSERT INTO dataset (guild_id, owner_id, name, sha256, digest, counts, summary, created_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING *
"""

DECIDE = "UPDATE dataset SET edits = ? WHERE id = ? RETURNING *"

MOVE_ON = """
UPDATE dataset SET sha256 = ?, revision = ?, earlier = ?, digest = ?, counts = ?, summary = ? WHERE id = ?
"""

DELETE = "UPDATE dataset SET deleted_at = ? WHERE id = ?"

JOB_THAT_NEEDS = """
SELECT id, name FROM job
WHERE dataset_id = ? AND state IN ('queued', 'preparing', 'running', 'stopping', 'paused') ORDER BY id LIMIT 1
"""

#: In the same transaction as `MOVE_ON`: the files are in, only their owner has no answer yet.
UPLOAD_DONE = "UPDATE upload SET is_done = 1 WHERE interaction_id = ?"

#: Contents that somebody waits for.
UPLOADED = "SELECT sha256 FROM upload WHERE sha256 IS NOT NULL"

REVISIONS_IN_USE = "SELECT sha256, revision FROM dataset WHERE deleted_at IS NULL"

#: Of jobs that ended too: they can be trained again.
TRAINED_ON = """
SELECT json_extract(spec, '$.dataset') FROM job WHERE spec IS NOT NULL
UNION SELECT json_extract(part.value, '$.dataset') FROM job, json_each(job.spec, '$.mix') AS part
"""
