"""What is done by the clock; each chore can be called without it."""

from bot.chores.chores import Chore, Chores
from bot.chores.disk import Disk
from bot.chores.gates import Gates
from bot.chores.planning import plan_chores
from bot.chores.uploads import LeftUploads

__all__ = ["Chore", "Chores", "Disk", "Gates", "LeftUploads", "plan_chores"]
