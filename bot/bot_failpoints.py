"""The bot's failpoints."""

from trainer.exchange.failpoints import Failpoints

FAILPOINT_VARIABLE = "DARKROOM_FAIL_AT"

#: In the order of an upload: taken in, and, if the bot was killed meanwhile, finished by the next bot.
UPLOAD_POINTS = (
    "upload_recorded",
    "upload_acknowledged",
    "upload_piece",
    "upload_closed",
    "upload_received",
    "upload_prepared",
    "upload_drafted",
    "upload_answered",
    "upload_reported",
)

#: In the order of a job.
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
    "stop_recorded",
    "lost_open",
    "lost_committed",
    "retry_committed",
    "post_marked",
    "post_sent",
    "post_recorded",
    "card_marked",
    "card_sent",
    "card_edited",
    "card_recorded",
    "thread_started",
    "migrated",
    "backup_written",
)

POINTS = UPLOAD_POINTS + JOB_POINTS

failpoint = Failpoints(FAILPOINT_VARIABLE, POINTS)
