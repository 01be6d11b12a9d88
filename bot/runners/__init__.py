"""Where a training runs: the seam between the queue and a machine."""

from bot.runners.events import EventLine, EventLines, read_events
from bot.runners.local import LocalRunner
from bot.runners.runner import Handle, Launch, Runner, Status
from bot.runners.warm import WarmTrainer

__all__ = [
    "EventLine",
    "EventLines",
    "Handle",
    "Launch",
    "LocalRunner",
    "Runner",
    "Status",
    "WarmTrainer",
    "read_events",
]
