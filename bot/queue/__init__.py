"""Jobs: what they are, what may happen to them, in which order they run, and who runs them. Knows no Discord."""

from bot.queue.dispatcher import Dispatcher
from bot.queue.drafts import Draft, DraftState, DraftStore
from bot.queue.job import MOVES, Job, NewJob, Progress, State, StopIntent
from bot.queue.rules import may_control, require_control
from bot.queue.store import JobStore

__all__ = [
    "MOVES",
    "Dispatcher",
    "Draft",
    "DraftState",
    "DraftStore",
    "Job",
    "JobStore",
    "NewJob",
    "Progress",
    "State",
    "StopIntent",
    "may_control",
    "require_control",
]
