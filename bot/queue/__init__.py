"""Jobs: what they are, what may happen to them, in which order they run, and who runs them. Knows no Discord."""

from bot.queue.dispatcher import Dispatcher
from bot.queue.drafts import Draft, DraftStore
from bot.queue.estimates import Estimate
from bot.queue.forecast import Forecast
from bot.queue.gate import Gate
from bot.queue.halt import Halt, HaltKind, MainSwitch
from bot.queue.job import ACTIVE, ENDS, LIVING, MOVES, Job, NewJob, Priority, Progress, State, StopIntent
from bot.queue.limits import Allowance, RoleLimit
from bot.queue.rules import may_control, require_control
from bot.queue.runs import Runs
from bot.queue.slots import Slot, Slots, slots_of
from bot.queue.store import JobStore

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
