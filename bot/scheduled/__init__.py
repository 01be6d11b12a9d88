"""Tasks that run by the clock, or once after a start; each can be called without the scheduler."""

from bot.scheduled.admission_control import AdmissionControl, DiskMonitor
from bot.scheduled.interrupted_uploads import InterruptedUploads
from bot.scheduled.scheduler import ScheduledTask, Scheduler, plan_tasks

__all__ = ["AdmissionControl", "DiskMonitor", "InterruptedUploads", "ScheduledTask", "Scheduler", "plan_tasks"]
