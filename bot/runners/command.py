"""The command line of one start of a trainer, whatever machine it is for."""

from __future__ import annotations

from collections.abc import Sequence

from bot.runners.runner import Launch


def trainer_argv(command: Sequence[str], launch: Launch, job_dir: str) -> tuple[str, ...]:
    """`command run JOB_DIR …`; over several GPUs by `accelerate launch`, a process for each.

    `command` begins with a Python.
    """
    started_by = command if launch.gpus < 2 else (command[0], *_accelerate(launch.gpus), *command[1:])
    options = [f"--attempt={launch.attempt}"]
    if launch.finish:
        options.append("--finish")
    if launch.micro_batch is not None:
        options.append(f"--micro-batch={launch.micro_batch}")
    if launch.gpus > 1:
        # So that it says so if the launcher started another number.
        options.append(f"--processes={launch.gpus}")
    return (*started_by, "run", job_dir, *options)


def _accelerate(processes: int) -> tuple[str, ...]:
    return (
        *("-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={processes}", "--num_machines=1"),
        # Port 0: a free one, so that two jobs of one machine do not meet. Precision is the trainer's own choice.
        *("--main_process_port=0", "--mixed_precision=no", "--dynamo_backend=no"),
    )
