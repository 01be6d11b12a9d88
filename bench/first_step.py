"""Ours up to the first step, as `trainer run` does it, without the measure of the base before it.

    python -m bench.first_step JOB_DIR cold|warm BEGAN

`warm` counts from the moment at which the warmed process has its order.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from trainer.commands import wait
from trainer.commands.quiet import quieten_libraries
from trainer.reporter import Reporter
from trainer.training.run import calm_threads
from trainer.training.start import Start
from trainer.training.stop import StopRequest


def main() -> None:
    job_dir, how, began = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    quieten_libraries()
    calm_threads()
    if how == "warm":
        wait.warm_up()
        began = time.time()
    with StopRequest() as stop, Reporter(job_dir) as reporter:
        from trainer.training.recipe import prepare_session
        from trainer.training.step import take_step

        session = prepare_session(reporter, stop, Start())
        session.task.train_mode(True)
        take_step(session, session.views_of(1)[0], 0)
    from bench.bare import tell_first_step

    tell_first_step(began)


if __name__ == "__main__":
    main()
