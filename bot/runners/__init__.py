"""Where a training runs: local processes or a Ray cluster, behind one interface."""

from bot.runners.local import LocalRunner
from bot.runners.runner import Handle, Runner, RunStatus
from bot.runners.warm import WarmSamplers, WarmTrainer

__all__ = ["Handle", "LocalRunner", "RunStatus", "Runner", "WarmSamplers", "WarmTrainer"]
