"""The interface of a runner, and the command line that every runner starts."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NewType, Protocol

from trainer.protocol.run_options import RunOptions

#: JSON by which a runner finds a training again, also after a restart of the bot.
Handle = NewType("Handle", str)


class RunStatus(StrEnum):
    """State of a trainer process."""

    #: Accepted by a cluster that has no room yet.
    WAITING = "waiting"
    RUNNING = "running"
    #: The process has ended. Its event file is complete; without a terminal event it died.
    EXITED = "exited"
    #: The machine went down under it, so the attempt does not count.
    NODE_LOST = "node_lost"


class Runner(Protocol):
    """Starts, finds and stops trainings. Their events and heartbeat are files in the job folder."""

    async def launch(self, options: RunOptions) -> Handle:
        """Start the training, or find the process that this attempt has started already.

        Raises:
            LaunchFailed: No process could be started.
            RunnerUnreachable: The cluster does not answer; call it again.
        """
        ...

    async def poll(self, handle: Handle) -> RunStatus:
        """Return the state of the process. Poll before reading: once it has exited, its event file is complete.

        Raises:
            RunnerUnreachable: The cluster does not answer, so the state is unknown.
        """
        ...

    async def stop(self, handle: Handle) -> None:
        """Ask it to save a checkpoint and stop; do not wait for it."""
        ...

    async def kill(self, handle: Handle) -> None:
        """Kill it and all its processes now."""
        ...


def trainer_argv(command: Sequence[str], options: RunOptions) -> tuple[str, ...]:
    """Return the command line of a training: `command run JOB_DIR …`, by `accelerate launch` for several GPUs.

    `command` begins with a Python interpreter.
    """
    launcher = (command[0], *_accelerate(options.gpus), *command[1:]) if options.gpus > 1 else command
    return (*launcher, *options.to_argv())


def _accelerate(processes: int) -> tuple[str, ...]:
    return (
        *("-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={processes}", "--num_machines=1"),
        # Port 0 takes a free one, so that two jobs of one machine do not collide. The trainer chooses the precision.
        *("--main_process_port=0", "--mixed_precision=no", "--dynamo_backend=no"),
    )
