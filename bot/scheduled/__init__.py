"""What is done by the clock; each chore can be called without it."""

from bot.scheduled.chores import Chore, Chores
from bot.scheduled.disk import Disk
from bot.scheduled.gates import Gates
from bot.scheduled.planning import plan_chores
from bot.scheduled.uploads import LeftUploads

__all__ = ["Chore", "Chores", "Disk", "Gates", "LeftUploads", "plan_chores"]
