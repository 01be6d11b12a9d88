"""Jobs: their states and transitions, the order of the queue, and the dispatcher. Knows no Discord.

Layers: dispatcher > liveness > planning > store > domain.
"""

from bot.queue.dispatcher import Dispatcher
from bot.queue.domain.job import (
    ACTIVE,
    ENDS,
    LIVING,
    TRANSITIONS,
    ActiveJob,
    EndReason,
    EndReasonKind,
    Job,
    NewJob,
    Priority,
    State,
    StopIntent,
)
from bot.queue.domain.job_progress import Progress
from bot.queue.domain.verbs import may_control, require_control
from bot.queue.planning.estimates import Estimate
from bot.queue.planning.forecast import Forecast
from bot.queue.store.attempts import AttemptStore
from bot.queue.store.draft_store import Draft, DraftStore
from bot.queue.store.job_store import JobStore
from bot.queue.store.limits import Allowance, RoleLimit
from bot.queue.store.queue_control import Admission, PauseKind, QueueControl, QueuePause
from bot.queue.store.slots import Slot, Slots, slots_of

__all__ = [
    "ACTIVE",
    "ENDS",
    "LIVING",
    "TRANSITIONS",
    "ActiveJob",
    "Admission",
    "Allowance",
    "AttemptStore",
    "Dispatcher",
    "Draft",
    "DraftStore",
    "EndReason",
    "EndReasonKind",
    "Estimate",
    "Forecast",
    "Job",
    "JobStore",
    "NewJob",
    "PauseKind",
    "Priority",
    "Progress",
    "QueueControl",
    "QueuePause",
    "RoleLimit",
    "Slot",
    "Slots",
    "State",
    "StopIntent",
    "may_control",
    "require_control",
    "slots_of",
]
