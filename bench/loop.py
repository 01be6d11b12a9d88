"""One loop of `bench.train`, in a process of its own: takes as many steps as each line of stdin says, and times them.

    python -m bench.loop ours|fp32|bf16 BASE BATCH.safetensors JOB_DIR BATCH_SIZE

`ours` takes the steps of the recipe and writes the batch that the bare loops read. torch is imported as late as in a
training: its threads read their settings from the environment at that moment.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.training.session import Session


def main() -> None:
    kind, base, batch, job_dir, batch_size = sys.argv[1:]
    logging.disable(logging.WARNING)
    if kind == "ours":
        _run_ours(Path(job_dir), Path(batch), int(batch_size))
        return
    from bench.bare import BareLoop

    _answer_rounds(BareLoop(Path(base), Path(batch), kind).steps, kind)


def _run_ours(job_dir: Path, batch: Path, batch_size: int) -> None:
    from trainer.commands.terminal import quieten_libraries
    from trainer.protocol.run_options import RunOptions
    from trainer.reporter import Reporter
    from trainer.training.run import StopRequest, choose_openmp_spin

    quieten_libraries()
    choose_openmp_spin()
    with StopRequest() as stop, Reporter(job_dir) as reporter:
        from trainer.training.recipe import prepare_session

        session = prepare_session(reporter, stop, RunOptions(job_dir=job_dir))
        _save_batch(session, batch, batch_size)
        spin = os.environ.get("GOMP_SPINCOUNT", "torch's own")
        plan = session.memory_plan
        description = f"{plan.precision} {session.task}, {plan.micro_batch_size} images at once, spinning: {spin}"
        _answer_rounds(_steps_of(session), description)


def _save_batch(session: Session, path: Path, batch_size: int) -> None:
    """Save one batch of one size for the bare loops."""
    from safetensors.torch import save_file

    from trainer.protocol.report import Split
    from trainer.tasks.diffusion import DiffusionTask
    from trainer.tasks.examples import ImageView

    examples = session.examples[Split.TRAIN]
    size = max(set(examples.sizes), key=examples.sizes.count)
    indices = [index for index, each in enumerate(examples.sizes) if each == size][:batch_size]
    assert isinstance(session.task, DiffusionTask)
    captions = session.task.captions.embed([examples.captions[index] for index in indices])["caption_BTD"]
    latents = examples.inputs([ImageView(index=index) for index in indices])
    save_file({"latents": latents, "captions": captions}, path)


def _steps_of(session: Session) -> Callable[[int], None]:
    """Return a loop over the steps of the recipe, like `_train_epoch`."""
    from trainer.training.step import EpochProgress, take_step

    session.task.train_mode(True)
    order = session.epoch_views(1)
    progress = EpochProgress(session)
    number = 0

    def run(steps: int) -> None:
        nonlocal number
        for _ in range(steps):
            step = order[number % len(order)]
            session.stop.check()
            progress.add(take_step(session, step, number), images=len(step))
            number += 1

    return run


def _answer_rounds(run: Callable[[int], None], description: str) -> None:
    run(2)
    _print_json({"description": description})
    for line in sys.stdin:
        started, cpu_started = time.perf_counter(), time.process_time()
        run(int(line))
        _print_json({"seconds": time.perf_counter() - started, "cpu_s": time.process_time() - cpu_started})


def _print_json(answer: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
