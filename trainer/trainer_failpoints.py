"""The trainer's failpoints."""

from trainer.exchange.failpoints import Failpoints

FAILPOINT_VARIABLE = "DARKROOM_TRAINER_FAIL_AT"

#: In the order of a run.
POINTS = (
    "lock_held",
    "event_half_written",
    "event_written",
    "checkpoint_half_written",
    "checkpoint_written",
    "epoch_emitted",
    "export_written",
    "before_terminal_event",
    "after_terminal_event",
)

failpoint = Failpoints(FAILPOINT_VARIABLE, POINTS)
