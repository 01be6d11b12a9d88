"""The statements of `DatasetStore`."""

from __future__ import annotations

BY_ID = "SELECT * FROM dataset WHERE id = ? AND deleted_at IS NULL"
BY_NAME = "SELECT * FROM dataset WHERE guild_id = ? AND name = ? AND deleted_at IS NULL"
BY_CONTENT = "SELECT * FROM dataset WHERE guild_id = ? AND sha256 = ? AND deleted_at IS NULL"
NAMES = "SELECT name FROM dataset WHERE guild_id = ? AND deleted_at IS NULL"

#: Datasets that a member may see; all of them, if that is NULL.
_SEEN = """
FROM dataset WHERE guild_id = :guild_id AND deleted_at IS NULL AND (
    NOT is_private OR :viewer_id IS NULL OR owner_id = :viewer_id
    OR EXISTS (SELECT 1 FROM json_each(guests) WHERE value = :viewer_id))
"""

COUNT = f"SELECT COUNT(*) {_SEEN}"

SEARCH = f"SELECT * {_SEEN} AND instr(name, lower(:text)) > 0 ORDER BY id DESC LIMIT :limit OFFSET :offset"

SET_PRIVACY = "UPDATE dataset SET is_private = ?, guests = ? WHERE id = ? RETURNING *"

INSERT = """
INSERT INTO dataset (guild_id, owner_id, name, is_private, created_at, sha256, bytes, digest, report_version, counts,
    summary)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING *
"""

#: What a person has, in all servers.
STORED = """
SELECT COUNT(*) AS datasets, COALESCE(SUM(bytes), 0) AS bytes FROM dataset WHERE owner_id = ? AND deleted_at IS NULL
"""

IS_NEEDED = """
SELECT 1 WHERE EXISTS (SELECT 1 FROM dataset WHERE sha256 = ?1 AND deleted_at IS NULL)
    OR (SELECT COUNT(*) FROM upload WHERE sha256 = ?1) > 1
"""

REPORT_AGAIN = "UPDATE dataset SET digest = ?, report_version = ?, counts = ?, summary = ? WHERE id = ? RETURNING *"

SET_EDITS = "UPDATE dataset SET edits = ? WHERE id = ? RETURNING *"

MOVE_ON = """
UPDATE dataset
SET sha256 = ?, bytes = COALESCE(?, bytes), revision = ?, earlier = ?, digest = ?, report_version = ?, counts = ?,
    summary = ?
WHERE id = ?
"""

DELETE = "UPDATE dataset SET deleted_at = ? WHERE id = ?"

JOB_THAT_NEEDS = """
SELECT id, name FROM job
WHERE kind = 'train' AND state IN ('queued', 'preparing', 'running', 'stopping', 'paused') AND (
    dataset_id = :dataset_id
    -- … or it is mixed in, in whichever revision.
    OR EXISTS (
        SELECT 1 FROM json_each(job.spec, '$.mix') AS part
        WHERE substr(json_extract(part.value, '$.dataset'), 1, length(:folder)) = :folder
    )
)
ORDER BY id LIMIT 1
"""

#: In the transaction of `MOVE_ON`: the files are in, only their owner has no answer yet.
UPLOAD_DONE = "UPDATE upload SET is_done = 1 WHERE interaction_id = ?"

PENDING_CONTENTS = "SELECT sha256 FROM upload WHERE sha256 IS NOT NULL"

REVISIONS_IN_USE = "SELECT sha256, revision FROM dataset WHERE deleted_at IS NULL"

#: Includes ended jobs: they can be trained again.
TRAINED_ON = """
SELECT json_extract(spec, '$.dataset') FROM job WHERE kind = 'train'
UNION SELECT json_extract(part.value, '$.dataset') FROM job, json_each(job.spec, '$.mix') AS part
"""
