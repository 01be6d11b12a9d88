"""Named points at which a test kills the bot, as `kill -9` would, to see what is lost (nothing) or said twice."""

from __future__ import annotations

import os
import signal

#: Name of one point, or `name:n` for the n-th time that it is reached.
CRASH_VARIABLE = "DARKROOM_CRASH_AT"

#: In the order of an upload's life: handed in, and, where the bot was killed, brought to its end by the next one.
UPLOAD_POINTS = (
    "upload_noted",
    "upload_received",
    "upload_examined",
    "upload_kept",
    "upload_answered",
    "upload_told",
)

#: In the order of a job's life.
JOB_POINTS = (
    "submit_open",
    "submit_committed",
    "claim_open",
    "claim_committed",
    "spec_written",
    "launched",
    "handle_stored",
    "events_read",
    "ingest_open",
    "ingest_committed",
    "stop_open",
    "stop_committed",
    "stop_signalled",
    "stop_noted",
    "lost_open",
    "lost_committed",
    "retry_committed",
    "post_marked",
    "post_sent",
    "post_noted",
    "card_marked",
    "card_sent",
    "card_edited",
    "card_noted",
    "migrated",
    "backup_written",
)

POINTS = UPLOAD_POINTS + JOB_POINTS

_reached: dict[str, int] = {}


def crash_point(name: str) -> None:
    """Die here if the environment says so."""
    wanted = os.environ.get(CRASH_VARIABLE)
    if not wanted:
        return
    assert name in POINTS, name
    point, _, number = wanted.partition(":")
    if point != name:
        return
    _reached[name] = _reached.get(name, 0) + 1
    if _reached[name] == int(number or 1):
        os.kill(os.getpid(), signal.SIGKILL)
