"""Jobs: what they are, what may happen to them, in which order they run, and who runs them. Knows no Discord."""

from bot.queue.dispatcher import Dispatcher
from bot.queue.domain.admission import Gate
from bot.queue.domain.job import ACTIVE, ENDS, LIVING, MOVES, Job, NewJob, Priority, Progress, State, StopIntent
from bot.queue.domain.rules import may_control, require_control
from bot.queue.planning.estimates import Estimate
from bot.queue.planning.forecast import Forecast
from bot.queue.store.drafts import Draft, DraftStore
from bot.queue.store.job_store import JobStore
from bot.queue.store.limits import Allowance, RoleLimit
from bot.queue.store.queue_control import Halt, HaltKind, MainSwitch
from bot.queue.store.runs import Runs
from bot.queue.store.slots import Slot, Slots, slots_of

__all__ = [
    "ACTIVE",
    "ENDS",
    "LIVING",
    "MOVES",
    "Allowance",
    "Dispatcher",
    "Draft",
    "DraftStore",
    "Estimate",
    "Forecast",
    "Gate",
    "Halt",
    "HaltKind",
    "Job",
    "JobStore",
    "MainSwitch",
    "NewJob",
    "Priority",
    "Progress",
    "RoleLimit",
    "Runs",
    "Slot",
    "Slots",
    "State",
    "StopIntent",
    "may_control",
    "require_control",
    "slots_of",
]
