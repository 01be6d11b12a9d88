"""Runs a job up to its first optimizer step, as `trainer run` does, without measuring the base first.

    python -m bench.first_step JOB_DIR cold|warm STARTED_AT

`warm` imports all libraries first and counts from then on, like a pre-warmed trainer process.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from trainer.commands import job_processes
from trainer.commands.terminal import quieten_libraries
from trainer.protocol.run_options import RunOptions
from trainer.reporter import Reporter
from trainer.training.run import StopRequest, choose_openmp_spin, without_collection


def main() -> None:
    job_dir, mode, started_at = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    quieten_libraries()
    choose_openmp_spin()
    if mode == "warm":
        job_processes.warm_up()
        started_at = time.time()
    with StopRequest() as stop, Reporter(job_dir) as reporter:
        with without_collection():
            from trainer.training.recipe import prepare_session
            from trainer.training.step import take_step

        session = prepare_session(reporter, stop, RunOptions(job_dir=job_dir))
        session.task.train_mode(True)
        take_step(session, session.epoch_views(1)[0], 0)
    from bench.bare import print_first_step

    print_first_step(started_at)


if __name__ == "__main__":
    main()
